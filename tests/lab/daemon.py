# SPDX-License-Identifier: LGPL-2.1-or-later
"""A daemon under test: started, watched by pidfd, its standard error kept for the day it fails."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from typing import TYPE_CHECKING

from lab.namespaces import LAB

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Daemon", "DaemonError", "log_of"]


class DaemonError(Exception):
    """A daemon did not do what it must; the text has the end of its log."""


def log_of(name: str) -> Path:
    """Where what *name* says is kept."""
    directory = LAB / "log"
    directory.mkdir(exist_ok=True)
    return directory / f"{name}.log"


class Daemon:
    """One process and its log. At most one process at a time; it may be started again.

    :param name: of its log.
    """

    def __init__(self, name: str, argv: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.argv = argv
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def spawn(self, *, pass_fds: tuple[int, ...] = ()) -> None:
        """Start it; whether it is ready is another question."""
        assert self.process is None
        with log_of(self.name).open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                cwd="/",
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
                process_group=0,  # ^C is for who runs the tests, not for the daemons
            )

    def wait(self, timeout: float) -> int:
        """Its exit status, negative for a signal; it is no longer running then.

        :param timeout: seconds.
        :raise DaemonError: it is still running.
        """
        assert self.process is not None
        pidfd = os.pidfd_open(self.process.pid)
        try:
            if not select.select([pidfd], [], [], timeout)[0]:
                raise DaemonError(self.account(f"still runs after {timeout:g} s"))
        finally:
            os.close(pidfd)
        process, self.process = self.process, None
        return process.wait()

    def stop(self, *, timeout: float = 10) -> int:
        """Ask it to end (SIGTERM); its exit status.

        :raise DaemonError: it did not; it has been killed.
        """
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except DaemonError:
            self.kill()
            raise

    def kill(self) -> None:
        """End it without its say (SIGKILL); nothing happens where it is not running."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def account(self, sentence: str) -> str:
        """*sentence*, with the end of the log below it."""
        text = log_of(self.name).read_text(errors="replace")[-4000:]
        return f"{self.name} {sentence}; its log ends:\n{text}"

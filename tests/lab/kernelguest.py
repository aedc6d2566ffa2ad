# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest with a kernel's whole network behind a TAP, and no QEMU: for connections, not frames.

The kernel is this one's, in a network namespace of a process (``standin.py``) that has a copy of
the TAP's fd. Frames can still be sent by the test's own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from lab.tap import Tap

__all__ = ["KernelGuest"]

_STANDIN = Path(__file__).with_name("standin.py")
_PROGRAM = ("unshare", "--net", sys.executable, "-I", str(_STANDIN))


class KernelGuest:
    """The guest, as a context manager: inside of the ``with`` it answers.

    :param name: which it answers with.
    :param gateways: IPv4 and IPv6, with the prefix's length.
    """

    def __init__(self, name: str, tap: Tap, gateways: tuple[str, str]) -> None:
        self.name, self.tap, self._gateways = name, tap, gateways
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        (fd, *_), tap = self.tap.fds, self.tap
        where: list[str] = []
        for own, gateway in zip((tap.ipv4, tap.ipv6), self._gateways, strict=True):
            address, _, length = gateway.partition("/")
            where += [f"{own}/{length}", address]
        self._process = subprocess.Popen(
            [*_PROGRAM, self.name, str(fd), tap.mac, *where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            pass_fds=(fd,),
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.__exit__(None, None, None)
            raise RuntimeError(f"the guest {self.name} did not start")
        return self

    def ask(self, kind: str, address: str, port: int) -> str:
        """As of :func:`standin.ask`, from the guest."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{kind} {address} {port}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")

    def command(self, argv: list[str]) -> list[str]:
        """*argv* as it must be written to run there."""
        assert self._process is not None
        return ["nsenter", f"--net=/proc/{self._process.pid}/ns/net", "--", *argv]

    def run(self, *argv: str) -> str:
        """Run a command there; its standard output."""
        done = subprocess.run(self.command([*argv]), stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            with process:
                process.kill()

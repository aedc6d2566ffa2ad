# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that is not the lab's: a network namespace with a process in it, to be joined by a cable.

The process is ``peer.py``: it answers on :data:`PORT`, TCP (HTTP) and UDP, with the source address
that it saw. The path /hold has its answer only after :meth:`Elsewhere.release`. It ends when its
standard input does, so it cannot outlive us however we end.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["PORT", "Elsewhere"]

PORT = 8080


class Elsewhere:
    """The namespace, as a context manager: it is there inside of the ``with``."""

    def __init__(self) -> None:
        self._peer: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process that is there."""
        assert self._peer is not None
        return self._peer.pid

    def connect(self) -> None:
        """Lay the cable: for who inherits; called once the peer listens."""

    def disconnect(self) -> None:
        """Take the cable away, where there is one."""

    def __enter__(self) -> Self:
        peer = Path(__file__).with_name("peer.py")
        self._peer = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-I", peer, str(PORT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        try:
            assert self._peer.stdout is not None
            if self._peer.stdout.readline() != "ready\n":
                raise RuntimeError("the peer elsewhere did not start")
            self.run(["ip", "link", "set", "lo", "up"])
            self.connect()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def release(self) -> None:
        """Answer who waits at /hold, and whoever comes there later."""
        assert self._peer is not None
        assert self._peer.stdin is not None
        self._peer.stdin.write("\n")
        self._peer.stdin.flush()

    def command(self, argv: list[str]) -> list[str]:
        """*argv* as it must be written to run there."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *argv]

    def run(self, argv: list[str], *, check: bool = True) -> str:
        """Run *argv* there; its standard output.

        :raise subprocess.CalledProcessError: it failed, and *check* is true.
        """
        done = subprocess.run(self.command(argv), stdout=subprocess.PIPE, text=True, check=check)
        return done.stdout

    def ask(
        self,
        kind: str,
        address: str,
        port: int,
        *,
        timeout: float = 1.0,
        source: str = "",
        sport: int = 0,
    ) -> str:
        """As of :func:`standin.ask`, from there."""
        program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        asked = f"{kind!r}, {address!r}, {port}, {timeout}, {source!r}, {sport}"
        program += f"from standin import ask\nprint(ask({asked}))"
        return self.run([sys.executable, "-I", "-c", program]).strip()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.disconnect()
        peer, self._peer = self._peer, None
        if peer is not None:
            with peer:
                peer.kill()

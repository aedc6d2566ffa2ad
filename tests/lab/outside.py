# SPDX-License-Identifier: LGPL-2.1-or-later
"""The world beyond the uplink: a second network namespace, joined to the lab's by a veth pair.

::

    lab's namespace                              outside
    up0  192.0.2.2/24  2001:db8::2/64  ======  out0  192.0.2.1/24  2001:db8::1/64
    default route via 192.0.2.1                  no route but its own subnets, so that an address
                                                 which NAT forgot to translate gets no answer

A peer listens there on port 8080, TCP (HTTP) and UDP: it answers with the source address it saw.
The path /hold has its answer only after :meth:`Outside.release`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ADDRESS4", "ADDRESS6", "PORT", "UPLINK4", "UPLINK6", "Outside"]

ADDRESS4 = "192.0.2.1"
ADDRESS6 = "2001:db8::1"
#: The lab's own side.
UPLINK4 = "192.0.2.2"
UPLINK6 = "2001:db8::2"
PORT = 8080


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Outside:
    """The outside namespace, as a context manager: it is there inside of the ``with``.

    The lab's namespace must have no interface named up0.
    """

    def __init__(self) -> None:
        self._peer: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        peer = Path(__file__).with_name("peer.py")
        # The peer ends when its standard input does, so it cannot outlive us however we end.
        self._peer = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-I", peer, str(PORT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert self._peer.stdout is not None
        if self._peer.stdout.readline() != "ready\n":
            self.__exit__(None, None, None)
            raise RuntimeError("the outside peer did not start")
        self._connect(self._peer.pid)
        return self

    def _connect(self, pid: int) -> None:
        _ip("link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", str(pid))
        for address in (f"{UPLINK4}/24", f"{UPLINK6}/64"):
            _ip("address", "add", address, "dev", "up0", *self._no_dad(address))
        for address in (f"{ADDRESS4}/24", f"{ADDRESS6}/64"):
            self.run(["ip", "address", "add", address, "dev", "out0", *self._no_dad(address)])
        self.run(["ip", "link", "set", "lo", "up"])
        self.run(["ip", "link", "set", "out0", "up"])
        _ip("link", "set", "up0", "up")
        _ip("route", "add", "default", "via", ADDRESS4)
        _ip("-6", "route", "add", "default", "via", ADDRESS6)

    @staticmethod
    def _no_dad(address: str) -> list[str]:
        """Usable at once: nobody else is on this wire."""
        return ["nodad"] if ":" in address else []

    def release(self) -> None:
        """Answer who waits at /hold, and whoever comes there later."""
        assert self._peer is not None
        assert self._peer.stdin is not None
        self._peer.stdin.write("\n")
        self._peer.stdin.flush()

    def command(self, argv: list[str]) -> list[str]:
        """*argv* as it must be written to run outside."""
        assert self._peer is not None
        return ["nsenter", f"--net=/proc/{self._peer.pid}/ns/net", "--", *argv]

    def run(self, argv: list[str], *, check: bool = True) -> str:
        """Run *argv* outside; its standard output.

        :raise subprocess.CalledProcessError: it failed, and *check* is true.
        """
        done = subprocess.run(self.command(argv), stdout=subprocess.PIPE, text=True, check=check)
        return done.stdout

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        subprocess.run(["ip", "link", "delete", "up0"], stderr=subprocess.DEVNULL, check=False)
        peer, self._peer = self._peer, None
        if peer is not None:
            with peer:
                peer.kill()

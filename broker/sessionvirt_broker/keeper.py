# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs dnsmasq where no systemd does: a child of root's stage, as dnsmasq's own user.

The broker cannot start it: a server on ports 53 and 67 needs capabilities that the broker does not
have, and under the broker's uid a fault in dnsmasq would own the broker's bus name. So this process
is started before root's uid is given up (``privileges.py``), keeps dnsmasq's three capabilities,
and takes two words over a socket: ``start BRIDGE``, ``stop BRIDGE``. It knows one program and one
form of name.

It ends, and its dnsmasq with it, when the broker does; the next broker starts them again. The
guests' addresses outlive that: an address is asked for again after half an hour.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from .dnsmasq import PROGRAM
from .networkconfig import BRIDGE_PREFIX

_BRIDGE = re.compile(re.escape(BRIDGE_PREFIX) + r"[a-z][a-z0-9_]{0,10}")
#: A dnsmasq that ends by itself is started again, at most once in this time.
_RESTART_SECONDS = 2.0


class DnsmasqKeeper:
    """The dnsmasq of each bridge."""

    def __init__(self, connection: socket.socket, networks: Path) -> None:
        self._connection = connection
        self._networks = networks
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, float] = {}

    def serve(self) -> None:
        """Until the broker closes its end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            while True:
                if selector.select(timeout=1.0 if self._running else None):
                    request = self._connection.recv(64)
                    if not request:
                        return
                    answer = b" ok" if self._handle(request) else b" failed"
                    self._connection.send(request + answer)
                self._restart_ended()

    def close(self) -> None:
        """End every dnsmasq."""
        for bridge in list(self._running):
            self._stop(bridge)

    def _handle(self, request: bytes) -> bool:
        verb, _, bridge = request.decode("ascii", "replace").partition(" ")
        if not _BRIDGE.fullmatch(bridge):
            return False
        if verb == "start":
            return self._start(bridge)
        if verb == "stop":
            self._stop(bridge)
            return True
        return False

    def _start(self, bridge: str) -> bool:
        running = self._running.get(bridge)
        if running is not None and running.poll() is None:
            return True
        self._started[bridge] = time.monotonic()
        argv = [
            # dnsmasq must not outlive this process, whatever ends it.
            *("/usr/bin/setpriv", "--pdeathsig", "TERM", "--"),
            *(PROGRAM, "--keep-in-foreground"),
            f"--conf-file={self._networks / bridge / 'dnsmasq.conf'}",
        ]
        try:
            # PRIVILEGE: CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW, inherited as ambient.
            self._running[bridge] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, env={}, cwd="/"
            )
        except OSError:
            return False
        return True

    def _stop(self, bridge: str) -> None:
        self._started.pop(bridge, None)
        child = self._running.pop(bridge, None)
        if child is None:
            return
        child.terminate()
        try:
            child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _restart_ended(self) -> None:
        for bridge, child in list(self._running.items()):
            rested = time.monotonic() - self._started[bridge] >= _RESTART_SECONDS
            if child.poll() is not None and rested:
                self._start(bridge)


def main() -> None:
    """``keeper.py FD RUNTIME``: the socket's number and the broker's runtime directory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor, runtime = int(sys.argv[1]), Path(sys.argv[2])
    with socket.socket(fileno=descriptor) as connection:
        connection.set_inheritable(False)
        with contextlib.closing(DnsmasqKeeper(connection, runtime / "networks")) as keeper:
            keeper.serve()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Another host of the LAN, with a kernel's whole network, on a cable to a port of the bridge.

::

    lab's namespace                          the neighbour
    br0 ---- port0  ======================  lan0  192.168.77.1/24
                     with a VLAN: tagged     lan0.42, and nothing on lan0 itself

Where a test wants to see and send frames as they are, it takes ``lan.lan_host`` instead.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from lab.elsewhere import Elsewhere

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Neighbour"]


class Neighbour(Elsewhere):
    """The neighbour, as a context manager.

    :param port: the bridge's end of the cable.
    :param address: its own, with the prefix's length.
    :param vlan: the one that it is in; the bridge's port carries it with its tag. 0: no tags.
    """

    def __init__(self, bridge: str, port: str, address: str, vlan: int = 0) -> None:
        super().__init__()
        self.bridge, self.port, self.interface, self.vlan = bridge, port, address, vlan
        self._dnsmasq: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return self.interface.partition("/")[0]

    def connect(self) -> None:
        peer = ["peer", "name", "lan0", "netns", str(self.pid)]
        _run("ip", "link", "add", self.port, "type", "veth", *peer)
        # The cable's end is the bridge's, no interface of the host's: it needs no address.
        Path(f"/proc/sys/net/ipv6/conf/{self.port}/disable_ipv6").write_text("1")
        _run("ip", "link", "set", self.port, "master", self.bridge, "up")
        card = "lan0"
        self.run(["ip", "link", "set", card, "up"])
        if self.vlan:
            _run("bridge", "vlan", "add", "dev", self.port, "vid", str(self.vlan))
            card = f"lan0.{self.vlan}"
            number = ["type", "vlan", "id", str(self.vlan)]
            self.run(["ip", "link", "add", "link", "lan0", "name", card, *number])
            self.run(["ip", "link", "set", card, "up"])
        self.run(["ip", "address", "add", self.interface, "dev", card])

    def give_addresses(self, first: str, last: str) -> None:
        """Be the LAN's DHCP server; return once it listens.

        :raise RuntimeError: it does not.
        """
        options = ["--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-"]
        options += ["--user=root", "--pid-file=", "--port=0", "--leasefile-ro", "--no-ping"]
        options += ["--quiet-dhcp", "--bind-interfaces", "--interface=lan0"]
        self._dnsmasq = subprocess.Popen(
            self.command(["dnsmasq", *options, f"--dhcp-range={first},{last}"]),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert self._dnsmasq.stderr is not None
        said = ""
        while "DHCP, IP range" not in said:
            line = self._dnsmasq.stderr.readline()
            said += line
            if not line:
                raise RuntimeError(f"the LAN's dnsmasq does not start: {said}")

    def disconnect(self) -> None:
        subprocess.run(["ip", "link", "delete", self.port], stderr=subprocess.DEVNULL, check=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        dnsmasq, self._dnsmasq = self._dnsmasq, None
        if dnsmasq is not None:
            with dnsmasq:
                dnsmasq.kill()
        super().__exit__(kind, error, traceback)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)

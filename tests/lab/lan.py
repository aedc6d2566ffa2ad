# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bridge as an administrator makes one for the LAN, and another host on that network."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab import frames, hearing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["LanHost", "lan_bridge", "lan_host"]

_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
#: struct tpacket_auxdata of linux/if_packet.h.
_AUXDATA = struct.Struct("=IIIHHHH")
_TP_STATUS_VLAN_VALID = 1 << 4


@contextmanager
def lan_bridge(name: str, *options: str, mac: str | None = "02:00:00:00:00:01") -> Iterator[None]:
    """Make it, up and without a port; delete it at the end, where it is still there.

    :param options: of ``ip link add type bridge``.
    :param mac: its own address; None: it takes that of its ports, as the kernel does by itself.
    """
    address = ["address", mac] if mac else []
    subprocess.run(["ip", "link", "add", name, *address, "type", "bridge", *options], check=True)
    try:
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield
    finally:
        if Path("/sys/class/net", name).exists():
            subprocess.run(["ip", "link", "delete", name], check=True)


class LanHost:
    """The card of another host, on a cable to a port of the bridge; it hears everything.

    :param name: of its card.
    """

    def __init__(self, name: str, mac: str) -> None:
        self.mac = mac
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(_ETH_P_ALL)
        )
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.bind((name, _ETH_P_ALL))

    def send(self, *sent: bytes) -> None:
        """Put frames on the cable, in order."""
        for frame in sent:
            self._socket.send(frame)

    def waiting(self) -> list[frames.Packet]:
        """What has arrived, with the tags that it had on the cable."""
        found = []
        while select.select([self._socket], [], [], 0)[0]:
            data, control, _, sender = self._socket.recvmsg(70000, 256)
            if sender[2] == socket.PACKET_OUTGOING:
                continue
            for level, kind, raw in control:
                if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
                    status, *_, tag, ethertype = _AUXDATA.unpack(raw[: _AUXDATA.size])
                    if status & _TP_STATUS_VLAN_VALID:
                        data = data[:12] + struct.pack("!HH", ethertype, tag) + data[12:]
            found.append(frames.parse(data))
        return found

    def until(
        self, wanted: Callable[[frames.Packet], bool], *, timeout: float = 5
    ) -> list[frames.Packet]:
        """Everything up to and with the first packet that is *wanted*.

        :raise TimeoutError: it did not come; the text has what did.
        """
        return hearing.until(wanted, self.waiting, [self._socket], timeout)

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


@contextmanager
def lan_host(
    bridge: str, *, port: str = "lanp0", mac: str = "02:00:00:00:00:99", mtu: int = 1500
) -> Iterator[LanHost]:
    """Another host on the LAN of *bridge*.

    :param port: the bridge's end of the cable; the host's is called so with an "h" in front.
    """
    card = f"h{port}"
    peer = ["peer", "name", card, "address", mac, "mtu", str(mtu)]
    _ip("link", "add", port, "mtu", str(mtu), "type", "veth", *peer)
    try:
        for name in (port, card):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        _ip("link", "set", port, "master", bridge)
        for name in (port, card):
            _ip("link", "set", name, "up")
        host = LanHost(card, mac)
        try:
            yield host
        finally:
            host.close()
    finally:
        _ip("link", "delete", port)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)

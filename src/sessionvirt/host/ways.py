# SPDX-License-Identifier: LGPL-2.1-or-later
"""By which interfaces this host is reached from elsewhere, and a guest's packets leave it.

The kernel is asked for its own decision (RTM_GETROUTE, as ``ip route get``), with whatever policy
rules there are; no packet is sent. Of a default route with several next hops the first is known.

Source: linux/rtnetlink.h, linux/if_addr.h; for the columns of /proc see ``routes.py``.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Final

from .routes import default_rows, rows
from .rtnetlink import DUMP, FAMILIES, ask, attribute, attributes, messages

__all__ = ["Uplink", "interface_of", "leaves_by", "uplinks"]

_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_MARK = 1, 2, 3, 4, 16
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
#: struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
_ROUTE = struct.Struct("=BBBBBBBBI")
#: struct ifaddrmsg: family, prefixlen, flags, scope, index.
_ADDRESS = struct.Struct("=BBBBI")
_NUMBER = struct.Struct("=I")
_RTF_REJECT: Final = 0x200
#: Somebody far away, whom no network of one's own has. Nothing is sent there.
_STRANGERS: Final = {4: "1.1.1.1", 6: "2606:4700:4700::1111"}


@dataclass(frozen=True)
class Uplink:
    """An interface with a default route.

    :param gateway: empty: whoever is at the other end.
    """

    interface: str
    version: int
    gateway: str


def uplinks(version: int, *, proc: str = "/proc/net") -> list[Uplink]:
    """Every one of IPv4 or 6, each once."""
    found = _uplinks4(proc) if version == 4 else _uplinks6(proc)
    return list({one.interface: one for one in reversed(found)}.values())[::-1]


def _uplinks4(proc: str) -> list[Uplink]:
    found = []
    for row in default_rows(f"{proc}/route"):
        if row[0] != "*":
            # As the number that it is in memory here.
            gateway = socket.inet_ntoa(_NUMBER.pack(int(row[2], 16)))
            found.append(Uplink(row[0], 4, "" if gateway == "0.0.0.0" else gateway))  # noqa: S104
    return found


def _uplinks6(proc: str) -> list[Uplink]:
    found = []
    for row in rows(f"{proc}/ipv6_route", 10):
        if row[0] == "0" * 32 and row[1] == "00" and not int(row[8], 16) & _RTF_REJECT:
            gateway = ipaddress.IPv6Address(int(row[4], 16))
            found.append(Uplink(row[9], 6, "" if gateway.is_unspecified else str(gateway)))
    return found


def leaves_by(address: str, bridge: str, mark: int = 0) -> str:
    """The interface by which a packet of a guest's to somebody far away leaves.

    :param address: the guest's own.
    :param mark: that the packet has.
    :return: empty: by none, or the kernel does not tell.
    """
    try:
        incoming = socket.if_nametoindex(bridge)
    except OSError:
        return ""
    version = 6 if ":" in address else 4
    family, length = FAMILIES[version], {4: 32, 6: 128}[version]
    request = _ROUTE.pack(family, length, length, 0, 0, 0, 0, 0, 0)
    for kind, value in (
        (_RTA_DST, socket.inet_pton(family, _STRANGERS[version])),
        (_RTA_SRC, socket.inet_pton(family, address)),
        (_RTA_IIF, _NUMBER.pack(incoming)),
        (_RTA_MARK, _NUMBER.pack(mark)),
    ):
        request += attribute(kind, value)
    for data in ask(_RTM_GETROUTE, request):
        for kind, body in messages(data):
            told = dict(attributes(body[_ROUTE.size :])) if kind == _RTM_NEWROUTE else {}
            if _RTA_OIF in told:
                return _name(*_NUMBER.unpack(told[_RTA_OIF]))
    return ""


def interface_of(address: str) -> str:
    """The interface that has an address of this host's; empty: none has."""
    wanted = ipaddress.ip_address(address)
    request = _ADDRESS.pack(FAMILIES[wanted.version], 0, 0, 0, 0)
    for data in ask(_RTM_GETADDR, request, flags=DUMP):
        for kind, body in messages(data):
            if kind != _RTM_NEWADDR or len(body) < _ADDRESS.size:
                continue
            told = dict(attributes(body[_ADDRESS.size :]))
            # With a peer IFA_ADDRESS is that one's.
            if told.get(_IFA_LOCAL, told.get(_IFA_ADDRESS)) == wanted.packed:
                return _name(_ADDRESS.unpack_from(body)[4])
    return ""


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""  # it has just gone

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every route of the host, read from the kernel (rtnetlink(7), RTM_GETROUTE).

By hand, for a host may have thousands (a VPN, a routing daemon), everybody may ask for the list of
networks, and the answer looks at them all: pyroute2 takes 0.2 ms for each, and this 3 µs. Only what
is asked for is read: the destination and the interface. (Measured: 500 routes, 88 and 1.7 ms.)

A socket for each dump: what is left of one that failed is nobody's. Worker thread.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["read_routes"]

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
# linux/netlink.h, linux/rtnetlink.h
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300
_NLM_F_DUMP_INTR = 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTA_DST, _RTA_OIF = 1, 4
#: RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT. IPv6 has one of these for everything, by lo.
_TO_NOWHERE = frozenset({6, 7, 8})
#: struct nlmsghdr: length, type, flags, sequence, port.
_HEADER = struct.Struct("=IHHII")
#: struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=i")
#: What the kernel puts into one read at most (NLMSG_GOODSIZE is a page; dumps have 32 KiB).
_READ_BYTES = 1 << 16
#: The kernel answers at once, or something is very wrong.
_SECONDS = 5.0
#: A dump that routes changed under is read again so often.
_TRIES = 3

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def read_routes(version: int) -> list[tuple[Network, int]]:
    """Prefix and ifindex of every route of IPv4 or 6, whatever table it is in.

    Default routes are left out, and routes to nowhere, and those with several next hops.

    :raise OSError: the kernel refuses.
    """
    found: list[tuple[Network, int]] = []
    for _ in range(_TRIES):
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        ) as kernel:
            kernel.settimeout(_SECONDS)
            kernel.bind((0, 0))
            found, consistent = _dump(kernel, version)
        if consistent:
            break
    return found


def _dump(kernel: socket.socket, version: int) -> tuple[list[tuple[Network, int]], bool]:
    body = _ROUTE.pack(_FAMILIES[version], 0, 0, 0, 0, 0, 0, 0, 0)
    size = _HEADER.size + len(body)
    kernel.send(_HEADER.pack(size, _RTM_GETROUTE, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body)
    found: list[tuple[Network, int]] = []
    consistent = True
    while True:
        data, sender = kernel.recvfrom(_READ_BYTES)
        if sender[0] != 0:
            continue  # not the kernel's
        for kind, flags, message in _messages(data):
            consistent = consistent and not flags & _NLM_F_DUMP_INTR
            if kind == _NLMSG_DONE:
                return found, consistent
            if kind == _NLMSG_ERROR:
                code = -_NUMBER.unpack_from(message)[0]
                raise OSError(code, os.strerror(code))
            if kind == _RTM_NEWROUTE and (route := _route(message, version)) is not None:
                found.append(route)


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _route(message: bytes, version: int) -> tuple[Network, int] | None:
    family, length, _, _, _, _, _, type_, _ = _ROUTE.unpack_from(message)
    if family != _FAMILIES[version] or type_ in _TO_NOWHERE:
        return None
    target, interface = b"", 0
    offset = _ROUTE.size
    while offset + _ATTRIBUTE.size <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, offset)
        if size < _ATTRIBUTE.size:
            break
        if kind == _RTA_DST:
            target = message[offset + _ATTRIBUTE.size : offset + size]
        elif kind == _RTA_OIF:
            interface = _NUMBER.unpack_from(message, offset + _ATTRIBUTE.size)[0]
        offset += (size + 3) & ~3
    if not target or not interface:
        return None
    make = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    return make((target, length)), interface

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hears from the kernel that an interface, its queueing, a default route or forwarding changed.

Only the fixed header of each message is read here, on the loop; what has become of an interface is
then asked for by index, on the worker. Where messages were lost, everything has to be looked at.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from .listener import KernelListener

# linux/rtnetlink.h
_RTMGRP_LINK, _RTMGRP_TC = 0x1, 0x8
_RTMGRP_IPV4_ROUTE, _RTMGRP_IPV6_ROUTE = 0x40, 0x400
_RTNLGRP_IPV4_NETCONF, _RTNLGRP_IPV6_NETCONF = 24, 25
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTM_DELQDISC, _RTM_DELTCLASS = 37, 41
_RTM_NEWNETCONF = 80
#: struct nlmsghdr: length, type, flags, sequence, port.
_HEADER = struct.Struct("=IHHII")
#: struct ifinfomsg: family, pad, type, index, flags, change. struct tcmsg has its index there, too.
_IFINFO = struct.Struct("=BxHiII")
_DST_LEN = 1  # offset of rtm_dst_len in struct rtmsg
#: struct netconfmsg (linux/netconf.h), then its first attribute: NETCONFA_IFINDEX, which is
#: NETCONFA_IFINDEX_ALL for the whole host; every new interface has such a message of its own.
_NETCONF = struct.Struct("=B3x")
_OF_ALL = struct.pack("=HHi", 8, 1, -1)

_OF_AN_INTERFACE = (_RTM_NEWLINK, _RTM_DELLINK, _RTM_DELQDISC, _RTM_DELTCLASS)


@dataclass(frozen=True, slots=True)
class Changes:
    """What was heard.

    :param everything: messages were lost.
    """

    ifindexes: frozenset[int]
    routes: bool
    everything: bool


class LinkWatch(KernelListener):
    """The socket."""

    def __init__(self) -> None:
        routes = _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_ROUTE
        super().__init__(socket.NETLINK_ROUTE, _RTMGRP_LINK | _RTMGRP_TC | routes)
        for group in (_RTNLGRP_IPV4_NETCONF, _RTNLGRP_IPV6_NETCONF):
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def changes(self) -> Changes:
        """Everything heard since the last call."""
        ifindexes: set[int] = set()
        packets, lost = self.heard()
        routes = lost
        for kind, body in (message for data in packets for message in _messages(data)):
            if kind in _OF_AN_INTERFACE and len(body) >= _IFINFO.size:
                ifindexes.add(_IFINFO.unpack_from(body)[2])
            elif kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
                routes = routes or (len(body) > _DST_LEN and body[_DST_LEN] == 0)
            elif kind == _RTM_NEWNETCONF and body[_NETCONF.size :].startswith(_OF_ALL):
                routes = True
        return Changes(frozenset(ifindexes), routes, everything=lost)


def _messages(data: bytes) -> list[tuple[int, bytes]]:
    found, offset = [], 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            break
        found.append((kind, data[offset + _HEADER.size : offset + length]))
        offset += (length + 3) & ~3
    return found

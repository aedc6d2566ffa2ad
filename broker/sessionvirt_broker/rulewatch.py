# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hears from the kernel that somebody changed a table of ours.

nf_tables tells of every change who asked for it, by the port of his socket (nlmsg_pid). What our
own libnftables asked for (``port``) is not told on; what has port 0 the kernel did by itself, as
when a device went that a chain hooked.

Others change much, and often: Docker a set of ten thousand elements at once. So what does not have
the beginning of our tables' names in its bytes is dropped unparsed, and of the rest only the
headers and the first attribute are read, which is the table's name in every message but NEWGEN
(nf_tables_fill_*_info() in nf_tables_api.c).
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from dataclasses import dataclass
from typing import NamedTuple

from .listener import KernelListener

__all__ = ["RuleChanges", "RuleWatch", "Touch", "port_of_libnftables", "touches"]

_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_SO_RCVBUFFORCE = 33
#: A change of ours with a thousand guests is 5 MB of messages; less is made up for by a look.
_RECEIVE_BYTES = 8 << 20
_NFNL_SUBSYS_NFTABLES, _NFT_MSG_NEWGEN = 10, 15
_PREFIX = b"sessionvirt"
#: struct nlmsghdr, then struct nfgenmsg, then a struct nlattr.
_HEADER = struct.Struct("=IHHII")
_GENMSG = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
#: NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE and so on.
_NFTA_TABLE = 1
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}


class Touch(NamedTuple):
    """Somebody changed something of a table."""

    port: int
    family: str
    table: str


@dataclass(frozen=True, slots=True)
class RuleChanges:
    """What was heard.

    :param everything: messages were lost.
    :param others: of whatever tables: somebody but us has changed some, or may have.
    """

    touched: frozenset[Touch]
    everything: bool
    others: bool = False


class RuleWatch(KernelListener):
    """The socket."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_NETFILTER, 1 << (_NFNLGRP_NFTABLES - 1))
        with contextlib.suppress(OSError):
            # PRIVILEGE: CAP_NET_ADMIN; more than rmem_max, and paid only while it is in use.
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)

    def changes(self, port: int) -> RuleChanges:
        """Everything heard since the last call, but for what *port* did."""
        packets, lost = self.heard()
        found = {one for data in packets for one in touches(data) if one.port not in (0, port)}
        others = lost or any(_port(data) != port for data in packets)
        return RuleChanges(frozenset(found), everything=lost, others=others)


def _port(data: bytes) -> int:
    """Who asked for what a packet tells of, which is of one transaction (nft_commit_notify())."""
    return int(_HEADER.unpack_from(data)[4]) if len(data) >= _HEADER.size else 0


def touches(data: bytes) -> set[Touch]:
    """Which tables with a name like ours the messages of a packet are about."""
    found: set[Touch] = set()
    offset, nearest = 0, data.find(_PREFIX)
    while nearest >= 0 and offset + _HEADER.size <= len(data):
        length, kind, _, _, port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            break
        end = offset + length
        if nearest < end:
            if kind >> 8 == _NFNL_SUBSYS_NFTABLES and kind & 0xFF != _NFT_MSG_NEWGEN:
                found |= _touch(port, data[offset + _HEADER.size : end])
            nearest = data.find(_PREFIX, end)
        offset += (length + 3) & ~3
    return found


def _touch(port: int, body: bytes) -> set[Touch]:
    start = _GENMSG.size + _ATTRIBUTE.size
    if len(body) < start:
        return set()
    length, attribute = _ATTRIBUTE.unpack_from(body, _GENMSG.size)
    name = body[start : _GENMSG.size + length].rstrip(b"\0")
    family = _FAMILIES.get(body[0])
    if attribute != _NFTA_TABLE or family is None or not name.startswith(_PREFIX):
        return set()
    return {Touch(port, family, name.decode("ascii", "replace"))}


def port_of_libnftables() -> tuple[int, int, int]:
    """The port of libnftables' own socket in this process, with descriptor and inode.

    libnftables tells neither. It is our only one of nfnetlink that listens to no group; -1: there
    is none.
    """
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found = os.fstat(int(name))
            if not stat.S_ISSOCK(found.st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.family == socket.AF_NETLINK and one.proto == _NETLINK_NETFILTER:
                    port, groups = one.getsockname()
                    if not groups:
                        return port, int(name), found.st_ino
    return -1, -1, -1

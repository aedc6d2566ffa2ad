# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many nft rules each table of the host has, by the kernel's own dump (NFT_MSG_GETRULE).

To be known before libnftables is asked for a table: it makes JSON of each rule, of ten thousand 120
MB (measured), and the broker has 256. Counted are messages, of which only the headers and the first
attribute are read. A socket for each dump. Worker thread.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter

__all__ = ["MOST_COUNTED", "count_rules"]

#: More are not counted, and then no table's number is known.
MOST_COUNTED = 200_000
_NETLINK_NETFILTER = 12
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NFNL_SUBSYS_NFTABLES, _NFT_MSG_NEWRULE, _NFT_MSG_GETRULE = 10, 6, 7
_NFTA_RULE_TABLE = 1
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
#: struct nlmsghdr, then struct nfgenmsg, then a struct nlattr.
_HEADER = struct.Struct("=IHHII")
_GENMSG = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=i")
_READ_BYTES = 1 << 16
_SECONDS = 5.0


def count_rules() -> Counter[tuple[str, str]] | None:
    """Rules by family and table; None: there are too many to count.

    :raise OSError: the kernel refuses.
    """
    found: Counter[tuple[str, str]] = Counter()
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    ) as kernel:
        kernel.settimeout(_SECONDS)
        kernel.bind((0, 0))
        # Family 0: of all.
        body, kind = _GENMSG.pack(0, 0, 0), _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETRULE
        size = _HEADER.size + len(body)
        kernel.send(_HEADER.pack(size, kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body)
        while True:
            data, sender = kernel.recvfrom(_READ_BYTES)
            if sender[0] != 0:
                continue  # not the kernel's
            if _take(data, found):
                return found
            if found.total() > MOST_COUNTED:
                return None


def _take(data: bytes, found: Counter[tuple[str, str]]) -> bool:
    """Count what is in one read; whether it is the last."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            break
        body = offset + _HEADER.size
        if kind == _NLMSG_DONE:
            return True
        if kind == _NLMSG_ERROR:
            code = -_NUMBER.unpack_from(data, body)[0]
            raise OSError(code, os.strerror(code))
        if kind == _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_NEWRULE:
            size, attribute = _ATTRIBUTE.unpack_from(data, body + _GENMSG.size)
            if attribute == _NFTA_RULE_TABLE:
                start = body + _GENMSG.size
                name = data[start + _ATTRIBUTE.size : start + size].rstrip(b"\0")
                found[_FAMILIES.get(data[body], ""), name.decode("utf-8", "replace")] += 1
        offset += (length + 3) & ~3
    return False

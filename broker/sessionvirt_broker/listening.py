# SPDX-License-Identifier: LGPL-2.1-or-later
"""On which ports the host itself listens: /proc/net/{tcp,tcp6,udp,udp6}.

A socket on :: counts for IPv4, too: whether it is for IPv6 only is not told there. Of UDP a socket
that is connected is somebody's question, and its answers are known by conntrack. What begins to
listen later is not kept from it; from outside, what is published comes first.

The kernel tells TCP's listeners before all others (tcp_get_idx() in net/ipv4/tcp_ipv4.c), and no
more is read: whoever connects, from outside, too, decides how many others there are, and the worker
is everybody's (18,000 connections that had ended: 0.3 seconds for each look, measured).
"""

from __future__ import annotations

import ipaddress
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from pathlib import Path

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

__all__ = ["listener"]

#: TCP_LISTEN, and TCP_CLOSE, which UDP's have that are not connected (net/tcp_states.h).
_STATES: Final = {"tcp": "0A", "udp": "07"}


def listener(
    proc: Path,
    protocol: str,
    address: Address | None,
    versions: Container[int],
    ports: Container[int],
) -> tuple[Address, int] | None:
    """A socket of the host's that has one of these ports already, by its address and port.

    :param proc: /proc/net.
    :param address: of the host; None: every one of these IP versions.
    """
    for own, port in _sockets(proc, protocol, ports):
        both = own.is_unspecified and own.version == 6
        if both or (own.version in versions and (address is None or own.is_unspecified)):
            return own, port
        if own == address:
            return own, port
    return None


def _sockets(proc: Path, protocol: str, ports: Container[int]) -> Iterator[tuple[Address, int]]:
    for name in (protocol, f"{protocol}6"):
        try:
            with (proc / name).open(encoding="ascii") as lines:
                next(lines, None)
                for line in lines:
                    words = line.split(maxsplit=4)
                    if len(words) == 5 and words[3] == _STATES[protocol]:
                        where, _, port = words[1].partition(":")
                        if int(port, 16) in ports:
                            yield _address(where), int(port, 16)
                    elif protocol == "tcp" and words[3:4] != ["07"]:
                        break  # those that listen come first; one may be closing meanwhile
        except FileNotFoundError:
            continue  # a host without IPv6


def _address(text: str) -> Address:
    """Each word of 32 bits is as the host has it in memory (get_tcp4_sock(), get_tcp6_sock())."""
    words = (text[at : at + 8] for at in range(0, len(text), 8))
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address

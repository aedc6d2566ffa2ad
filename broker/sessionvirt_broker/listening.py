# SPDX-License-Identifier: LGPL-2.1-or-later
"""On which ports the host itself listens: /proc/net/{tcp,tcp6,udp,udp6}.

A socket on :: counts for IPv4, too: whether it is for IPv6 only is not told there. Of UDP a socket
that is connected is somebody's question, and its answers are known by conntrack. What begins to
listen later is not kept from it; from outside, what is published comes first.
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
    proc: Path, protocol: str, address: Address | None, version: int, ports: Container[int]
) -> tuple[Address, int] | None:
    """A socket of the host's that has one of these ports already, by its address and port.

    :param proc: /proc/net.
    :param address: of the host; None: every one of this IP version.
    """
    for own, port in _sockets(proc, protocol):
        if port not in ports:
            continue
        both = own.is_unspecified and own.version == 6
        if both or (own.version == version and (address is None or own.is_unspecified)):
            return own, port
        if own == address:
            return own, port
    return None


def _sockets(proc: Path, protocol: str) -> Iterator[tuple[Address, int]]:
    for name in (protocol, f"{protocol}6"):
        try:
            lines = (proc / name).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue  # a host without IPv6
        for line in lines:
            words = line.split()
            if len(words) > 3 and words[3] == _STATES[protocol]:
                where, _, port = words[1].partition(":")
                yield _address(where), int(port, 16)


def _address(text: str) -> Address:
    """Each word of 32 bits is as the host has it in memory (get_tcp4_sock(), get_tcp6_sock())."""
    words = (text[at : at + 8] for at in range(0, len(text), 8))
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address

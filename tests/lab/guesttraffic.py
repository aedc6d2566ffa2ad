# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest says to the services of its network: DHCP for both versions, and any question."""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING

from lab import frames

if TYPE_CHECKING:
    from lab.frames import Packet
    from lab.tap import Tap

__all__ = ["GATEWAY6", "dhcp4", "dhcp6", "exchange", "packed"]

GATEWAY6 = "fd53:7669:7274:1::1"
DHCP_SERVERS = "ff02::1:2"


def exchange(tap: Tap, question: bytes, ports: tuple[int, int], mark: bytes) -> Packet:
    """Ask until a datagram with *mark* in it comes back: dnsmasq may still be starting."""
    for _ in range(20):
        tap.send(question)
        try:
            return tap.until(lambda p: p.ports == ports and mark in p.payload, timeout=0.5)[-1]
        except TimeoutError:
            continue
    raise TimeoutError("dnsmasq never answered")


def dhcp4(tap: Tap, kind: int, **options: bytes) -> tuple[str, dict[int, bytes]]:
    numbered = {int(key.removeprefix("option")): value for key, value in options.items()}
    message = frames.dhcp4(kind, tap.mac, {55: b"\x01\x03\x06\x1a\x33", **numbered})
    segment = frames.udp("0.0.0.0", "255.255.255.255", (68, 67), message)
    packet = frames.ipv4("0.0.0.0", "255.255.255.255", frames.UDP, segment)
    question = frames.ethernet(frames.BROADCAST, tap.mac, frames.IPV4, packet)
    return frames.read_dhcp4(exchange(tap, question, (67, 68), frames.mac_bytes(tap.mac)).payload)


def dhcp6(tap: Tap, kind: int, *options: tuple[int, bytes]) -> tuple[int, dict[int, bytes]]:
    association = (3, struct.pack("!III", 1, 0, 0))
    message = frames.dhcp6(kind, [(1, frames.duid(tap.mac)), association, (8, bytes(2)), *options])
    segment = frames.udp(tap.link_local, DHCP_SERVERS, (546, 547), message)
    mac = frames.multicast_mac(DHCP_SERVERS)
    question = tap.to6(mac, tap.link_local, DHCP_SERVERS, frames.UDP, segment)
    return frames.read_dhcp6(exchange(tap, question, (547, 546), frames.duid(tap.mac)).payload)


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest may forge, each beside its honest twin: frames from one TAP to another of its user.

The addresses are those of the built-in network ``default``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.tap import Tap

__all__ = ["FORGERIES", "LONE_FRAGMENTS", "STRANGER", "Forgery"]

#: A MAC address that nobody was given.
STRANGER = "52:54:00:00:40:99"


def to_peer(a: Tap, b: Tap, source: str, next_header: int, payload: bytes) -> bytes:
    return a.to6(b.mac, source, b.link_local, next_header, payload)


def udp6(a: Tap, b: Tap, source: str, ports: tuple[int, int]) -> bytes:
    segment = frames.udp(source, b.link_local, ports, b"x" * 8)
    return to_peer(a, b, source, frames.UDP, segment)


def na(a: Tap, b: Tap, claimed: str) -> bytes:
    return frames.neighbour_advertisement(a.link_local, b.link_local, claimed, a.mac)


def ra(a: Tap, b: Tap) -> bytes:
    return frames.router_advertisement(a.link_local, a.mac, target=b.link_local)


def rs(a: Tap, b: Tap) -> bytes:
    return frames.router_solicitation(a.link_local, b.link_local, a.mac)


def behind(units: int, message: bytes) -> bytes:
    """An ICMPv6 message behind destination options."""
    return frames.extension(frames.ICMP6, units) + message


def in_one_fragment(first: int, payload: bytes) -> bytes:
    """The whole payload in an "atomic" fragment (RFC 6946)."""
    return frames.fragment6(first, 0, more=False) + payload


def cut_datagram(a: Tap, b: Tap, length: int) -> bytes:
    """A first fragment that has so much of a datagram."""
    datagram = frames.udp(a.link_local, b.link_local, (4000, 4001), bytes(64))
    return frames.fragment6(frames.UDP, 0, more=True) + datagram[:length]


@dataclass(frozen=True)
class Forgery:
    """One forged frame and the honest one that differs by just the forgery."""

    reason: str
    forged: Callable[[Tap, Tap], bytes]
    honest: Callable[[Tap, Tap], bytes]


def datagram(a: Tap, b: Tap) -> bytes:
    return a.udp4(b.mac, b.ipv4, (4000, 4000), b"honest")


def from_address(a: Tap, b: Tap, source: str) -> bytes:
    packet = frames.ipv4(source, b.ipv4, frames.UDP, frames.udp(source, b.ipv4, (4000, 4000)))
    return frames.ethernet(b.mac, a.mac, frames.IPV4, packet)


def dhcp_offer(a: Tap, b: Tap, ports: tuple[int, int]) -> bytes:
    offer = frames.dhcp4(frames.OFFER, b.mac, {54: b"\x0a\0\0\x01"}, reply=b.ipv4)
    return a.udp4(b.mac, b.ipv4, ports, offer)


def to_server6(a: Tap, b: Tap, kind: int) -> bytes:
    return frames.udp(a.link_local, b.link_local, (546, 547), bytes([kind]) + bytes(33))


def asked(client: Tap) -> bytes:
    """What a DHCP client says who looks for a server."""
    return frames.dhcp4(frames.DISCOVER, client.mac)


def option_of_4_bytes(a: Tap, b: Tap, ports: tuple[int, int]) -> bytes:
    """A datagram in a packet with an IP option (router alert, RFC 2113)."""
    segment = frames.udp(a.ipv4, b.ipv4, ports)
    return a.to4(b.mac, b.ipv4, frames.UDP, segment, options=b"\x94\x04\0\0")


def about_group4(a: Tap, b: Tap, kind: int, offset: int = 0) -> bytes:
    return a.to4(b.mac, "224.0.0.1", frames.IGMP, frames.igmp(kind), offset=offset)


def about_group6(a: Tap, b: Tap, kind: int, *, hidden: bool = False) -> bytes:
    """MLD as hosts send it, or behind an AH, where a bridge finds it."""
    payload = frames.mld(a.link_local, b.link_local, kind, "::" if kind == 130 else "ff02::fb")
    if not hidden:
        return to_peer(a, b, a.link_local, 0, frames.router_alert(frames.ICMP6) + payload)
    payload = frames.authentication(frames.ICMP6) + payload
    return to_peer(a, b, a.link_local, 0, frames.router_alert(frames.AUTHENTICATION) + payload)


def with_length(frame: bytes, at: int, length: int) -> bytes:
    """A packet that says it is *length* bytes long, with IPv4's checksum right."""
    frame = frame[:at] + length.to_bytes(2, "big") + frame[at + 2 :]
    if at != 16:
        return frame
    head = frame[14:24] + b"\0\0" + frame[26:34]
    return frame[:24] + frames.checksum(head).to_bytes(2, "big") + frame[26:]


def first_fragment(a: Tap, b: Tap, ports: tuple[int, int]) -> bytes:
    segment = frames.udp(a.ipv4, b.ipv4, ports, b"x" * 64)[:8]
    return a.to4(b.mac, b.ipv4, frames.UDP, segment, identification=6, more=True)


FORGERIES = {
    "mac": Forgery(
        "mac",
        lambda a, b: datagram(a, b).replace(frames.mac_bytes(a.mac), frames.mac_bytes(STRANGER), 1),
        datagram,
    ),
    "mac-of-the-peer": Forgery(
        "mac",
        lambda a, b: datagram(a, b).replace(frames.mac_bytes(a.mac), frames.mac_bytes(b.mac), 1),
        datagram,
    ),
    "arp-hardware": Forgery(
        "arp",
        lambda a, b: frames.arp(2, STRANGER, a.ipv4, b.ipv4, source=a.mac, target=b.mac),
        lambda a, b: frames.arp(2, a.mac, a.ipv4, b.ipv4, source=a.mac, target=b.mac),
    ),
    "arp-address": Forgery(
        "arp",
        lambda a, b: frames.arp(2, a.mac, b.ipv4, b.ipv4, target=b.mac),
        lambda a, b: frames.arp(2, a.mac, a.ipv4, b.ipv4, target=b.mac),
    ),
    "arp-reply-for-nobody": Forgery(
        "arp",
        lambda a, b: frames.arp(2, a.mac, "0.0.0.0", b.ipv4, target=b.mac),
        # A probe (RFC 5227): the only one that may be without an address.
        lambda a, b: frames.arp(1, a.mac, "0.0.0.0", b.ipv4, target=b.mac),
    ),
    "arp-other-hardware-type": Forgery(
        "arp",
        lambda a, b: frames.arp(1, a.mac, a.ipv4, b.ipv4).replace(b"\0\x01\x08\0", b"\0\x06\x08\0"),
        lambda a, b: frames.arp(1, a.mac, a.ipv4, b.ipv4),
    ),
    "arp-cut-short": Forgery(
        "arp",
        lambda a, b: frames.arp(2, a.mac, b.ipv4, b.ipv4, target=b.mac)[:30],
        lambda a, b: frames.arp(2, a.mac, a.ipv4, b.ipv4, target=b.mac),
    ),
    "ipv4": Forgery("ipv4", lambda a, b: from_address(a, b, b.ipv4), datagram),
    "ipv4-gateway": Forgery("ipv4", lambda a, b: from_address(a, b, "10.213.80.1"), datagram),
    "ipv4-none": Forgery(
        "ipv4",
        lambda a, b: from_address(a, b, "0.0.0.0"),
        # 0.0.0.0 is for a DHCP client only.
        lambda a, b: frames.ethernet(
            frames.BROADCAST,
            a.mac,
            frames.IPV4,
            frames.ipv4(
                "0.0.0.0",
                "255.255.255.255",
                frames.UDP,
                frames.udp("0.0.0.0", "255.255.255.255", (68, 67), asked(a)),
            ),
        ),
    ),
    "dhcp-client-with-another's-address": Forgery(
        "dhcp",
        lambda a, b: a.udp4(b.mac, b.ipv4, (68, 67), asked(b)),
        lambda a, b: a.udp4(b.mac, b.ipv4, (68, 67), asked(a)),
    ),
    "dhcp-client-cut-short": Forgery(
        "dhcp",
        # By fragments: what is in the next would not be looked at.
        lambda a, b: a.udp4(b.mac, b.ipv4, (68, 67), asked(a)[:32]),
        lambda a, b: a.udp4(b.mac, b.ipv4, (68, 67), asked(a)[:34]),
    ),
    "ipv4-later-fragment": Forgery(
        "ipv4",
        lambda a, b: frames.ethernet(
            b.mac,
            a.mac,
            frames.IPV4,
            frames.ipv4(b.ipv4, b.ipv4, frames.UDP, b"x" * 16, identification=5, offset=64),
        ),
        lambda a, b: a.to4(b.mac, b.ipv4, frames.UDP, b"x" * 16, identification=5, offset=64),
    ),
    "ipv4-cut-short": Forgery("ipv4", lambda a, b: datagram(a, b)[:26], datagram),
    "dhcp-server": Forgery(
        "dhcp",
        lambda a, b: dhcp_offer(a, b, (67, 68)),
        lambda a, b: dhcp_offer(a, b, (4000, 4001)),
    ),
    "dhcp-server-from-another-port": Forgery(
        "dhcp",
        # A client looks at the port that it listens on, not at the sender's.
        lambda a, b: dhcp_offer(a, b, (4000, 68)),
        lambda a, b: dhcp_offer(a, b, (4000, 4001)),
    ),
    "dhcp-server-with-options": Forgery(
        "dhcp",
        lambda a, b: option_of_4_bytes(a, b, (67, 68)),
        lambda a, b: option_of_4_bytes(a, b, (4000, 4001)),
    ),
    "dhcp-server-first-fragment": Forgery(
        "dhcp",
        lambda a, b: first_fragment(a, b, (67, 68)),
        lambda a, b: first_fragment(a, b, (4000, 4001)),
    ),
    "dhcp6-server": Forgery(
        "dhcp",
        lambda a, b: udp6(a, b, a.link_local, (547, 546)),
        lambda a, b: udp6(a, b, a.link_local, (4000, 4001)),
    ),
    "dhcp6-server-from-another-port": Forgery(
        "dhcp",
        lambda a, b: udp6(a, b, a.link_local, (4000, 546)),
        lambda a, b: udp6(a, b, a.link_local, (4000, 4001)),
    ),
    "dhcp6-relay": Forgery(
        "dhcp",
        lambda a, b: to_peer(a, b, a.link_local, frames.UDP, to_server6(a, b, 12)),
        lambda a, b: to_peer(a, b, a.link_local, frames.UDP, to_server6(a, b, frames.SOLICIT)),
    ),
    "dhcp6-server-behind-options": Forgery(
        "dhcp",
        lambda a, b: to_peer(
            a,
            b,
            a.link_local,
            frames.DESTINATION_OPTIONS,
            frames.extension(frames.UDP) + frames.udp(a.link_local, b.link_local, (547, 546)),
        ),
        lambda a, b: to_peer(
            a,
            b,
            a.link_local,
            frames.DESTINATION_OPTIONS,
            frames.extension(frames.UDP) + frames.udp(a.link_local, b.link_local, (4000, 4001)),
        ),
    ),
    "ipv6-link-local": Forgery(
        "ipv6",
        lambda a, b: udp6(a, b, "fe80::5054:ff:fe00:4099", (4000, 4000)),
        lambda a, b: udp6(a, b, a.link_local, (4000, 4000)),
    ),
    "ipv6-of-the-peer": Forgery(
        "ipv6",
        lambda a, b: udp6(a, b, b.ipv6, (4000, 4000)),
        lambda a, b: udp6(a, b, a.ipv6, (4000, 4000)),
    ),
    "ipv6-none": Forgery(
        "ipv6",
        lambda a, b: udp6(a, b, "::", (4000, 4000)),
        # Duplicate address detection has no address yet.
        lambda a, b: a.to6(
            frames.multicast_mac(frames.solicited_node(a.ipv6)),
            "::",
            frames.solicited_node(a.ipv6),
            frames.ICMP6,
            frames.neighbour_solicitation("::", frames.solicited_node(a.ipv6), a.ipv6, a.mac),
        ),
    ),
    "ipv6-behind-options": Forgery(
        "ipv6",
        lambda a, b: to_peer(
            a,
            b,
            b.ipv6,
            frames.DESTINATION_OPTIONS,
            frames.extension(frames.UDP) + frames.udp(b.ipv6, b.link_local, (4000, 4001)),
        ),
        lambda a, b: to_peer(
            a,
            b,
            a.ipv6,
            frames.DESTINATION_OPTIONS,
            frames.extension(frames.UDP) + frames.udp(a.ipv6, b.link_local, (4000, 4001)),
        ),
    ),
    "ipv6-later-fragment": Forgery(
        "ipv6",
        lambda a, b: to_peer(
            a, b, b.ipv6, frames.FRAGMENT, frames.fragment6(frames.UDP, 64, more=False) + b"x" * 16
        ),
        lambda a, b: to_peer(
            a, b, a.ipv6, frames.FRAGMENT, frames.fragment6(frames.UDP, 64, more=False) + b"x" * 16
        ),
    ),
    "ipv6-cut-short": Forgery(
        "ipv6",
        lambda a, b: udp6(a, b, a.ipv6, (4000, 4000))[:30],
        lambda a, b: udp6(a, b, a.ipv6, (4000, 4000)),
    ),
    "neighbour": Forgery(
        "neighbour",
        lambda a, b: to_peer(a, b, a.link_local, frames.ICMP6, na(a, b, b.ipv6)),
        lambda a, b: to_peer(a, b, a.link_local, frames.ICMP6, na(a, b, a.ipv6)),
    ),
    "neighbour-gateway": Forgery(
        "neighbour",
        lambda a, b: to_peer(a, b, a.link_local, frames.ICMP6, na(a, b, "fd53:7669:7274:1::1")),
        lambda a, b: to_peer(a, b, a.link_local, frames.ICMP6, na(a, b, a.link_local)),
    ),
    "neighbour-behind-options": Forgery(
        "neighbour",
        lambda a, b: to_peer(
            a, b, a.link_local, frames.DESTINATION_OPTIONS, behind(1, na(a, b, b.ipv6))
        ),
        lambda a, b: to_peer(
            a, b, a.link_local, frames.DESTINATION_OPTIONS, behind(1, na(a, b, a.ipv6))
        ),
    ),
    "router": Forgery(
        "router",
        lambda a, b: to_peer(a, b, a.link_local, frames.ICMP6, ra(a, b)),
        lambda a, b: to_peer(a, b, a.link_local, frames.ICMP6, rs(a, b)),
    ),
    "router-behind-options": Forgery(
        "router",
        lambda a, b: to_peer(a, b, a.link_local, frames.DESTINATION_OPTIONS, behind(4, ra(a, b))),
        lambda a, b: to_peer(a, b, a.link_local, frames.DESTINATION_OPTIONS, behind(4, rs(a, b))),
    ),
    "router-in-a-fragment": Forgery(
        "router",
        lambda a, b: to_peer(
            a, b, a.link_local, frames.FRAGMENT, in_one_fragment(frames.ICMP6, ra(a, b))
        ),
        lambda a, b: to_peer(
            a, b, a.link_local, frames.FRAGMENT, in_one_fragment(frames.ICMP6, rs(a, b))
        ),
    ),
    "router-split-before-its-header": Forgery(
        # RFC 7113: a first fragment that does not have every header hides what it is.
        "ipv6",
        lambda a, b: to_peer(
            a,
            b,
            a.link_local,
            frames.FRAGMENT,
            frames.fragment6(frames.DESTINATION_OPTIONS, 0, more=True)
            + frames.extension(frames.ICMP6, 4),
        ),
        lambda a, b: to_peer(
            a,
            b,
            a.link_local,
            frames.FRAGMENT,
            frames.fragment6(frames.DESTINATION_OPTIONS, 0, more=True) + behind(4, rs(a, b)),
        ),
    ),
    "first-fragment-without-ports": Forgery(
        "ipv6",
        lambda a, b: to_peer(a, b, a.link_local, frames.FRAGMENT, cut_datagram(a, b, 2)),
        lambda a, b: to_peer(a, b, a.link_local, frames.FRAGMENT, cut_datagram(a, b, 16)),
    ),
    "redirect": Forgery(
        "router",
        lambda a, b: to_peer(
            a,
            b,
            a.link_local,
            frames.ICMP6,
            frames.redirect(
                a.link_local, b.link_local, gateway=a.link_local, destination="2001:db8::1"
            ),
        ),
        lambda a, b: to_peer(
            a, b, a.link_local, frames.ICMP6, frames.echo6(a.link_local, b.link_local, 7)
        ),
    ),
    # A length beyond the packet: nft does not look at its ports and types.
    "dhcp-server-with-a-long-length": Forgery(
        "ipv4",
        lambda a, b: with_length(dhcp_offer(a, b, (67, 68)), 16, 1200),
        lambda a, b: dhcp_offer(a, b, (4000, 4001)),
    ),
    "router-with-a-long-length": Forgery(
        "ipv6",
        lambda a, b: with_length(
            to_peer(a, b, a.link_local, frames.ICMP6, ra(a, b)), 18, len(ra(a, b)) + 1
        ),
        lambda a, b: to_peer(a, b, a.link_local, frames.ICMP6, rs(a, b)),
    ),
    "igmp-query": Forgery(
        "router",
        lambda a, b: about_group4(a, b, 0x11),
        lambda a, b: about_group4(a, b, 0x16),
    ),
    "igmp-query-in-a-later-fragment": Forgery(
        "router",
        lambda a, b: about_group4(a, b, 0x11, offset=8),
        lambda a, b: a.to4(b.mac, b.ipv4, frames.UDP, frames.igmp(0x11), offset=8),
    ),
    "mld-query": Forgery(
        "router", lambda a, b: about_group6(a, b, 130), lambda a, b: about_group6(a, b, 131)
    ),
    "mld-query-behind-authentication": Forgery(
        "router",
        lambda a, b: about_group6(a, b, 130, hidden=True),
        lambda a, b: to_peer(
            a,
            b,
            a.link_local,
            frames.AUTHENTICATION,
            frames.authentication(frames.ICMP6) + frames.echo6(a.link_local, b.link_local, 8),
        ),
    ),
    "bpdu": Forgery("bpdu", lambda a, b: frames.bpdu(a.mac), datagram),
    "bpdu-address-with-an-honest-packet": Forgery(
        "bpdu",
        lambda a, b: frames.ethernet("01:80:c2:00:00:00", a.mac, frames.IPV4, datagram(a, b)[14:]),
        lambda a, b: frames.ethernet(
            frames.multicast_mac("224.0.0.251"), a.mac, frames.IPV4, datagram(a, b)[14:]
        ),
    ),
    "vlan": Forgery(
        "vlan",
        lambda a, b: datagram(a, b)[:12] + frames.tag(7) + datagram(a, b)[12:],
        datagram,
    ),
    "vlan-priority": Forgery(
        "vlan",
        lambda a, b: datagram(a, b)[:12] + frames.tag(0) + datagram(a, b)[12:],
        datagram,
    ),
    "vlan-double": Forgery(
        "vlan",
        lambda a, b: (
            datagram(a, b)[:12]
            + frames.tag(7, frames.SERVICE_VLAN)
            + frames.tag(8)
            + datagram(a, b)[12:]
        ),
        datagram,
    ),
    "vlan-double-same": Forgery(
        "vlan",
        lambda a, b: datagram(a, b)[:12] + frames.tag(7) + frames.tag(8) + datagram(a, b)[12:],
        datagram,
    ),
    "vlan-service": Forgery(
        "vlan",
        lambda a, b: datagram(a, b)[:12] + frames.tag(7, frames.SERVICE_VLAN) + datagram(a, b)[12:],
        datagram,
    ),
    "ethertype": Forgery(
        "type",
        lambda a, b: frames.ethernet(b.mac, a.mac, 0x88B5, b"local experiment"),
        datagram,
    ),
    "ethertype-pppoe": Forgery(
        "type",
        lambda a, b: frames.ethernet(b.mac, a.mac, 0x8864, datagram(a, b)[14:]),
        datagram,
    ),
    "ethertype-rarp": Forgery(
        "type",
        lambda a, b: frames.ethernet(
            b.mac, a.mac, 0x8035, frames.arp(3, a.mac, a.ipv4, b.ipv4)[14:]
        ),
        datagram,
    ),
    "llc": Forgery(
        "type", lambda a, b: frames.llc(b.mac, a.mac, b"\xaa\xaa\x03\0\0\0\x08\0data"), datagram
    ),
}


#: Connection tracking, which br_netfilter brings, puts fragments together: a lone one goes nowhere.
LONE_FRAGMENTS = {
    "ipv4-later-fragment",
    "dhcp-server-first-fragment",
    "igmp-query-in-a-later-fragment",
    "ipv6-later-fragment",
    "router-in-a-fragment",
    "router-split-before-its-header",
    "first-fragment-without-ports",
}

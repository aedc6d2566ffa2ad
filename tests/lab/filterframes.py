# SPDX-License-Identifier: LGPL-2.1-or-later
"""Frames that a stock filter of libvirt's forbids, or permits, by what it is about.

From a guest with the address ``MAC``, and to it: beside each forbidden one its permitted twin.
"""

from __future__ import annotations

from lab import frames

MAC, OTHER, GATEWAY = "00:00:00:00:08:01", "00:00:00:00:08:77", "00:00:00:00:08:fe"
OWN, FOREIGN, PEER = "192.0.2.7", "192.0.2.8", "192.0.2.1"
OWN6, FOREIGN6, PEER6 = "2001:db8::7", "2001:db8::8", "2001:db8::1"
LINK_LOCAL = frames.link_local(MAC)
RARP = 0x8035


def v4(source: str, target: str, *, mac: str = OTHER, to: str = "", sender: str = MAC) -> bytes:
    segment = frames.udp(source, target, (5000, 6000), b"udp")
    packet = frames.ipv4(source, target, frames.UDP, segment)
    return frames.ethernet(to or mac, sender, frames.IPV4, packet)


def v6(source: str, target: str, *, to: str = OTHER, sender: str = MAC) -> bytes:
    segment = frames.udp(source, target, (5000, 6000), b"udp")
    packet = frames.ipv6(source, target, frames.UDP, segment)
    return frames.ethernet(to, sender, frames.IPV6, packet)


def solicitation(source: str) -> bytes:
    group = frames.solicited_node(PEER6)
    message = frames.neighbour_solicitation(source, group, PEER6, MAC)
    packet = frames.ipv6(source, group, frames.ICMP6, message)
    return frames.ethernet(frames.multicast_mac(group), MAC, frames.IPV6, packet)


def advertisement(claimed: str, source: str) -> bytes:
    message = frames.neighbour_advertisement(source, PEER6, claimed, MAC)
    packet = frames.ipv6(source, PEER6, frames.ICMP6, message)
    return frames.ethernet(OTHER, MAC, frames.IPV6, packet)


def discover() -> bytes:
    segment = frames.udp("0.0.0.0", "255.255.255.255", (68, 67), frames.dhcp4(1, MAC))
    packet = frames.ipv4("0.0.0.0", "255.255.255.255", frames.UDP, segment)
    return frames.ethernet(frames.BROADCAST, MAC, frames.IPV4, packet)


def rarp(to: str, sender: str, mac: str = "") -> bytes:
    """Asks, or pretends to, which address *mac* has; of QEMU everybody learns where a guest is.

    As announce_self_create() of net/announce.c in QEMU has it (RFC 903: 3 asks).
    """
    hardware = frames.mac_bytes(mac or sender)
    body = bytes.fromhex("0001080006040003") + hardware + bytes(4) + hardware + bytes(4)
    return frames.ethernet(to, sender, RARP, body)


def to_client(server: str, sender: str) -> bytes:
    """An answer of a DHCP server's."""
    message = frames.dhcp4(frames.OFFER, MAC, reply=OWN)
    segment = frames.udp(server, OWN, (67, 68), message)
    return frames.ethernet(MAC, sender, frames.IPV4, frames.ipv4(server, OWN, frames.UDP, segment))


def solicit6() -> bytes:
    """A client of DHCPv6 looks for a server."""
    group = "ff02::1:2"
    message = frames.dhcp6(frames.SOLICIT, [(1, frames.duid(MAC))])
    packet = frames.ipv6(
        LINK_LOCAL, group, frames.UDP, frames.udp(LINK_LOCAL, group, (546, 547), message)
    )
    return frames.ethernet(frames.multicast_mac(group), MAC, frames.IPV6, packet)


PLAIN = v4(OWN, PEER)
PLAIN6 = v6(OWN6, PEER6)
ARP, ARP6 = frames.arp(1, MAC, OWN, PEER), solicitation(OWN6)
PROBE = frames.arp(1, MAC, "0.0.0.0", OWN)
SPOOFED = v4(FOREIGN, PEER)
SPOOFED_ARP = frames.arp(1, MAC, FOREIGN, PEER)
FORGED_MAC = v4(OWN, PEER, sender="00:00:00:00:08:66")
FORGED_ARP_MAC = frames.arp(1, "00:00:00:00:08:66", OWN, PEER, source=MAC)
SERVER = frames.ethernet(
    OTHER, MAC, frames.IPV4, frames.ipv4(OWN, PEER, frames.UDP, frames.udp(OWN, PEER, (67, 68)))
)
GROUP, GROUP6 = "224.0.0.251", "ff02::fb"
MULTICAST = v4(OWN, GROUP, to=frames.multicast_mac(GROUP))
MULTICAST6 = v6(LINK_LOCAL, GROUP6, to=frames.multicast_mac(GROUP6))
BROADCAST = v4(OWN, "192.0.2.255", to=frames.BROADCAST)
ANNOUNCED = rarp(frames.BROADCAST, MAC)
#: To the guest.
IN4 = v4(PEER, OWN, to=MAC, sender=OTHER)
IN6 = v6(PEER6, OWN6, to=MAC, sender=OTHER)
IN_ARP = frames.arp(1, OTHER, PEER, OWN)
IN_RARP = rarp(MAC, OTHER)
IN_LLDP = frames.ethernet(MAC, OTHER, 0x88B5, bytes(46))
FROM_GATEWAY = v4(PEER, OWN, to=MAC, sender=GATEWAY)

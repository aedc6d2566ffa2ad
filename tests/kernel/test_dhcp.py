# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real dnsmasq of a managed network gives a guest exactly what was granted, and names."""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING

import pytest

from lab import frames
from lab.client import network_tap
from lab.guesttraffic import GATEWAY6, dhcp4, dhcp6, exchange, packed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client
    from lab.tap import Tap

pytestmark = pytest.mark.kernel

GATEWAY = "10.213.80.1"
DECLINE, NAK, RELAY_FORWARD = 4, 6, 12


@pytest.fixture(scope="module")
def tap(lasting_broker: Broker, alices: Client) -> Iterator[Tap]:
    """alice's guest, which answers who asks for it."""
    with alices.acquire() as lease:
        lease.tap.attentive = True
        yield lease.tap


def address_in(options: dict[int, bytes]) -> str:
    """The address of the only association."""
    inner = frames.dhcp6_options(options[3][12:])
    return str(ipaddress.IPv6Address(inner[5][:16]))


def test_dhcp_gives_exactly_the_granted_address(tap: Tap) -> None:
    offered, options = dhcp4(tap, frames.DISCOVER)
    assert (offered, options[53]) == (tap.ipv4, bytes([frames.OFFER]))
    server = options[54]
    given, options = dhcp4(tap, frames.REQUEST, option50=packed(offered), option54=server)
    assert (given, options[53]) == (tap.ipv4, bytes([frames.ACK]))
    assert options[1] == packed("255.255.240.0")
    assert options[3] == options[6] == server == packed(GATEWAY)
    assert options[26] == struct.pack("!H", tap.facts["mtu"])
    assert options[51] == struct.pack("!I", 3600)


def test_dhcp_refuses_another_address(tap: Tap) -> None:
    dhcp4(tap, frames.DISCOVER)
    _, options = dhcp4(tap, frames.REQUEST, option50=packed("10.213.80.77"))
    assert options[53] == bytes([NAK])


def test_dhcp6_gives_exactly_the_granted_address(tap: Tap) -> None:
    kind, options = dhcp6(tap, frames.SOLICIT)
    assert (kind, address_in(options)) == (frames.ADVERTISE, tap.ipv6)
    kind, options = dhcp6(tap, frames.REQUEST6, (2, options[2]))
    assert (kind, address_in(options)) == (frames.REPLY, tap.ipv6)


def test_a_second_guest_gets_its_own_while_dnsmasq_runs(tap: Tap, bobs: Client) -> None:
    with bobs.acquire() as lease:
        lease.tap.attentive = True
        assert lease.tap.ipv4 != tap.ipv4
        assert dhcp4(lease.tap, frames.DISCOVER)[0] == lease.tap.ipv4
        assert address_in(dhcp6(lease.tap, frames.SOLICIT)[1]) == lease.tap.ipv6
    assert dhcp4(tap, frames.DISCOVER)[0] == tap.ipv4


def test_nobody_speaks_for_another_in_dhcp(tap: Tap, bobs: Client) -> None:
    """A DHCPDECLINE takes an address out of use for ten minutes, whoever's hardware address it is
    that the message has; and any other would tell which address somebody has.
    """
    server = dhcp4(tap, frames.DISCOVER)[1][54]
    with bobs.acquire() as lease:
        for kind in (DECLINE, frames.DISCOVER):
            told = {50: packed(tap.ipv4), 54: server, 61: b"\x01" + frames.mac_bytes(tap.mac)}
            message = frames.dhcp4(kind, tap.mac, told)
            segment = frames.udp("0.0.0.0", "255.255.255.255", (68, 67), message)
            packet = frames.ipv4("0.0.0.0", "255.255.255.255", frames.UDP, segment)
            lease.tap.send(frames.ethernet(frames.BROADCAST, lease.tap.mac, frames.IPV4, packet))
        assert lease.drops() == {"dhcp": 2}
        lease.tap.attentive = True
        assert dhcp4(lease.tap, frames.DISCOVER)[0] == lease.tap.ipv4
    assert dhcp4(tap, frames.DISCOVER)[0] == tap.ipv4


def test_nobody_is_a_relay_of_dhcp6(tap: Tap, bobs: Client) -> None:
    """A relay says whose hardware address a client has (RFC 6939), and is believed."""
    dhcp6(tap, frames.SOLICIT)
    with bobs.acquire() as lease:
        bob = lease.tap
        bob.attentive = True
        dhcp6(bob, frames.SOLICIT)
        association = (3, struct.pack("!III", 7, 0, 0))
        asked = frames.dhcp6(frames.SOLICIT, [(1, frames.duid(bob.mac)), association])
        head = bytes([RELAY_FORWARD, 0]) + packed(GATEWAY6) + packed(bob.link_local)
        for key, value in ((9, asked), (79, b"\0\x01" + frames.mac_bytes(tap.mac))):
            head += struct.pack("!HH", key, len(value)) + value
        target = "ff02::1:2"
        mac = frames.multicast_mac(target)
        forged, honest = (
            frames.udp(bob.link_local, target, (546, 547), message) for message in (head, asked)
        )
        bob.waiting()
        for segment in (forged, honest):
            bob.send(bob.to6(mac, bob.link_local, target, frames.UDP, segment))
        # dnsmasq answers in the order in which it is asked.
        seen = bob.until(lambda p: p.ports == (547, 546) and p.payload[0] == frames.ADVERTISE)
        assert packed(bob.ipv6) in seen[-1].payload
        assert [p for p in seen if packed(tap.ipv6) in p.frame] == []
        assert lease.drops()["dhcp"] == 1


def test_the_same_machine_gets_the_same_addresses_at_its_next_start(
    tap: Tap, alices: Client
) -> None:
    def once() -> tuple[str, str, str]:
        with alices.acquire(network_tap(), vm="again") as lease:
            return lease.tap.mac, lease.tap.ipv4, lease.tap.ipv6

    assert once() == once()


def test_router_advertisements_offer_addresses_and_no_route(tap: Tap) -> None:
    target = "ff02::2"
    question = frames.router_solicitation(tap.link_local, target, tap.mac)
    tap.send(tap.to6(frames.multicast_mac(target), tap.link_local, target, frames.ICMP6, question))
    answer = tap.until(lambda p: p.protocol == frames.ICMP6 and p.kind == 134)[-1]
    _, flags, lifetime = struct.unpack_from("!BBH", answer.payload)
    assert lifetime == 0
    assert flags & 0x80  # addresses come by DHCPv6


@pytest.mark.parametrize("version", [4, 6])
def test_the_gateway_answers_dns(version: int, tap: Tap) -> None:
    question = struct.pack("!HHHHHH", 0x5356, 0x0100, 1, 0, 0, 0)
    question += b"\x07gateway\x07invalid\0" + struct.pack("!HH", 1, 1)
    mac = tap.ask_arp(GATEWAY)
    if version == 4:
        frame = tap.udp4(mac, GATEWAY, (5353, 53), question)
    else:
        segment = frames.udp(tap.ipv6, GATEWAY6, (5353, 53), question)
        frame = tap.to6(mac, tap.ipv6, GATEWAY6, frames.UDP, segment)
    answer = exchange(tap, frame, (53, 5353), b"SV")
    assert answer.payload[:2] == b"SV"
    assert answer.source == (GATEWAY if version == 4 else GATEWAY6)

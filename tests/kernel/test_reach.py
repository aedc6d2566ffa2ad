# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whom a guest reaches: the network's services, the world by NAT, its own user's guests.

Nobody else: not the rest of the host, not other users' guests (at layer 2 or through the gateway),
and nobody outside reaches it unasked. Each for IPv4 and IPv6, with br_netfilter and without.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.client import network_tap
from lab.outside import ADDRESS4, ADDRESS6, PORT, UPLINK4, UPLINK6, Outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client
    from lab.frames import Packet
    from lab.tap import Tap

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.usefixtures("bridge_nf"),
    pytest.mark.parametrize("bridge_nf", [True, False], indirect=True, ids=["nf", "no-nf"]),
]

BRIDGE = "svn_default"
GATEWAY, GATEWAY6 = "10.213.80.1", "fd53:7669:7274:1::1"
SYN_ACK = 0x12

UNASKED = """
import socket, sys
target = sys.argv[1]
family = socket.AF_INET6 if ":" in target else socket.AF_INET
sender = socket.socket(family, socket.SOCK_DGRAM)
sender.bind(("", 53))
for port in (22, 53, 7000):
    sender.sendto(b"unasked", (target, port))
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Outside]:
    with Outside() as outside:
        # Somebody outside knows the way in.
        outside.run(["ip", "route", "add", "10.213.80.0/20", "via", UPLINK4])
        outside.run(["ip", "route", "add", "fd53:7669:7274:1::/64", "via", UPLINK6])
        yield outside


@pytest.fixture(scope="module")
def taps(
    world: Outside, lasting_broker: Broker, alices: Client, bobs: Client
) -> Iterator[tuple[Tap, Tap, Tap]]:
    """Two of alice's and one of bob's."""
    with (
        alices.acquire(network_tap(), network_tap(), vm="pair") as pair,
        bobs.acquire() as bob,
    ):
        one, two = pair.taps
        for tap in (one, two, bob.tap):
            tap.attentive = True
        yield one, two, bob.tap


@pytest.fixture
def gateway(taps: tuple[Tap, Tap, Tap]) -> str:
    """Its MAC, which the guest has asked for; the host knows the guest's then, too."""
    for tap in taps:
        ask6(tap)
    return taps[0].ask_arp(GATEWAY)


def ask6(tap: Tap) -> None:
    """Have the gateway and the guest know each other by IPv6."""
    group = frames.solicited_node(GATEWAY6)
    question = frames.neighbour_solicitation(tap.ipv6, group, GATEWAY6, tap.mac)
    tap.send(tap.to6(frames.multicast_mac(group), tap.ipv6, group, frames.ICMP6, question))
    tap.until(lambda p: p.protocol == frames.ICMP6 and p.kind == 136)


def after(tap: Tap, mac: str, *sent: bytes) -> list[Packet]:
    """What has come when the gateway has answered a ping that was sent last."""
    tap.send(*sent, tap.echo4(mac, GATEWAY, 77))
    found = tap.until(lambda p: p.protocol == frames.ICMP and p.kind == 0)
    # A SYN+ACK is sent again and again: one of those may be of another test.
    asked = {frames.parse(frame).ports[::-1] for frame in sent}
    return [p for p in found[:-1] if not asked or p.ports in asked or p.protocol == frames.UDP]


def tcp6(tap: Tap, mac: str, target: str, ports: tuple[int, int]) -> bytes:
    segment = frames.tcp(tap.ipv6, target, ports)
    return tap.to6(mac, tap.ipv6, target, frames.TCP, segment)


def udp6(tap: Tap, mac: str, target: str, ports: tuple[int, int], payload: bytes = b"") -> bytes:
    segment = frames.udp(tap.ipv6, target, ports, payload)
    return tap.to6(mac, tap.ipv6, target, frames.UDP, segment)


# The host


@pytest.mark.parametrize("address", [GATEWAY, UPLINK4, GATEWAY6, UPLINK6])
def test_no_port_of_the_host_but_dns_answers(
    address: str, taps: tuple[Tap, Tap, Tap], gateway: str
) -> None:
    tap, *_ = taps
    make = tcp6 if ":" in address else tcp4
    with host.listener(address, 22, socket.SOCK_STREAM):
        assert after(tap, gateway, make(tap, gateway, address, (5000, 22))) == []
        # Closed ports say nothing, either.
        assert after(tap, gateway, make(tap, gateway, address, (5000, 23))) == []
    with host.listener(address, 123, socket.SOCK_DGRAM) as service:
        send = udp6 if ":" in address else udp4
        assert after(tap, gateway, send(tap, gateway, address, (5000, 123))) == []
        with pytest.raises(BlockingIOError):
            service.recv(100)


def tcp4(tap: Tap, mac: str, target: str, ports: tuple[int, int]) -> bytes:
    return tap.tcp4(mac, target, ports)


def udp4(tap: Tap, mac: str, target: str, ports: tuple[int, int]) -> bytes:
    return tap.udp4(mac, target, ports)


@pytest.mark.parametrize("address", [GATEWAY, GATEWAY6])
def test_dns_is_there_by_tcp(address: str, taps: tuple[Tap, Tap, Tap], gateway: str) -> None:
    tap, *_ = taps
    make = tcp6 if ":" in address else tcp4
    for port in range(5100, 5120):  # dnsmasq may still be starting
        tap.send(make(tap, gateway, address, (port, 53)))
        with contextlib.suppress(TimeoutError):
            answer = tap.until(lambda p: p.ports == (53, port), timeout=0.5)[-1]  # noqa: B023
            if answer.flags == SYN_ACK:
                return
    pytest.fail("no SYN+ACK from the gateway's port 53")


# The world


def test_nat_shows_the_hosts_address_outside(taps: tuple[Tap, Tap, Tap], gateway: str) -> None:
    for number, tap in enumerate(taps):
        ports = (6000 + number, PORT)
        tap.send(tap.udp4(gateway, ADDRESS4, ports, b"who am I?"))
        answer = tap.until(lambda p: p.ports == ports[::-1])[-1]  # noqa: B023
        assert answer.payload == f"{UPLINK4}\n".encode()
        tap.send(tap.tcp4(gateway, ADDRESS4, ports))
        answer = tap.until(lambda p: p.protocol == frames.TCP and p.ports == ports[::-1])[-1]  # noqa: B023
        assert answer.flags == SYN_ACK


def test_ipv6_is_not_forwarded(taps: tuple[Tap, Tap, Tap], gateway: str) -> None:
    tap, *_ = taps
    assert after(tap, gateway, udp6(tap, gateway, ADDRESS6, (6100, PORT), b"who am I?")) == []


@pytest.mark.parametrize("version", [4, 6])
def test_nobody_outside_reaches_a_guest_unasked(
    version: int, taps: tuple[Tap, Tap, Tap], gateway: str, world: Outside
) -> None:
    tap, *_ = taps
    target = tap.ipv4 if version == 4 else tap.ipv6
    tap.waiting()
    world.run(["python3", "-c", UNASKED, target])
    assert not [p for p in after(tap, gateway) if p.payload == b"unasked"]


# Other guests


@pytest.mark.parametrize("version", [4, 6])
def test_guests_of_two_users_are_apart_at_layer_2(
    version: int, taps: tuple[Tap, Tap, Tap], alices: Client
) -> None:
    alice, _, bob = taps
    before = dropped(alices, "peer")
    bob.waiting()
    if version == 4:
        sent = [
            frames.arp(1, alice.mac, alice.ipv4, bob.ipv4),
            frames.arp(1, alice.mac, alice.ipv4, bob.ipv4, target=bob.mac),
            alice.udp4(bob.mac, bob.ipv4, (7000, 7000)),
            alice.udp4(frames.BROADCAST, "255.255.255.255", (7000, 7000)),
            alice.udp4(frames.multicast_mac("224.0.0.251"), "224.0.0.251", (5353, 5353)),
        ]
    else:
        group = frames.solicited_node(bob.ipv6)
        question = frames.neighbour_solicitation(alice.ipv6, group, bob.ipv6, alice.mac)
        mac = frames.multicast_mac(group)
        sent = [
            alice.to6(mac, alice.ipv6, group, frames.ICMP6, question),
            alice.to6(bob.mac, alice.ipv6, group, frames.ICMP6, question),
            udp6(alice, bob.mac, bob.ipv6, (7000, 7000)),
            udp6(alice, frames.multicast_mac("ff02::1"), "ff02::1", (7000, 7000)),
        ]
    alice.send(*sent)
    assert not [p for p in bob.waiting() if p.source_mac == alice.mac]
    assert dropped(alices, "peer") - before == len(sent)


def dropped(client: Client, reason: str) -> int:
    return sum(lease["drops"].value.get(reason, 0) for lease in client.leases())


@pytest.mark.parametrize("version", [4, 6])
def test_f67_guests_of_two_users_are_apart_through_the_gateway(
    version: int, taps: tuple[Tap, Tap, Tap], gateway: str
) -> None:
    alice, _, bob = taps
    bob.ask_arp(GATEWAY)
    bob.waiting()
    if version == 4:
        hairpin = alice.udp4(gateway, bob.ipv4, (7100, 7100), b"hairpin")
    else:
        hairpin = udp6(alice, gateway, bob.ipv6, (7100, 7100), b"hairpin")
    after(alice, gateway, hairpin)
    assert not [p for p in after(bob, gateway) if p.payload == b"hairpin"]


@pytest.mark.parametrize("version", [4, 6])
def test_guests_of_one_user_reach_each_other(version: int, taps: tuple[Tap, Tap, Tap]) -> None:
    one, two, bob = taps
    for a, b in ((one, two), (two, one)):
        bob.waiting()
        if version == 4:
            a.send(frames.arp(1, a.mac, a.ipv4, b.ipv4))
            b.until(lambda p: p.ethertype == frames.ARP and p.target == b.ipv4)  # noqa: B023
            assert a.until(lambda p: p.kind == 2)[-1].source_mac == b.mac
            sent = a.udp4(b.mac, b.ipv4, (7200, 7200), b"hello")
            heard = a.udp4(frames.BROADCAST, "255.255.255.255", (7200, 7200), b"all")
        else:
            sent = udp6(a, b.mac, b.ipv6, (7200, 7200), b"hello")
            heard = udp6(a, frames.multicast_mac("ff02::1"), "ff02::1", (7200, 7200), b"all")
        a.send(sent, heard)
        found = [packet.frame for packet in b.until(lambda p: p.payload == b"all")]
        assert sent in found
        assert heard in found
        assert not [p for p in bob.waiting() if p.source_mac in (one.mac, two.mac)]

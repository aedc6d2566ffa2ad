# SPDX-License-Identifier: LGPL-2.1-or-later
"""The modes of managed networks, with packets: whom a guest reaches, and who reaches it.

One network of each mode, all up at once, two guests of alice's and one of bob's on each; the world
has routes to all of them. IPv4 and IPv6, UDP, TCP and ICMP.
"""

from __future__ import annotations

import itertools
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
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

pytestmark = pytest.mark.kernel

CONFIGURATION = """
[network.n]
mode = "nat"
ipv4 = "10.60.0.1/24"
ipv6 = "fd60::1/64"
nat6 = true
[network.r]
mode = "route"
ipv4 = "10.61.0.1/24"
ipv6 = "2001:db8:61::1/64"
[network.i]
mode = "isolated"
ipv4 = "10.62.0.1/24"
ipv6 = "fd62::1/64"
[network.o]
mode = "open"
ipv4 = "10.63.0.1/24"
ipv6 = "2001:db8:63::1/64"
"""
#: Name, its gateway by IPv4 and IPv6.
GATEWAYS = {
    "n": ("10.60.0.1", "fd60::1"),
    "r": ("10.61.0.1", "2001:db8:61::1"),
    "i": ("10.62.0.1", "fd62::1"),
    "o": ("10.63.0.1", "2001:db8:63::1"),
}
SYN_ACK = 0x12
ECHO_REPLY = {4: 0, 6: 129}
ICMP = {4: frames.ICMP, 6: frames.ICMP6}
_ports = itertools.count(21000)

#: Outside: unasked datagrams, a connection that is tried, a ping; then the end.
UNASKED = """
import socket, subprocess, sys
target = sys.argv[1]
family = socket.AF_INET6 if ":" in target else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as sender:
    sender.sendto(b"unasked", (target, 7000))
with socket.socket(family, socket.SOCK_STREAM) as caller:
    caller.setblocking(False)
    caller.connect_ex((target, 7001))
subprocess.run(["ping", "-c1", "-W1", "-q", target], stdout=subprocess.DEVNULL)
"""
#: Outside: a datagram with the source address of somebody inside.
FORGED = """
import socket, sys
source, target = sys.argv[1:]
six = ":" in target
family = socket.AF_INET6 if six else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as sender:
    # IP_TRANSPARENT and IPV6_TRANSPARENT: an address that this host has not.
    sender.setsockopt(*((41, 75, 1) if six else (0, 19, 1)))
    sender.bind((source, 7002))
    sender.sendto(b"forged", (target, 7002))
"""


@dataclass
class Guest:
    """A TAP, and what it knows of its gateway."""

    tap: Tap
    network: str
    mac: str = ""

    def own(self, version: int) -> str:
        return self.tap.ipv4 if version == 4 else self.tap.ipv6

    def gateway(self, version: int) -> str:
        return GATEWAYS[self.network][version == 6]

    def meet(self) -> None:
        """Have the gateway and the guest know each other."""
        four, six = GATEWAYS[self.network]
        self.tap.attentive = True
        self.mac = self.tap.ask_arp(four)
        group = frames.solicited_node(six)
        asked = frames.neighbour_solicitation(self.tap.ipv6, group, six, self.tap.mac)
        mac = frames.multicast_mac(group)
        self.tap.send(self.tap.to6(mac, self.tap.ipv6, group, frames.ICMP6, asked))
        self.tap.until(lambda p: p.protocol == frames.ICMP6 and p.kind == 136)

    def packet(self, target: str, protocol: int, payload: bytes, mac: str = "") -> bytes:
        if ":" in target:
            return self.tap.to6(mac or self.mac, self.tap.ipv6, target, protocol, payload)
        return self.tap.to4(mac or self.mac, target, protocol, payload)

    def udp(
        self, target: str, ports: tuple[int, int], payload: bytes = b"", mac: str = ""
    ) -> bytes:
        source = self.own(6 if ":" in target else 4)
        return self.packet(target, frames.UDP, frames.udp(source, target, ports, payload), mac)

    def tcp(self, target: str, ports: tuple[int, int]) -> bytes:
        source = self.own(6 if ":" in target else 4)
        return self.packet(target, frames.TCP, frames.tcp(source, target, ports))

    def echo(self, target: str, identification: int) -> bytes:
        if ":" in target:
            echo = frames.echo6(self.tap.ipv6, target, identification)
            return self.packet(target, frames.ICMP6, echo)
        return self.packet(target, frames.ICMP, frames.echo4(identification))

    def after(self, *sent: bytes) -> list[Packet]:
        """What has come when the gateway answers a ping that was sent last."""
        number = next(_ports)
        self.tap.send(*sent, self.echo(self.gateway(4), number))
        wanted = struct.pack("!H", number)
        return self.tap.until(
            lambda p: p.protocol == frames.ICMP and p.kind == 0 and p.payload[:2] == wanted
        )[:-1]


@pytest.fixture(scope="module")
def world() -> Iterator[Outside]:
    with Outside() as outside:
        for four, six in GATEWAYS.values():
            outside.run(["ip", "route", "add", f"{four.removesuffix('.1')}.0/24", "via", UPLINK4])
            outside.run(["ip", "route", "add", f"{six.removesuffix('1')}/64", "via", UPLINK6])
        yield outside


@pytest.fixture(scope="module")
def guests(
    world: Outside, lasting_broker: Broker, alices: Client, bobs: Client
) -> Iterator[dict[str, tuple[Guest, Guest, Guest]]]:
    """By network: two of alice's and one of bob's."""
    lasting_broker.configure(CONFIGURATION)
    found = {}
    with ExitStack() as stack:
        for name in GATEWAYS:
            hers = stack.enter_context(
                alices.acquire(network_tap(name), network_tap(name), vm=f"hers-{name}")
            )
            his = stack.enter_context(bobs.acquire(network_tap(name), vm=f"his-{name}"))
            one, two, bob = (Guest(tap, name) for tap in (*hers.taps, his.tap))
            for guest in (one, two, bob):
                guest.meet()
            found[name] = one, two, bob
        yield found


def heard_from_outside(guest: Guest, other: Guest, *sent: bytes) -> list[Packet]:
    """What the world says to *sent*, when it has answered another guest who asked later."""
    guest.tap.send(*sent)
    port = next(_ports)
    other.tap.send(other.udp(ADDRESS4, (port, PORT), b"who am I?"))
    other.tap.until(lambda p: p.ports == (PORT, port))
    return [p for p in guest.after() if p.source in (ADDRESS4, ADDRESS6)]


versions = pytest.mark.parametrize("version", [4, 6])


@versions
@pytest.mark.parametrize(
    ("network", "seen"), [("n", "host"), ("r", "own"), ("i", "nothing"), ("o", "own")]
)
def test_whom_the_world_sees(
    network: str, seen: str, version: int, guests: dict[str, tuple[Guest, ...]]
) -> None:
    target = ADDRESS4 if version == 4 else ADDRESS6
    for guest in guests[network]:
        port = next(_ports)
        asked = [
            guest.udp(target, (port, PORT), b"who am I?"),
            guest.tcp(target, (port, PORT)),
            guest.echo(target, port),
        ]
        guest.tap.waiting()
        if seen == "nothing":
            assert heard_from_outside(guest, guests["o"][0], *asked) == []
            continue
        guest.tap.send(*asked)
        address = guest.own(version) if seen == "own" else (UPLINK4, UPLINK6)[version == 6]
        missing = {"udp", "tcp", "icmp"}

        def everything(packet: Packet, port: int = port, missing: set[str] = missing) -> bool:
            if packet.source == target and packet.ports == (PORT, port):
                missing.discard("udp" if packet.protocol == frames.UDP else "tcp")
                if packet.protocol == frames.UDP:
                    assert packet.payload == f"{address}\n".encode()  # noqa: B023
                else:
                    assert packet.flags == SYN_ACK
            elif packet.source == target and packet.kind == ECHO_REPLY[version]:
                missing.discard("icmp")
            return not missing

        guest.tap.until(everything)


@versions
@pytest.mark.parametrize(
    ("network", "reached"), [("n", False), ("r", True), ("i", False), ("o", True)]
)
def test_whom_the_world_reaches(
    network: str,
    reached: bool,  # noqa: FBT001
    version: int,
    guests: dict[str, tuple[Guest, ...]],
    world: Outside,
) -> None:
    for guest in guests[network][1:]:
        target = guest.own(version)
        guest.tap.waiting()
        if reached:
            # The host asks who has the address, and sends what waits once it is told.
            world.run(["python3", "-c", UNASKED, target])
            guest.tap.until(lambda p: p.protocol == ICMP[version] and p.kind in (8, 128))
            world.run(["python3", "-c", UNASKED, target])
        else:
            world.run(["python3", "-c", UNASKED, target])
            world.run(["python3", "-c", UNASKED, target])
        source = ADDRESS4 if version == 4 else ADDRESS6
        # A SYN+ACK is sent again and again: one may be of another test.
        found = [p for p in guest.after() if p.source == source and p.ports[0] != PORT]
        kinds = {(p.protocol, p.ports[1] or p.kind) for p in found}
        ping = (ICMP[version], 8 if version == 4 else 128)
        everything = {(frames.UDP, 7000), (frames.TCP, 7001), ping}
        assert kinds == (everything if reached else set())


@versions
@pytest.mark.parametrize("network", ["r"])
def test_nobody_outside_passes_for_a_guest(
    network: str, version: int, guests: dict[str, tuple[Guest, ...]], world: Outside
) -> None:
    one, two, _ = guests[network]
    one.tap.waiting()
    honest = ADDRESS4 if version == 4 else ADDRESS6
    for source in (two.own(version), honest):
        world.run(["python3", "-c", FORGED, source, one.own(version)])
    # They wait for the guest's address in the order in which they came.
    seen = one.tap.until(lambda p: p.payload == b"forged" and p.source == honest)
    assert [p.source for p in seen if p.payload == b"forged"] == [honest]


@versions
@pytest.mark.parametrize("network", GATEWAYS)
def test_what_a_guest_reaches_of_the_host(
    network: str, version: int, guests: dict[str, tuple[Guest, ...]]
) -> None:
    guest, *_ = guests[network]
    for address in (guest.gateway(version), (UPLINK4, UPLINK6)[version == 6]):
        port = next(_ports)
        with (
            host.listener(address, 22, socket.SOCK_STREAM),
            host.listener(address, 123, socket.SOCK_DGRAM) as service,
        ):
            sent = (guest.tcp(address, (port, 22)), guest.udp(address, (port, 123), b"time?"))
            if network == "o":
                guest.tap.send(*sent)
                guest.tap.until(lambda p: p.ports == (22, port) and p.flags == SYN_ACK)  # noqa: B023
                assert service.recv(100) == b"time?"
                continue
            assert [p for p in guest.after(*sent) if p.ports == (22, port)] == []
            with pytest.raises(BlockingIOError):
                service.recv(100)
    # DHCP's and DNS's address answers to ping in every mode.
    number = next(_ports)
    guest.tap.send(guest.echo(guest.gateway(version), number))
    guest.tap.until(lambda p: p.kind == ECHO_REPLY[version] and p.source == guest.gateway(version))


@pytest.mark.usefixtures("bridge_nf")
@pytest.mark.parametrize("bridge_nf", [True, False], indirect=True, ids=["nf", "no-nf"])
@versions
@pytest.mark.parametrize("network", GATEWAYS)
def test_guests_of_one_user_only_see_each_other(
    network: str, version: int, guests: dict[str, tuple[Guest, ...]]
) -> None:
    one, two, bob = guests[network]
    for guest in (two, bob):
        guest.tap.waiting()
    port = next(_ports)
    direct = [
        one.udp(guest.own(version), (port, port), b"hello", mac=guest.tap.mac)
        for guest in (two, bob)
    ]
    hairpin = one.udp(bob.own(version), (port, port), b"hello")
    one.after(*direct, hairpin)
    assert direct[0] in [p.frame for p in two.after()]
    assert [p for p in bob.after() if p.payload == b"hello"] == []


@versions
def test_networks_stay_apart(version: int, guests: dict[str, tuple[Guest, ...]]) -> None:
    """Of one user, too, and in every pair of modes."""
    for one, two in itertools.permutations(GATEWAYS, 2):
        sender, receiver = guests[one][0], guests[two][0]
        receiver.tap.waiting()
        sender.after(sender.udp(receiver.own(version), (7300, 7300), b"across"))
        assert [p for p in receiver.after() if p.payload == b"across"] == []


@versions
def test_a_gateway_is_its_own_networks(version: int, guests: dict[str, tuple[Guest, ...]]) -> None:
    """Neither is another network's DNS to be had, which knows its guests and may pass questions on,
    nor is to be seen whether that network is up.
    """
    for one, two in itertools.permutations(GATEWAYS, 2):
        if one == "o":  # which reaches all of the host
            continue
        guest, gateway = guests[one][0], GATEWAYS[two][version == 6]
        guest.tap.waiting()
        port = next(_ports)
        found = guest.after(guest.tcp(gateway, (port, 53)), guest.echo(gateway, port))
        assert [p for p in found if p.source == gateway] == []


def test_a_route_is_advertised_where_there_is_one(guests: dict[str, tuple[Guest, ...]]) -> None:
    lifetimes = {}
    for name, (guest, *_) in guests.items():
        tap, target = guest.tap, "ff02::2"
        asked = frames.router_solicitation(tap.link_local, target, tap.mac)
        mac = frames.multicast_mac(target)
        tap.send(tap.to6(mac, tap.link_local, target, frames.ICMP6, asked))
        answer = tap.until(lambda p: p.protocol == frames.ICMP6 and p.kind == 134)[-1]
        lifetimes[name] = struct.unpack_from("!BBH", answer.payload)[2]
    assert lifetimes == {"n": 1800, "r": 1800, "i": 0, "o": 1800}


def test_who_advertises_a_route_says_that_it_is_a_router(
    guests: dict[str, tuple[Guest, ...]],
) -> None:
    """Else guests drop the route with the first answer to "are you still there?" (RFC 4861)."""
    for name, (guest, *_) in guests.items():
        tap, six = guest.tap, GATEWAYS[name][1]
        asked = frames.neighbour_solicitation(tap.ipv6, six, six, tap.mac)
        tap.send(tap.to6(guest.mac, tap.ipv6, six, frames.ICMP6, asked))
        answer = tap.until(lambda p: p.protocol == frames.ICMP6 and p.kind == 136)[-1]
        assert bool(answer.payload[0] & 0x80) is (name != "i")


def test_the_whole_host_does_not_forward(guests: dict[str, tuple[Guest, ...]]) -> None:
    assert host.forwarding("all") == host.forwarding("default") == "0"
    assert sysctl6("all", "forwarding") == sysctl6("default", "forwarding") == "0"
    assert sysctl6("all", "force_forwarding") == sysctl6("lo", "force_forwarding") == "0"
    assert sysctl6("up0", "forwarding") == "0"  # it goes on taking advertisements
    assert host.forwarding("svn_i") == sysctl6("svn_i", "force_forwarding") == "0"
    assert len(host.elements("inet", "uplinks6")) == 1


def test_a_host_that_forwards_opens_nothing(
    guests: dict[str, tuple[Guest, ...]], world: Outside, alices: Client
) -> None:
    """What an isolated network is, the filter says, too; and a NAT network has no way in."""
    switches = [
        host.IPV4_CONF / "all/forwarding",
        host.IPV4_CONF.parent.parent / "ipv6/conf/all/forwarding",
    ]
    for switch in switches:
        switch.write_text("1")
    alices.settle()
    try:
        assert host.forwarding("svn_i") == sysctl6("svn_i", "forwarding") == "1"
        for name in ("i", "n"):
            guest, *_ = guests[name]
            for address, target in ((guest.tap.ipv4, ADDRESS4), (guest.tap.ipv6, ADDRESS6)):
                guest.tap.waiting()
                if name == "i":
                    sent = guest.udp(target, (next(_ports), PORT), b"who am I?")
                    assert heard_from_outside(guest, guests["o"][0], sent) == []
                world.run(["python3", "-c", UNASKED, address])
                found = [p for p in guest.after() if p.source == target and p.ports[0] != PORT]
                assert found == []
    finally:
        for switch in switches:
            switch.write_text("0")
        alices.settle()


def sysctl6(name: str, switch: str) -> str:
    return (host.IPV4_CONF.parent.parent / "ipv6/conf" / name / switch).read_text().strip()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Published ports, with connections: who reaches them, by which addresses, and who does not."""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab import frames, host
from lab.client import Client, RefusalError, network_tap, publish
from lab.kernelguest import KernelGuest
from lab.outside import ADDRESS4, ADDRESS6, PORT, UPLINK4, UPLINK6, Outside
from lab.standin import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Lease

pytestmark = pytest.mark.kernel

CONFIGURATION = """
[limits]
ports_per_request = 4
ports_per_user = 12
[network.n]
ipv4 = "10.60.0.1/24"
ipv6 = "fd60::1/64"
nat6 = true
[network.i]
mode = "isolated"
ipv4 = "10.62.0.1/24"
[network.o]
mode = "open"
ipv4 = "10.64.0.1/24"
[network.four]
ipv4 = "10.63.0.1/24"
ipv6 = "fd63::1/64"
"""
GATEWAYS = ("10.60.0.1/24", "fd60::1/64")
GATEWAY4, GATEWAY6 = "10.60.0.1", "fd60::1"
LOCALNET = Path("/proc/sys/net/ipv4/conf/svn_n/route_localnet")
_ports = itertools.count(8100, 10)


@pytest.fixture(scope="module")
def world() -> Iterator[Outside]:
    with Outside() as outside:
        yield outside


@pytest.fixture(scope="module")
def web(world: Outside, lasting_broker: Broker, alices: Client) -> Iterator[Lease]:
    """alice's machine, and its lease."""
    lasting_broker.configure(CONFIGURATION)
    with alices.acquire(network_tap("n"), vm="web") as lease:
        yield lease


@pytest.fixture(scope="module")
def guests(web: Lease, alices: Client, bobs: Client) -> Iterator[dict[str, KernelGuest]]:
    """The machine, another one of alice's, and bob's."""
    with contextlib.ExitStack() as stack:
        second = stack.enter_context(alices.acquire(network_tap("n"), vm="second"))
        third = stack.enter_context(bobs.acquire(network_tap("n"), vm="third"))
        taps = {"itself": web.tap, "alice": second.tap, "bob": third.tap}
        yield {
            name: stack.enter_context(KernelGuest(name, tap, GATEWAYS))
            for name, tap in taps.items()
        }


@contextlib.contextmanager
def published(lease: Lease, host_port: int, guest_port: int = 80, **more: Any) -> Iterator[None]:
    grant = lease.add_one(publish("tap0", host_port, guest_port, **more))
    try:
        yield
    finally:
        lease.drop(grant["id"])


@pytest.fixture
def port() -> int:
    """One that no other test has: a flow that was is known by its ports."""
    return next(_ports)


#: IP's rules see no bridged frames.
BRIDGED_APART = pytest.mark.parametrize("bridge_nf", [False], indirect=True, ids=["no-nf"])
NOBODY = ("ConnectionRefusedError", "TimeoutError")


@BRIDGED_APART
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_every_address_is_reached_from_everywhere(
    kind: str,
    port: int,
    web: Lease,
    world: Outside,
    guests: dict[str, KernelGuest],
    bridge_nf: bool,  # noqa: FBT001
) -> None:
    with published(web, port, protocol=kind):
        # The guest sees who it is, but where the answer has to come back through the host.
        assert world.ask(kind, UPLINK4, port) == f"itself 80 {ADDRESS4}"
        assert world.ask(kind, UPLINK6, port) == f"itself 80 {ADDRESS6}"
        for address in (UPLINK4, UPLINK6, GATEWAY4, GATEWAY6):
            assert ask(kind, address, port) == f"itself 80 {address}"
        for address in ("127.0.0.1", "127.7.7.7"):
            assert ask(kind, address, port) == f"itself 80 {GATEWAY4}"
        assert ask(kind, "::1", port) == "ConnectionRefusedError"
        for guest in guests.values():
            for address in (UPLINK4, GATEWAY4):
                assert guest.ask(kind, address, port) == f"itself 80 {GATEWAY4}"
            for address in (UPLINK6, GATEWAY6):
                assert guest.ask(kind, address, port) == f"itself 80 {GATEWAY6}"
    for address in (UPLINK4, UPLINK6):
        assert world.ask(kind, address, port) in NOBODY
        assert ask(kind, address, port) in NOBODY
        assert guests["bob"].ask(kind, address, port) in NOBODY
    assert LOCALNET.read_text() == "0\n"


def test_f67_with_br_netfilter_it_is_reached_by_all_but_other_guests(
    port: int,
    web: Lease,
    world: Outside,
    guests: dict[str, KernelGuest],
    bridge_nf: bool,  # noqa: FBT001
) -> None:
    """It translates on the bridge what is for the gateway's MAC, and bridges the rest of the way
    (br_nf_pre_routing_finish()): that is a guest to another user's guest, which are apart."""
    assert bridge_nf
    with published(web, port):
        assert world.ask("tcp", UPLINK4, port) == f"itself 80 {ADDRESS4}"
        assert ask("tcp", "127.0.0.1", port) == f"itself 80 {GATEWAY4}"
        assert ask("tcp", UPLINK6, port) == f"itself 80 {UPLINK6}"
        assert guests["bob"].ask("tcp", UPLINK4, port) == "TimeoutError"


def test_ports_in_a_row(port: int, web: Lease, world: Outside, guests: Any) -> None:
    with published(web, port, ports=3):
        for number in range(3):
            answer = f"itself {80 + number} {ADDRESS4}"
            assert world.ask("tcp", UPLINK4, port + number) == answer
        for number in (-1, 3):
            assert world.ask("tcp", UPLINK4, port + number) == "ConnectionRefusedError"
        assert world.ask("udp", UPLINK4, port) == "ConnectionRefusedError"


@BRIDGED_APART
def test_one_address_is_that_one_alone(
    port: int,
    web: Lease,
    world: Outside,
    guests: dict[str, KernelGuest],
    bridge_nf: bool,  # noqa: FBT001
) -> None:
    with published(web, port, address=UPLINK4), published(web, port, 81, address=UPLINK6):
        assert LOCALNET.read_text() == "0\n"
        assert world.ask("tcp", UPLINK4, port) == f"itself 80 {ADDRESS4}"
        assert world.ask("tcp", UPLINK6, port) == f"itself 81 {ADDRESS6}"
        assert ask("tcp", UPLINK4, port) == f"itself 80 {UPLINK4}"
        assert guests["bob"].ask("tcp", UPLINK4, port) == f"itself 80 {GATEWAY4}"
        for address in ("127.0.0.1", GATEWAY4, GATEWAY6):
            assert ask("tcp", address, port) == "ConnectionRefusedError"
        assert guests["alice"].ask("tcp", GATEWAY4, port) in NOBODY


def test_localhost_is_this_hosts_alone(
    port: int, web: Lease, world: Outside, guests: dict[str, KernelGuest]
) -> None:
    with published(web, port, address="127.0.0.1"):
        assert ask("tcp", "127.0.0.1", port) == f"itself 80 {GATEWAY4}"
        for address in ("127.0.0.2", UPLINK4):
            assert ask("tcp", address, port) == "ConnectionRefusedError"
        assert world.ask("tcp", UPLINK4, port) == "ConnectionRefusedError"
        assert guests["alice"].ask("tcp", UPLINK4, port) in NOBODY


#: Outside: a datagram for an address, to a MAC address whoever has it.
BY_MAC = """
import socket, sys
sys.path.insert(0, sys.argv[1])
from lab import frames
source, target, mac, port = sys.argv[2:]
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
    wire.bind(("out0", 0))
    own = wire.getsockname()[4].hex(":")
    segment = frames.udp(source, target, (4000, int(port)), b"by mac")
    packet = frames.ipv4(source, target, frames.UDP, segment)
    wire.send(frames.ethernet(mac, own, frames.IPV4, packet))
"""


def test_nobody_on_the_wire_reaches_what_is_on_localhost(
    port: int, web: Lease, world: Outside, alices: Client, bobs: Client
) -> None:
    """Who sends to 127.0.0.1 by the host's MAC, a guest or a neighbour, gets nowhere."""
    mac, gateway = (host.link(name)["address"] for name in ("up0", "svn_n"))

    def outside(target: str) -> None:
        where = str(Path(host.__file__).parents[1])
        words = [where, ADDRESS4, target, mac, str(port)]
        world.run([sys.executable, "-I", "-c", BY_MAC, *words])

    with (
        alices.acquire(network_tap("n"), vm="heard") as lease,
        bobs.acquire(network_tap("n")) as bob,
    ):
        tap = lease.tap
        tap.attentive = True
        for one in (tap, bob.tap):
            one.ask_arp(GATEWAY4)
        for address in ("127.0.0.1", UPLINK4):
            lease.add_one(publish("tap0", port, 80, protocol="udp", address=address))
        outside("127.0.0.1")
        bob.tap.send(bob.tap.udp4(gateway, "127.0.0.1", (4001, port), b"by mac"))
        assert tap.silent(lambda p: p.payload == b"by mac")
        outside(UPLINK4)
        assert tap.until(lambda p: p.payload == b"by mac")


def test_no_guest_reaches_the_hosts_own_127(port: int, web: Lease, alices: Client) -> None:
    """Though the bridge routes it, and lets its guests to all else of the host: new flows, and what
    conntrack knows nothing of."""
    localnet = Path("/proc/sys/net/ipv4/conf/svn_o/route_localnet")
    with (
        alices.acquire(network_tap("o"), publish("tap0", port, 80), vm="open") as lease,
        host.listener("0.0.0.0", 9999, socket.SOCK_DGRAM) as service,
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
    ):
        raw.settimeout(0)
        assert localnet.read_text() == "1\n"
        tap, mac = lease.tap, lease.tap.ask_arp("10.64.0.1")
        # Delivery is over when send() returns. A reset of nothing is "invalid", and so asked of no
        # NAT rule.
        heard = []
        for target in ("127.0.0.1", "10.64.0.1"):
            reset = frames.tcp(tap.ipv4, target, (4001, 9998), flags=0x04)
            tap.send(tap.udp4(mac, target, (4000, 9999), target.encode()))
            tap.send(tap.to4(mac, target, frames.TCP, reset))
            with contextlib.suppress(BlockingIOError):
                heard.append(service.recv(100).decode())
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = raw.recv(200)
                    if packet[20:24] == (4001).to_bytes(2, "big") + (9998).to_bytes(2, "big"):
                        heard.append(socket.inet_ntoa(packet[16:20]))
        assert heard == ["10.64.0.1", "10.64.0.1"]


def test_what_is_for_others_is_not_translated(
    web: Lease, world: Outside, guests: dict[str, KernelGuest]
) -> None:
    """What passes this host, and what was for an address that it had."""
    with published(web, PORT, protocol="udp"):
        assert guests["bob"].ask("udp", ADDRESS4, PORT) == UPLINK4
    former = "192.0.2.77"
    host.ip("address", "add", f"{former}/32", "dev", "up0")
    with published(web, PORT, protocol="udp", address=former):
        assert world.ask("udp", former, PORT) == f"itself 80 {ADDRESS4}"
        host.ip("address", "del", f"{former}/32", "dev", "up0")
        world.run(["ip", "route", "add", former, "via", UPLINK4])
        assert world.ask("udp", former, PORT) in (*NOBODY, "OSError")


def test_a_service_of_the_host_is_what_it_was(port: int, web: Lease, world: Outside) -> None:
    with (
        published(web, port),
        host.listener(UPLINK4, port + 1, socket.SOCK_DGRAM),
        host.listener(UPLINK4, port, socket.SOCK_DGRAM),
    ):
        assert world.ask("udp", UPLINK4, port + 1) == "TimeoutError"  # it says nothing
        assert world.ask("udp", UPLINK4, port) == "TimeoutError"


def test_what_somebody_else_translates_is_not_let_in(
    port: int, web: Lease, world: Outside, guests: Any
) -> None:
    """Also to a port that is published."""
    chain = "{ type nat hook prerouting priority -100; }"
    host.nft("add", "table", "ip", "theirs")
    try:
        host.nft("add", "chain", "ip", "theirs", "pre", chain)
        to = f"{web.tap.ipv4}:80"
        host.nft("add", "rule", "ip", "theirs", "pre", f"tcp dport {port + 1} dnat to {to}")
        with published(web, port), published(web, port + 2, address="127.0.0.1"):
            assert world.ask("tcp", UPLINK4, port) == f"itself 80 {ADDRESS4}"
            assert world.ask("tcp", UPLINK4, port + 1) == "TimeoutError"
    finally:
        host.nft("delete", "table", "ip", "theirs")


def test_it_ends_with_its_tap(port: int, alices: Client, web: Lease) -> None:
    with alices.acquire(network_tap("n"), publish("tap0", port, 80), vm="short") as lease:
        _, given = lease.listed()["grants"].value
        assert given["kind"].value == "publish"
        assert given["guest"].value == [lease.tap.ipv4, lease.tap.ipv6]
        (second,) = lease.add(network_tap("n"))
        lease.add_one(publish(second.id, port + 1, 80))
        assert len(host.elements("inet", "published4", "map")) == 2
        lease.drop(second.id)
        assert [g["id"].value for g in lease.listed()["grants"].value] == ["tap0", "publish1"]
        assert len(host.elements("inet", "admitted4")) == 1
        # The second one's goes by itself, when its guest lets go of it.
        (third,) = lease.add(network_tap("n"))
        lease.add_one(publish(third.id, port + 1, 80))
        third.close()
        alices.settle()
        assert len(host.elements("inet", "published6", "map")) == 1
    assert host.elements("inet", "published4", "map") == []
    assert host.elements("inet", "turning") == []


# What is refused


def refusal(lease: Lease, *requests: Any) -> tuple[str, str]:
    before = len(lease.listed()["grants"].value)
    with pytest.raises(RefusalError) as refused:
        lease.add(*requests)
    assert len(lease.listed()["grants"].value) == before
    return refused.value.name, refused.value.text


@pytest.mark.parametrize(
    ("fields", "name", "text"),
    [
        ({"address": "192.0.2.77"}, "NotFound", "address: 192.0.2.77 is not an address of this"),
        ({"address": "224.0.0.1"}, "InvalidArgs", "must be one host's"),
        ({"address": "fe80::1%up0"}, "InvalidArgs", "must be an IPv4 or IPv6 address"),
        ({"address": "::1"}, "NotSupported", "no way back to ::1"),
        ({"protocol": "sctp"}, "InvalidArgs", "must be tcp or udp"),
        ({"ports": 5}, "LimitsExceeded", "ports_per_request: 4"),
        ({"host_port": 65534, "ports": 3}, "InvalidArgs", "host_port: the last port is 65535"),
        ({"guest_port": 65534, "ports": 3}, "InvalidArgs", "guest_port: the last port"),
        ({"tap": "tap7"}, "NotFound", "the lease has no grant tap7"),
        ({"tap": "pci0"}, "InvalidArgs", "must be the id of a grant, like tap0"),
        ({"tap": "direct0"}, "NotSupported", "the guest is on the LAN itself"),
        ({"protocol": "udp", "host_port": 53}, "Busy", "of their gateways for DNS and DHCP"),
    ],
)
def test_it_is_refused(fields: dict[str, Any], name: str, text: str, web: Lease) -> None:
    wanted = {"tap": "tap0", "host_port": 8080, "guest_port": 80, **fields}
    found, said = refusal(web, publish(**wanted))
    assert found == name
    assert text in said


@pytest.mark.parametrize(
    ("kind", "own", "asked"),
    [
        (socket.SOCK_STREAM, "0.0.0.0", {}),
        (socket.SOCK_STREAM, "127.0.0.1", {}),
        (socket.SOCK_STREAM, "::", {"address": UPLINK4}),
        (socket.SOCK_STREAM, UPLINK4, {"address": UPLINK4}),
        (socket.SOCK_STREAM, UPLINK6, {}),
        (socket.SOCK_DGRAM, "0.0.0.0", {"protocol": "udp", "address": "127.0.0.1"}),
    ],
)
def test_where_the_host_listens_nothing_is_published(
    kind: socket.SocketKind, own: str, asked: dict[str, Any], port: int, web: Lease
) -> None:
    with host.listener(own, port + 1, kind):
        name, text = refusal(web, publish("tap0", port, 80, ports=2, **asked))
        assert (name, text.rpartition(" ")[2]) == ("Busy", str(port + 1))
        assert f"the host itself listens on {own}, " in text
        if own == UPLINK4:
            with published(web, port, ports=2, address=UPLINK6):
                pass


def test_what_is_published_is_nobody_elses(port: int, web: Lease, bobs: Client) -> None:
    with bobs.acquire(network_tap("n")) as bob:
        with published(web, port, address=UPLINK4):
            for fields in ({}, {"address": UPLINK4}, {"address": "0.0.0.0"}):
                name, text = refusal(bob, publish("tap0", port, 80, **fields))
                assert name == "Busy"
                assert text.endswith("is published")
            assert refusal(web, publish("tap0", port, 80))[0] == "Busy"
            with published(bob, port, address=UPLINK6), published(bob, port, protocol="udp"):
                pass
        with published(web, port):
            assert refusal(bob, publish("tap0", port, 80, address="127.0.0.1"))[0] == "Busy"
        twice = (publish("tap0", port, 80), publish("tap0", port, 81, address=UPLINK4))
        assert refusal(bob, *twice)[0] == "Busy"
        with published(bob, port):
            pass


def test_networks_where_nothing_comes_in(web: Lease, alices: Client, port: int) -> None:
    with alices.acquire(network_tap("i"), network_tap("four"), vm="apart") as lease:
        assert "network i is isolated" in refusal(lease, publish("tap0", port, 80))[1]
        name, text = refusal(lease, publish("tap1", port, 80, address=UPLINK6))
        assert name == "NotSupported"
        assert "its IPv6 does not leave this host" in text
        grant = lease.add_one(publish("tap1", port, 80))
        assert grant["guest"] == lease.taps[1].facts["ipv4"]
        lease.drop(grant["id"])


def test_f68_a_user_has_so_many_ports(web: Lease, port: int) -> None:
    with published(web, port, ports=4), published(web, port, ports=4, protocol="udp"):
        more = [publish("tap0", port + 4, 80, ports=4), publish("tap0", port + 8, 80)]
        assert refusal(web, *more) == ("LimitsExceeded", "ports_per_user: 12")

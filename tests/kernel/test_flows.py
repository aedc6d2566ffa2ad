# SPDX-License-Identifier: LGPL-2.1-or-later
"""What conntrack remembers opens nothing: to the host's own 127.0.0.0/8, to another network's
guest, or to whoever has a port or an address next."""

from __future__ import annotations

import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.client import network_tap, publish
from lab.outside import ADDRESS4, ADDRESS6, UPLINK4, Outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client
    from lab.tap import Tap

pytestmark = pytest.mark.kernel

CONFIGURATION = """
[network.n]
ipv4 = "10.66.0.1/24"
ipv6 = "fd66::1/64"
nat6 = true
[network.other]
ipv4 = "10.67.0.1/24"
"""
PORT = 8300
#: Where the other side of every datagram here is.
THEIRS = 4000

#: Outside: one datagram, always by the same socket's address and port.
SAY = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
    caller.bind(("", int(sys.argv[1])))
    caller.sendto(sys.argv[4].encode(), (sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def world(lasting_broker: Broker) -> Iterator[Outside]:
    lasting_broker.configure(CONFIGURATION)
    with Outside() as outside:
        yield outside


def say(world: Outside, word: str, port: int = PORT) -> None:
    words = [str(THEIRS), UPLINK4, str(port), word]
    world.run([sys.executable, "-I", "-c", SAY, *words])


def unreachable(source: str, target: str, ports: tuple[int, int]) -> bytes:
    """ICMP: nobody is there. It is about a datagram from ``source``."""
    about = frames.ipv4(source, target, frames.UDP, frames.udp(source, target, ports, b"?"))
    body = bytes([3, 3, 0, 0]) + bytes(4) + about
    check = frames.checksum(body)
    return body[:2] + check.to_bytes(2, "big") + body[4:]


@contextmanager
def flow_on_127() -> Iterator[tuple[socket.socket, tuple[int, int]]]:
    """The host asks itself something."""
    with host.listener("127.0.0.1", 0, socket.SOCK_DGRAM) as service:
        port = service.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
            caller.settimeout(0)
            caller.connect(("127.0.0.1", port))
            caller.send(b"?")
            yield caller, (caller.getsockname()[1], port)


def test_no_guest_says_anything_about_flows_on_127(world: Outside, alices: Client) -> None:
    """Conntrack asks whom an error is for, and not who sends it: "related"."""
    with (
        alices.acquire(network_tap("n"), publish("tap0", PORT, 80)) as lease,
        flow_on_127() as (caller, ports),
    ):
        tap, mac = lease.tap, lease.tap.ask_arp("10.66.0.1")
        error = unreachable("127.0.0.1", "127.0.0.1", ports)
        tap.send(tap.to4(mac, "127.0.0.1", frames.ICMP, error))
        with pytest.raises(BlockingIOError):
            caller.recv(100)


def test_no_other_networks_guest_says_anything_about_a_published_flow(
    world: Outside, alices: Client, bobs: Client
) -> None:
    with (
        alices.acquire(
            network_tap("n"), publish("tap0", PORT, 80, protocol="udp"), vm="web"
        ) as web,
        bobs.acquire(network_tap("other")) as bob,
        alices.acquire(network_tap("n"), vm="third") as third,
    ):
        web.tap.attentive = True
        web.tap.ask_arp("10.66.0.1")
        say(world, "hello")
        assert web.tap.until(lambda p: p.payload == b"hello")
        # As it would come from the other end, of which this host translates both.
        error = unreachable(UPLINK4, ADDRESS4, (PORT, THEIRS))

        def told(tap: Tap, gateway: str) -> None:
            tap.send(tap.to4(tap.ask_arp(gateway), UPLINK4, frames.ICMP, error))

        def is_error(packet: frames.Packet) -> bool:
            return packet.protocol == frames.ICMP and packet.kind == 3

        told(bob.tap, "10.67.0.1")
        assert web.tap.silent(is_error)
        # Those of its own network are let turn round.
        told(third.tap, "10.66.0.1")
        assert web.tap.until(is_error)


def test_a_port_that_is_somebody_elses_is_so_for_all(
    world: Outside, alices: Client, bobs: Client
) -> None:
    """Who has sent datagrams to it all the time does not go on sending them to the former one."""
    with alices.acquire(network_tap("n"), vm="one") as one, bobs.acquire(network_tap("n")) as two:
        for lease in (one, two):
            lease.tap.attentive = True
            lease.tap.ask_arp("10.66.0.1")
        former = one.add_one(publish("tap0", PORT, 80, protocol="udp", ports=2))
        say(world, "first", PORT + 1)
        assert one.tap.until(lambda p: p.payload == b"first")
        one.drop(former["id"])
        two.add_one(publish("tap0", PORT, 80, protocol="udp", ports=2))
        say(world, "second", PORT + 1)
        assert two.tap.until(lambda p: p.payload == b"second")
        assert one.tap.silent(lambda p: p.payload == b"second")


def known(address: str) -> list[str]:
    """The flows of an address, as the kernel has them; IPv6 is written out in full there."""
    lines = Path("/proc/net/nf_conntrack").read_text(encoding="ascii").splitlines()
    packed = socket.inet_pton(socket.AF_INET6, address).hex(":", 2) if ":" in address else address
    return [line for line in lines if f"={packed} " in line]


def test_flows_end_with_the_guest(world: Outside, alices: Client, bobs: Client) -> None:
    """By a flow that is known, whoever has its other end could speak to the address' next guest."""
    with bobs.acquire(network_tap("n")) as lasting:
        kept = lasting.tap
        with alices.acquire(network_tap("n"), publish("tap0", PORT, 80, protocol="udp")) as lease:
            gone = lease.tap
            for tap in (kept, gone):
                tap.attentive = True
                mac = tap.ask_arp("10.66.0.1")
                tap.send(tap.udp4(mac, ADDRESS4, (5000, THEIRS), b"out"))
                datagram = frames.udp(tap.ipv6, ADDRESS6, (5000, THEIRS), b"out")
                tap.send(tap.to6(mac, tap.ipv6, ADDRESS6, frames.UDP, datagram))
            say(world, "in")
            assert gone.until(lambda p: p.payload == b"in")
            assert (len(known(gone.ipv4)), len(known(gone.ipv6))) == (2, 1)
        assert known(gone.ipv4) == known(gone.ipv6) == []
        assert (len(known(kept.ipv4)), len(known(kept.ipv6))) == (1, 1)

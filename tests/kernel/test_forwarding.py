# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forwarding for the guests, and for nobody else: the host is not made a router."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.outside import ADDRESS4, PORT, UPLINK4, Outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client
    from lab.tap import Tap

pytestmark = pytest.mark.kernel

GATEWAY = "10.213.80.1"
GLOBAL = Path("/proc/sys/net/ipv4/ip_forward")
#: A network of the host that has nothing to do with us.
OTHER, OTHER_GUEST = "198.51.100.1", "198.51.100.2"
ETH_P_ALL = 3


@pytest.fixture
def world(lasting_broker: Broker) -> Iterator[Outside]:
    with Outside() as outside:
        outside.run(["ip", "route", "add", "198.51.100.0/24", "via", UPLINK4])
        yield outside


@pytest.fixture
def other(world: Outside) -> Iterator[socket.socket]:
    """The far end of an interface of somebody else's; it hears what is forwarded to there."""
    host.ip("link", "add", "oth0", "type", "veth", "peer", "name", "oth1")
    try:
        host.ip("address", "add", f"{OTHER}/24", "dev", "oth0")
        for name in ("oth0", "oth1"):
            host.ip("link", "set", name, "up")
        host.ip("neigh", "add", OTHER_GUEST, "lladdr", "02:00:00:00:00:77", "dev", "oth0")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as end:
            end.bind(("oth1", 0))
            end.settimeout(2)
            yield end
    finally:
        host.ip("link", "del", "oth0")


@contextmanager
def global_forwarding(client: Client) -> Iterator[None]:
    """Somebody turns it on for the whole host, and off again."""
    GLOBAL.write_text("1")
    try:
        client.settle()
        yield
    finally:
        GLOBAL.write_text("0")
        client.settle()


def send_through(world: Outside, payload: str) -> None:
    program = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        f"s.sendto(sys.argv[1].encode(), ({OTHER_GUEST!r}, 9))"
    )
    world.run(["python3", "-c", program, payload])


def came_through(end: socket.socket, world: Outside, payload: str) -> bool:
    """Whether a datagram from outside is forwarded; a frame of our own is the end of waiting."""
    send_through(world, payload)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.sendto(f"end: {payload}".encode(), (OTHER_GUEST, 9))
    while True:
        frame = end.recv(2000)
        if f"end: {payload}".encode() in frame:
            return False
        if payload.encode() in frame:
            return True


def nat_works(tap: Tap, port: int, target: str = ADDRESS4, seen: str = UPLINK4) -> bool:
    tap.attentive = True
    tap.send(tap.udp4(tap.ask_arp(GATEWAY), target, (port, PORT), b"who am I?"))
    answer = tap.until(lambda p: p.ports == (PORT, port))[-1]
    return answer.payload == f"{seen}\n".encode()


def test_forwarding_is_set_where_it_is_needed_and_taken_back(
    world: Outside, alices: Client
) -> None:
    assert [host.forwarding(name) for name in ("all", "default", "up0", "lo")] == ["0"] * 4
    with alices.acquire() as lease:
        names = ("all", "default", "lo", "up0", "svn_default", lease.tap.ifname)
        assert [host.forwarding(name) for name in names] == ["0", "0", "0", "1", "1", "0"]
    assert [host.forwarding(name) for name in ("all", "default", "up0", "lo")] == ["0"] * 4


def test_what_forwarded_before_forwards_afterwards(world: Outside, alices: Client) -> None:
    (host.IPV4_CONF / "up0/forwarding").write_text("1")
    with alices.acquire():
        assert host.elements("inet", "uplinks") == []
    assert host.forwarding("up0") == "1"


def test_the_host_is_not_made_a_router(
    world: Outside, other: socket.socket, alices: Client
) -> None:
    assert not came_through(other, world, "without a guest")
    with alices.acquire() as lease:
        assert host.forwarding("up0") == "1"
        assert not came_through(other, world, "with a guest")
        assert nat_works(lease.tap, 6001)


def test_a_router_by_somebodys_wish_stays_one(
    world: Outside, other: socket.socket, alices: Client
) -> None:
    with global_forwarding(alices):
        with alices.acquire() as lease:
            assert came_through(other, world, "before the guest")
            assert nat_works(lease.tap, 6002)
        assert came_through(other, world, "after the guest")
        assert host.forwarding("up0") == host.forwarding("all") == "1"


def test_a_wish_that_comes_while_leased_is_not_undone(
    world: Outside, other: socket.socket, alices: Client
) -> None:
    with alices.acquire() as lease:
        with global_forwarding(alices):
            assert came_through(other, world, "wished")
            assert nat_works(lease.tap, 6003)
        # Turning it off turns off every interface's: guests must not lose the world by that.
        assert not came_through(other, world, "not wished")
        assert nat_works(lease.tap, 6004)
    assert host.forwarding("up0") == "0"
    with alices.acquire():
        GLOBAL.write_text("1")
        alices.settle()
    assert GLOBAL.read_text() == "1\n"
    assert host.forwarding("up0") == "1"
    GLOBAL.write_text("0")


def test_nat_goes_on_when_the_default_route_moves(world: Outside, alices: Client) -> None:
    with alices.acquire() as lease:
        assert nat_works(lease.tap, 6005)
        assert world._peer is not None
        pid = str(world._peer.pid)
        host.ip("link", "add", "alt0", "type", "veth", "peer", "name", "alt1", "netns", pid)
        try:
            host.ip("address", "add", "203.0.113.2/24", "dev", "alt0")
            world.run(["ip", "address", "add", "203.0.113.1/24", "dev", "alt1"])
            world.run(["ip", "link", "set", "alt1", "up"])
            host.ip("link", "set", "alt0", "up")
            host.ip("route", "replace", "default", "via", "203.0.113.1", "dev", "alt0")
            alices.settle()
            assert [host.forwarding(name) for name in ("alt0", "up0")] == ["1", "0"]
            assert nat_works(lease.tap, 6006, "203.0.113.1", "203.0.113.2")
        finally:
            host.ip("link", "del", "alt0")
        alices.settle()
        host.ip("route", "add", "default", "via", ADDRESS4, "dev", "up0")
        alices.settle()
        assert nat_works(lease.tap, 6007)
    assert host.forwarding("up0") == "0"

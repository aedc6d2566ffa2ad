# SPDX-License-Identifier: LGPL-2.1-or-later
"""IPv6 beyond the host: only where that costs the host nothing, and taken back.

The world sends router advertisements, and the kernel takes its default route from them, as on a
host without NetworkManager or networkd. (Those set the route themselves, and it stays.)
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.client import RefusalError, network_tap
from lab.outside import ADDRESS6, PORT, UPLINK6, Outside
from lab.stage import Flavour

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client
    from lab.tap import Tap

pytestmark = pytest.mark.kernel

CONF = Path("/proc/sys/net/ipv6/conf")
ROUTER_MAC = "02:00:00:00:00:aa"
ROUTER = frames.link_local(ROUTER_MAC)
GATEWAY6 = "fd60::1"
NAT6 = '[network.default]\nipv4 = "10.60.0.1/24"\nipv6 = "fd60::1/64"\nnat6 = true\n'
ADVERTISE = """
import socket
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
    sender.bind(("out0", 0))
    sender.send(bytes.fromhex("{}"))
"""


@pytest.fixture
def world(broker: Broker) -> Iterator[Outside]:
    broker.configure(NAT6)
    with Outside() as outside:
        yield outside


def switch(name: str, which: str) -> str:
    return (CONF / name / which).read_text().strip()


def by_advertisement() -> bool:
    """Whether the kernel has a default route by an advertisement."""
    rows = json.loads(host.ip("-6", "-json", "route", "show", "default"))
    return any(row.get("gateway") == ROUTER for row in rows)


def advertise(world: Outside) -> None:
    """The default route of the host is by a router's word from now on."""
    packet = frames.ipv6(
        ROUTER,
        frames.ALL_NODES,
        frames.ICMP6,
        frames.router_advertisement(ROUTER, ROUTER_MAC),
    )
    group = frames.multicast_mac(frames.ALL_NODES)
    frame = frames.ethernet(group, ROUTER_MAC, frames.IPV6, packet)
    host.ip("-6", "route", "del", "default")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as notices:
        notices.bind((0, 0x400))  # RTMGRP_IPV6_ROUTE
        notices.settimeout(5)
        world.run(["python3", "-c", ADVERTISE.format(frame.hex())])
        while not by_advertisement():
            notices.recv(65536)


def goes_out(tap: Tap, port: int) -> bool:
    """Whether a datagram gets to the world and its answer back."""
    group = frames.solicited_node(GATEWAY6)
    asked = frames.neighbour_solicitation(tap.ipv6, group, GATEWAY6, tap.mac)
    multicast = frames.multicast_mac(group)
    tap.attentive = True
    for _ in range(10):  # the bridge's first port may have no carrier yet
        tap.send(tap.to6(multicast, tap.ipv6, group, frames.ICMP6, asked))
        try:
            answer = tap.until(lambda p: p.protocol == frames.ICMP6 and p.kind == 136, timeout=0.5)
            break
        except TimeoutError:
            continue
    else:
        raise TimeoutError("the gateway never answered")
    segment = frames.udp(tap.ipv6, ADDRESS6, (port, PORT), b"who am I?")
    tap.send(tap.to6(answer[-1].source_mac, tap.ipv6, ADDRESS6, frames.UDP, segment))
    try:
        return tap.until(lambda p: p.ports == (PORT, port))[-1].payload == f"{UPLINK6}\n".encode()
    except TimeoutError:
        return False


def refused(client: Client) -> str:
    with pytest.raises(RefusalError) as refusal:
        client.acquire()
    assert refusal.value.name == "NotSupported"
    assert host.ours() == []
    return refusal.value.text


@pytest.mark.parametrize("broker", Flavour, indirect=True)
def test_single_interfaces_forward_and_no_longer(world: Outside, alices: Client) -> None:
    with alices.acquire() as lease:
        assert goes_out(lease.tap, 6101)
        assert switch("up0", "force_forwarding") == switch("svn_default", "forwarding") == "1"
        assert switch("all", "forwarding") == switch("up0", "forwarding") == "0"
    assert switch("up0", "force_forwarding") == "0"


def test_a_host_that_lives_by_advertisements_keeps_its_route(
    world: Outside, alices: Client
) -> None:
    advertise(world)
    text = refused(alices)
    assert "take the default route that up0 has by router advertisements" in text
    assert text.endswith("an administrator can set net.ipv6.conf.up0.accept_ra=2")
    assert by_advertisement()
    with pytest.raises(RefusalError, match="accept_ra=2"):
        alices.plan(network_tap())
    (CONF / "up0/accept_ra").write_text("2")
    with alices.acquire():
        assert by_advertisement()
        assert switch("up0", "force_forwarding") == "1"
    assert by_advertisement()


def test_the_kernel_would_have_taken_it(world: Outside) -> None:
    """What the refusal is about; where this fails it is not needed any more."""
    advertise(world)
    host.ip("link", "add", "dum0", "type", "bridge")
    try:
        (CONF / "dum0/forwarding").write_text("1")
        assert not by_advertisement()
    finally:
        host.ip("link", "del", "dum0")


def test_a_network_without_a_way_out_is_not_refused(
    world: Outside, alices: Client, broker: Broker
) -> None:
    advertise(world)
    broker.configure(NAT6.replace("nat6 = true\n", ""))
    with alices.acquire():
        assert by_advertisement()
        assert switch("svn_default", "forwarding") == "0"
    broker.configure(NAT6.replace("nat6 = true\n", 'mode = "open"\n'))
    with alices.acquire():
        assert by_advertisement()
        assert switch("svn_default", "forwarding") == "0"


def test_a_wish_for_the_whole_host_is_kept(world: Outside, alices: Client) -> None:
    (CONF / "all/forwarding").write_text("1")
    try:
        with alices.acquire() as lease:
            assert switch("up0", "force_forwarding") == "0"
            assert goes_out(lease.tap, 6102)
            # It comes and goes while guests are there; they keep the world.
            (CONF / "all/forwarding").write_text("0")
            alices.settle()
            assert switch("up0", "force_forwarding") == "1"
            assert goes_out(lease.tap, 6103)
            (CONF / "all/forwarding").write_text("1")
            alices.settle()
            assert host.elements("inet", "uplinks6") == []
            assert goes_out(lease.tap, 6104)
        assert switch("all", "forwarding") == "1"
    finally:
        (CONF / "all/forwarding").write_text("0")


def test_the_uplink_forwards_for_guests_only(world: Outside, alices: Client) -> None:
    host.ip("link", "add", "oth0", "type", "bridge")
    try:
        host.ip("address", "add", "2001:db8:77::1/64", "dev", "oth0", "nodad")
        host.ip("link", "set", "oth0", "up")
        world.run(["ip", "route", "add", "2001:db8:77::/64", "via", UPLINK6])
        with alices.acquire() as lease:
            assert goes_out(lease.tap, 6105)
            before = stray()
            program = (
                "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM);"
                "s.sendto(b'x', ('2001:db8:77::2', 9))"
            )
            world.run(["python3", "-c", program])
            assert goes_out(lease.tap, 6106)
            assert stray() == before + 1
    finally:
        host.ip("link", "del", "oth0")


def stray() -> int:
    text = host.nft("--json", "list", "counter", "inet", "sessionvirt", "stray")
    (counter,) = [row["counter"] for row in json.loads(text)["nftables"] if "counter" in row]
    return int(counter["packets"])


@pytest.mark.parametrize("overlap", ["2001:db8::/32", "fd60::/64"])
def test_a_route_of_the_host_is_not_overlapped(
    overlap: str, world: Outside, alices: Client, broker: Broker
) -> None:
    host.ip("link", "add", "ovl0", "type", "bridge")
    try:
        host.ip("link", "set", "ovl0", "up")
        host.ip("-6", "route", "add", overlap, "dev", "ovl0")
        if overlap.startswith("2001"):
            broker.configure('[network.default]\nmode = "route"\nipv6 = "2001:db8:61::1/64"\n')
        with pytest.raises(RefusalError, match="overlaps a route of the host by ovl0") as refusal:
            alices.acquire()
        assert refusal.value.name == "DeviceUnsafe"
        # A delegated prefix has a route to nowhere, of which our network is a part.
        host.ip("-6", "route", "del", overlap, "dev", "ovl0")
        host.ip("-6", "route", "add", "unreachable", overlap)
        try:
            with alices.acquire():
                pass
        finally:
            host.ip("-6", "route", "del", "unreachable", overlap)
    finally:
        host.ip("link", "del", "ovl0")

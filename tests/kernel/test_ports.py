# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's port of the bridge: it teaches the bridge nothing, and hears what is its own."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.client import network_tap
from lab.lan import lan_bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client
    from lab.tap import Tap

pytestmark = pytest.mark.kernel

ALICES, BOBS, STRANGER = "52:54:00:00:41:01", "52:54:00:00:41:02", "52:54:00:00:41:99"
BRIDGE = "svn_default"
GATEWAY = "10.213.80.1"


@pytest.fixture(scope="module")
def taps(lasting_broker: Broker, alices: Client, bobs: Client) -> Iterator[tuple[Tap, Tap]]:
    """One of alice's and one of bob's."""
    with (
        alices.acquire(network_tap(mac=ALICES)) as alice,
        bobs.acquire(network_tap(mac=BOBS)) as bob,
    ):
        yield alice.tap, bob.tap


#: Every way a frame can take into a bridge: flooded, to the host, and each group of IEEE 802.1D.
TARGETS = [
    frames.BROADCAST,
    "52:54:00:00:41:77",
    "33:33:00:00:00:01",
    *(f"01:80:c2:00:00:{last:02x}" for last in range(16)),
]


@pytest.mark.parametrize("target", TARGETS)
def test_the_bridge_learns_no_forged_address(target: str, taps: tuple[Tap, Tap]) -> None:
    alice, bob = taps
    packet = alice.udp4(target, GATEWAY, (4000, 4000))[14:]
    for forged in (STRANGER, bob.mac, host.link(BRIDGE)["address"]):
        alice.send(frames.ethernet(target, forged, frames.IPV4, packet))
    known = host.fdb(BRIDGE)
    assert STRANGER not in known
    assert known[alice.mac] == alice.ifname
    assert known[bob.mac] == bob.ifname
    assert known[host.link(BRIDGE)["address"]] == BRIDGE


@pytest.mark.parametrize("last", range(16))
def test_no_group_of_the_bridge_leads_around_the_filter(last: int, taps: tuple[Tap, Tap]) -> None:
    # The bridge gives some of these to the port's own layer 3.
    alice, _ = taps
    target = f"01:80:c2:00:00:{last:02x}"
    own6 = f"{frames.link_local('fe' + alice.mac[2:])}%{alice.ifname}"
    with (
        host.listener(GATEWAY, 4040, socket.SOCK_DGRAM) as service,
        host.listener("::", 4040, socket.SOCK_DGRAM) as service6,
    ):
        alice.send(alice.udp4(target, GATEWAY, (4040, 4040), b"around"))
        source, to = alice.link_local, own6.partition("%")[0]
        segment = frames.udp(source, to, (4040, 4040), b"around")
        alice.send(alice.to6(target, source, to, frames.UDP, segment))
        # Delivery is over when send() returns; only what is there already can come.
        for one in (service, service6):
            with pytest.raises(BlockingIOError):
                one.recv(100)


def test_a_port_has_no_address_of_its_own(taps: tuple[Tap, Tap]) -> None:
    for tap in taps:
        assert "inet" not in host.ip("address", "show", "dev", tap.ifname)


def test_nobody_hears_what_the_gateway_sends_to_another(taps: tuple[Tap, Tap]) -> None:
    # alice's guest has not said a word: a bridge that learns would ask every port.
    alice, bob = taps
    host.ip("neigh", "replace", alice.ipv4, "lladdr", alice.mac, "dev", BRIDGE)
    bob.waiting()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"for alice", (alice.ipv4, 4000))
    alice.until(lambda p: p.payload == b"for alice")
    assert not [p for p in bob.waiting() if p.payload == b"for alice"]
    # A guest can make the bridge forget another's address; then it asks every port.
    command = ["bridge", "fdb", "del", alice.mac, "dev", alice.ifname, "master"]
    subprocess.run(command, check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"still for alice", (alice.ipv4, 4000))
    alice.until(lambda p: p.payload == b"still for alice")
    assert not [p for p in bob.waiting() if p.payload == b"still for alice"]
    subprocess.run([*command[:2], "add", *command[3:], "static"], check=True)
    host.ip("neigh", "del", alice.ipv4, "dev", BRIDGE)


def test_no_guest_cuts_another_off_by_asking_for_groups(taps: tuple[Tap, Tap]) -> None:
    """A bridge that believes in a querier gives groups to those only who have said they want them.

    One query of alice's, and the gateway's neighbour solicitation would reach alice, and not bob.
    """
    alice, bob = taps
    alice.send(*queries(alice))
    host.ip("neigh", "flush", "dev", BRIDGE)
    for tap in taps:
        tap.waiting()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"for bob", (bob.ipv6, 4000))
    group = frames.solicited_node(bob.ipv6)
    bob.until(lambda p: p.protocol == frames.ICMP6 and p.kind == 135 and p.target == group)
    assert mcast_routers(BRIDGE) == []


def test_no_guest_is_a_router_on_a_lan_bridge_that_snoops(
    lasting_broker: Broker, alices: Client
) -> None:
    lasting_broker.configure("[bridge.br8]\n")
    with (
        lan_bridge("br8"),
        alices.acquire(network_tap("", bridge="br8"), vm="lan") as lease,
    ):
        snooping = Path("/sys/class/net/br8/bridge/multicast_snooping")
        assert snooping.read_text() == "1\n"
        tap = lease.tap
        tap.facts = {**tap.facts, "ipv4": ["192.0.2.8"], "ipv6": ["2001:db8::8"]}
        tap.send(*queries(tap))
        assert mcast_routers("br8") == []
        assert lease.drops() == {"router": 4}


def queries(tap: Tap) -> list[bytes]:
    """Every way to ask who is in a group that a bridge understands."""
    igmp, source = frames.igmp(0x11, "0.0.0.0"), tap.link_local
    mld = frames.mld(source, "ff02::1", 130)
    plain = frames.router_alert(frames.ICMP6) + mld
    hidden = frames.router_alert(frames.AUTHENTICATION) + frames.authentication(frames.ICMP6) + mld
    all4, all6 = frames.multicast_mac("224.0.0.1"), frames.multicast_mac("ff02::1")
    found = [tap.to4(all4, "224.0.0.1", frames.IGMP, igmp, offset=at) for at in (0, 8)]
    for payload in (plain, hidden):
        frame = tap.to6(all6, source, "ff02::1", frames.HOP_BY_HOP, payload)
        found.append(frame[:21] + b"\1" + frame[22:])  # hop limit 1, or it is no MLD
    return found


def mcast_routers(bridge: str) -> list[str]:
    """The ports that the bridge takes for a router's."""
    shown = subprocess.run(
        ["bridge", "-details", "-json", "mdb", "show", "dev", bridge],
        stdout=subprocess.PIPE,
        check=True,
    )
    routers = json.loads(shown.stdout)[0].get("router", {})
    return [port["port"] for ports in routers.values() for port in ports]


def test_ports_are_what_no_guest_can_make_them(taps: tuple[Tap, Tap]) -> None:
    for tap in taps:
        port = Path("/sys/class/net", tap.ifname, "brport")
        settings = {name: (port / name).read_text().strip() for name in ("learning", "bpdu_guard")}
        assert settings == {"learning": "0", "bpdu_guard": "1"}
        assert (port / "hairpin_mode").read_text() == "0\n"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's port of the bridge: it teaches the bridge nothing, and hears what is its own."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.client import network_tap

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


def test_ports_are_what_no_guest_can_make_them(taps: tuple[Tap, Tap]) -> None:
    for tap in taps:
        port = Path("/sys/class/net", tap.ifname, "brport")
        settings = {name: (port / name).read_text().strip() for name in ("learning", "bpdu_guard")}
        assert settings == {"learning": "0", "bpdu_guard": "1"}
        assert (port / "hairpin_mode").read_text() == "0\n"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Isolated ports: nothing passes between two of them, of one user's guests neither."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.client import network_tap
from lab.lan import lan_bridge, lan_host
from lab.onlan import with_address
from lab.stage import Flavour

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.client import Client, Lease
    from lab.tap import Tap

pytestmark = pytest.mark.kernel


def passes(sender: Tap, receiver: Tap, witness: Tap) -> bool:
    """Whether a datagram and a broadcast arrive; all or nothing holds.

    :param witness: whose own datagram, sent after them, the receiver knows the end by.
    """
    mac, address = receiver.mac, receiver.ipv4
    sender.send(
        sender.udp4(mac, address, (7000, 7000), b"asked"),
        frames.arp(1, sender.mac, sender.ipv4, address),
    )
    witness.send(witness.udp4(mac, address, (7001, 7001), b"end"))
    seen = receiver.until(lambda p: p.payload == b"end")
    found = {
        any(p.payload == b"asked" for p in seen),
        any(p.ethertype == frames.ARP and p.source == sender.ipv4 for p in seen),
    }
    assert len(found) == 1
    return found.pop()


def taps(first: Lease, second: Lease, plain: Lease) -> tuple[Tap, Tap, Tap]:
    return first.tap, second.tap, plain.tap


@pytest.mark.parametrize("broker", Flavour, indirect=True)
def test_on_a_managed_network(broker: Broker, alices: Client) -> None:
    apart = network_tap(isolated=True)
    assert any("isolated" in do for do, _ in alices.plan(apart)["steps"].value)
    with (
        alices.acquire(apart, vm="one") as first,
        alices.acquire(apart, vm="two") as second,
        alices.acquire(network_tap(), vm="three") as third,
    ):
        one, two, plain = taps(first, second, third)
        assert [tap.facts["isolated"] for tap in (one, two, plain)] == [True, True, False]
        assert not passes(one, two, plain)
        assert not passes(two, one, plain)
        assert passes(one, plain, two)
        assert passes(plain, one, plain)
        # Nor by the gateway.
        gateway = one.ask_arp("10.213.80.1")
        two.waiting()
        one.send(one.udp4(gateway, two.ipv4, (7002, 7002), b"hairpin"))
        plain.send(plain.udp4(two.mac, two.ipv4, (7003, 7003), b"end"))
        seen = two.until(lambda p: p.payload == b"end")
        assert not [p for p in seen if p.payload == b"hairpin"]


def test_on_a_bridge_of_the_lan(broker: Broker, alices: Client) -> None:
    broker.configure("[bridge.br5]\n")
    apart = network_tap("", bridge="br5", isolated=True)
    with (
        lan_bridge("br5"),
        lan_host("br5") as neighbour,
        alices.acquire(apart, vm="one") as first,
        alices.acquire(apart, vm="two") as second,
        alices.acquire(network_tap("", bridge="br5"), vm="three") as third,
    ):
        one, two, plain = taps(first, second, third)
        for number, tap in enumerate((one, two, plain), 1):
            with_address(tap, f"192.0.2.{number}")
        assert not passes(one, two, plain)
        assert passes(one, plain, two)
        one.send(one.udp4(neighbour.mac, "192.0.2.9", (7000, 7000), b"to the LAN"))
        neighbour.until(lambda p: p.payload == b"to the LAN")


def test_one_that_is_made_reachable_ends(broker: Broker, alices: Client) -> None:
    with alices.acquire(network_tap(isolated=True)) as lease:
        Path("/sys/class/net", lease.tap.ifname, "brport/isolated").write_text("0")
        alices.settle()
        assert alices.leases() == []
        assert host.ours() == []
    with alices.acquire(network_tap(isolated=True)) as lease:
        broker.kill()
        Path("/sys/class/net", lease.tap.ifname, "brport/isolated").write_text("0")
        broker.start()
        assert alices.leases() == []

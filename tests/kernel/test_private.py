# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network that each user has for himself."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.client import RefusalError, network_tap
from lab.namespaces import PEOPLE
from lab.outside import ADDRESS4, PORT, UPLINK4, Outside
from lab.stage import Flavour

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.client import Client
    from lab.polkit import Polkit
    from lab.tap import Tap

pytestmark = pytest.mark.kernel

ALICE, BOB = (person.uid for person in PEOPLE[:2])


def gateway(tap: Tap) -> str:
    """The first address of its /24."""
    return str(ipaddress.ip_network(f"{tap.ipv4}/24", strict=False)[1])


def test_guests_of_one_user_are_together_and_of_two_are_apart(
    broker: Broker, alices: Client, bobs: Client
) -> None:
    private = network_tap("private")
    with (
        Outside(),
        alices.acquire(private, vm="one") as one,
        alices.acquire(private, vm="two") as two,
        bobs.acquire(private, vm="his") as his,
    ):
        assert host.ours() == sorted(
            [f"svn_u{ALICE}", f"svn_u{BOB}", one.tap.ifname, two.tap.ifname, his.tap.ifname]
        )
        for lease in (one, two, his):
            assert lease.tap.facts["network"] == "private"
            lease.tap.attentive = True
        networks = {gateway(lease.tap) for lease in (one, two, his)}
        assert len(networks) == 2
        pool = ipaddress.ip_network("10.214.0.0/16")
        assert all(ipaddress.ip_address(each) in pool for each in networks)
        assert one.tap.ipv6[:19] == two.tap.ipv6[:19] != his.tap.ipv6[:19]
        assert one.tap.reaches(two.tap, one.tap.udp4(two.tap.mac, two.tap.ipv4, (7, 7)))

        mac = one.tap.ask_arp(gateway(one.tap))
        his.tap.ask_arp(gateway(his.tap))
        his.tap.waiting()
        one.tap.send(one.tap.udp4(mac, his.tap.ipv4, (7100, 7100), b"across"))
        one.tap.send(one.tap.udp4(mac, ADDRESS4, (6001, PORT), b"who am I?"))
        answer = one.tap.until(lambda p: p.ports == (PORT, 6001))[-1]
        assert answer.payload == f"{UPLINK4}\n".encode()
        assert his.tap.ask_arp(gateway(his.tap))
        assert [p for p in his.tap.waiting() if p.payload == b"across"] == []
    assert host.ours() == []


def test_it_is_the_same_network_each_time(broker: Broker, alices: Client) -> None:
    def once() -> tuple[str, str]:
        with alices.acquire(network_tap("private")) as lease:
            return lease.tap.ipv4, lease.tap.ipv6

    first = once()
    broker.restart()
    assert once() == first


def test_it_is_listed_as_it_would_be_and_as_it_is(
    broker: Broker, alices: Client, bobs: Client
) -> None:
    before = alices.networks()["private"]
    assert (before["bridge"], before["up"], before["mode"]) == (f"svn_u{ALICE}", False, "nat")
    with alices.acquire(network_tap("private")) as lease:
        now = alices.networks()["private"]
        assert now == {**before, "up": True, "leases": 1}
        assert now["ipv4"] == [f"{gateway(lease.tap)}/24"]
        assert bobs.networks()["private"]["leases"] == 0
        assert bobs.networks()["private"]["bridge"] == f"svn_u{BOB}"


def test_root_is_shown_everybodys_that_is_up(broker: Broker, alices: Client, bobs: Client) -> None:
    with (
        alices.acquire(network_tap("private"), network_tap("private"), vm="hers") as hers,
        bobs.acquire(network_tap("private"), vm="his") as his,
    ):
        output = subprocess.check_output(["sessionvirt", "networks", "private", "--json"])
        found = {one["bridge"]: one for one in json.loads(output)["networks"]}
        assert list(found) == ["svn_u0", f"svn_u{ALICE}", f"svn_u{BOB}"]
        assert [one["up"] for one in found.values()] == [False, True, True]
        assert [one["leases"] for one in found.values()] == [0, 2, 1]
        taps = [sorted(tap.mac for tap in lease.taps) for lease in (hers, his)]
        shown = [sorted(nic["mac"] for nic in one["interfaces"]) for one in found.values()]
        assert shown == [[], *taps]
        assert alices.networks()["private"]["bridge"] == f"svn_u{ALICE}"
        assert alices.networks()["private"]["leases"] == 2


@pytest.mark.parametrize("broker", Flavour, indirect=True)
def test_a_route_of_the_host_is_passed_over(broker: Broker, alices: Client) -> None:
    usual = alices.networks()["private"]["ipv4"]
    prefix = ipaddress.ip_interface(usual[0]).network
    host.ip("link", "add", "ovl0", "type", "bridge")
    try:
        host.ip("link", "set", "ovl0", "up")
        host.ip("address", "add", f"{prefix[77]}/28", "dev", "ovl0")
        with alices.acquire(network_tap("private")) as lease:
            assert ipaddress.ip_address(lease.tap.ipv4) not in prefix
            assert lease.tap.ask_arp(gateway(lease.tap))
    finally:
        host.ip("link", "del", "ovl0")
    assert alices.networks()["private"]["ipv4"] == usual


def test_leases_go_on_over_a_crash(broker: Broker, alices: Client) -> None:
    with alices.acquire(network_tap("private")) as lease:
        broker.restart()
        with alices.acquire(network_tap("private"), vm="other") as other:
            assert gateway(lease.tap) == gateway(other.tap)
            lease.tap.attentive = other.tap.attentive = True
            frame = frames.arp(1, lease.tap.mac, lease.tap.ipv4, other.tap.ipv4)
            assert lease.tap.reaches(other.tap, frame)
    assert host.ours() == []


def test_it_can_be_switched_off(broker: Broker, alices: Client) -> None:
    with alices.acquire(network_tap("private")) as lease:
        broker.configure("[private]\nenabled = false\n")
        assert "private" not in alices.networks()
        with pytest.raises(RefusalError, match="no network private") as refusal:
            alices.acquire(network_tap("private"), vm="more")
        assert refusal.value.name == "NotFound"
        assert lease.tap.ask_arp(gateway(lease.tap))  # what there is stays


def test_limits_hold(broker: Broker, alices: Client) -> None:
    broker.configure("[limits]\ntaps_per_user = 1\n")
    with (
        alices.acquire(network_tap("private")),
        pytest.raises(RefusalError, match="taps_per_user"),
    ):
        alices.acquire(network_tap("private"), vm="more")


def test_polkit_is_told_which_network_it_is(broker: Broker, polkit: Polkit, alices: Client) -> None:
    polkit.rules(
        'polkit.addRule(function (action) { return action.lookup("network") === "private"'
        ' && action.id === "org.sessionvirt.broker1.network-attach"'
        " ? polkit.Result.YES : polkit.Result.NO; });"
    )
    with alices.acquire(network_tap("private")):
        pass
    with pytest.raises(RefusalError) as refusal:
        alices.acquire(network_tap("default"))
    assert refusal.value.name == "NotAuthorized"


@pytest.mark.parametrize("name", [f"u{ALICE}", f"u{BOB}"])
def test_a_users_bridge_is_nobodys_by_its_name(name: str, broker: Broker, bobs: Client) -> None:
    with pytest.raises(RefusalError) as refusal:
        bobs.acquire(network_tap(name))
    assert refusal.value.name == "NotFound"

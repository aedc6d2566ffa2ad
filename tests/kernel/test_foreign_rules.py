# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other firewalls' rules that stop a guest: named by the broker, and mended by what doctor says."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from dbus_fast import Variant

from lab import host
from lab.outside import ADDRESS4, PORT, Outside
from sessionvirt.broker_data import Obstacle
from sessionvirt.cli.firewallchecks import mend
from sessionvirt.host.firewalls import Presence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client, Lease

pytestmark = pytest.mark.kernel

GATEWAY = "10.213.80.1"
NOBODY = Presence(docker=False, ufw=False, firewalld=False)

#: Docker's nftables backend has a base chain of its own, which is about its own bridges.
DOCKER = """
table ip docker-bridges {
  map filter-forward-in-jumps {
    type ifname : verdict
    elements = { "docker0" : jump filter-forward-in__docker0 }
  }
  chain filter-forward-in__docker0 {
    ct state established,related accept
    drop
  }
  chain filter-FORWARD {
    type filter hook forward priority filter; policy accept;
    oifname vmap @filter-forward-in-jumps
  }
}
"""
POLICY = """
table ip filter {
  chain DOCKER-USER {
    return
  }
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
    jump DOCKER-USER
    oifname "docker0" ct state established,related accept
  }
}
"""
ADMINISTRATORS = """
table inet filter {
  set trusted {
    type ifname
    elements = { "lo" }
  }
  chain sorted {
    meta l4proto { tcp, udp } th dport 1-60000 reject
  }
  chain forward {
    type filter hook forward priority 5; policy accept;
    ct state vmap { established : accept, related : accept, invalid : drop }
    iifname @trusted accept
    iifname "svn_*" goto sorted
  }
}
"""
ANSWERS = """
table inet filter {
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname != "svn_*" oifname "svn_*" tcp flags != ack drop
    oifname "svn_default" drop
  }
}
"""


@pytest.fixture(scope="module")
def lease(lasting_broker: Broker, alices: Client) -> Iterator[Lease]:
    with Outside(), alices.acquire(vm="web") as lease:
        yield lease
    lasting_broker.wait_until_idle()


def obstacles(client: Client, **options: str) -> list[Obstacle]:
    sent = {key: Variant("s", value) for key, value in options.items()}
    rows = client.call("ListObstacles", "a{sv}", sent).body[0]
    return [Obstacle(**{key: one.value for key, one in row.items()}) for row in rows]


def reaches_outside(lease: Lease) -> bool:
    tap = lease.tap
    tap.send(tap.tcp4(tap.ask_arp(GATEWAY), ADDRESS4, (next(_ports), PORT)))
    return not tap.silent(lambda p: p.source == ADDRESS4 and p.flags == 0x12)


_ports = iter(range(40000, 50000))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (POLICY, [("out", "ip filter FORWARD", 0), ("in", "ip filter FORWARD", 0)]),
        (ADMINISTRATORS, [("out", "inet filter sorted", 1)]),
        (ANSWERS, [("in", "inet filter forward", 2)]),
    ],
    ids=["policy", "rule", "answers"],
)
def test_the_rule_that_stops_a_guest_is_named_and_mended(
    rules: str, expected: list[tuple[str, str, int]], lease: Lease, alices: Client
) -> None:
    assert reaches_outside(lease)
    (words,) = [line.split()[1:3] for line in rules.splitlines() if line.startswith("table")]
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        before = host.nft("list", "ruleset")
        assert not reaches_outside(lease)
        found = [one for one in obstacles(alices) if one.certainty != "possible"]
        listed = [
            (one.traffic, f"{one.family} {one.table} {one.chain}", bool(one.handle))
            for one in found
        ]
        assert listed == [(traffic, place, bool(rule)) for traffic, place, rule in expected]
        assert {one.certainty for one in found} == {"certain"}
        for one in found:
            assert not one.handle or f"# handle {one.handle}" in host.nft(
                "--handle", "list", "chain", one.family, one.table, one.chain
            )
        assert host.nft("list", "ruleset").split("packets")[0] == before.split("packets")[0]
        command = mend(found[0], {one.traffic for one in found}, NOBODY).command
        subprocess.run(command, shell=True, check=True)
        assert reaches_outside(lease)
        assert [one for one in obstacles(alices) if one.certainty != "possible"] == []
    finally:
        host.nft("delete", "table", *words)


def test_what_is_about_others_bridges_is_no_obstacle(lease: Lease, alices: Client) -> None:
    subprocess.run(["nft", "-f", "-"], input=DOCKER, text=True, check=True)
    try:
        assert obstacles(alices, vm="web") == []
    finally:
        host.nft("delete", "table", "ip", "docker-bridges")


def test_everybody_is_told_of_his_own_only(lease: Lease, alices: Client, bobs: Client) -> None:
    subprocess.run(["nft", "-f", "-"], input=POLICY, text=True, check=True)
    try:
        assert {one.vm for one in obstacles(alices)} == {"web"}
        assert obstacles(alices, vm="other") == []
        assert obstacles(bobs) == []
        assert obstacles(bobs, vm="web") == []
    finally:
        host.nft("delete", "table", "ip", "filter")

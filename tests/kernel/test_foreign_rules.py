# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other firewalls' rules that stop a guest: named by the broker, and mended by what doctor says."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from dbus_fast import Variant

from lab import host
from lab.client import Client, RefusalError
from lab.doctoring import gets_out
from lab.flushing import once
from lab.outside import ADDRESS4, PORT, Outside
from lab.users import User
from sessionvirt.broker_data import Obstacle, TraceStep
from sessionvirt.cli.firewallchecks import mend
from sessionvirt.host.firewalls import Presence
from sessionvirt_broker.tracewatch import MARKS, TABLE, Step, TraceWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.broker import Broker
    from lab.client import Lease

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
    return gets_out(lease.tap)


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


def test_a_ruleset_that_is_larger_than_the_broker_is_not_read(
    lease: Lease, alices: Client, lasting_broker: Broker
) -> None:
    """libnftables makes 12 kB of each rule, and the unit has 256 MB."""
    status = f"/proc/{lasting_broker.daemon.pid}/status"

    def kilobytes() -> int:
        with open(status, encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

    rules = "".join(f"    tcp dport {port} accept\n" for port in range(1, 12001))
    text = POLICY + "table inet huge {\n  chain forward {\n    type filter hook forward"
    text += f" priority 0; policy drop;\n{rules}  }}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
    try:
        before = kilobytes()
        found = {(one.table, one.chain, one.certainty) for one in obstacles(alices)}
        assert found == {("filter", "FORWARD", "certain"), ("huge", "forward", "possible")}
        assert kilobytes() - before < 60_000
    finally:
        host.nft("delete", "table", "inet", "huge")
        host.nft("delete", "table", "ip", "filter")


# A packet followed


def follow(client: Client, lease: Lease, meanwhile: Callable[[], object]) -> list[dict[str, Any]]:
    """Trace for a second, in which the guest sends; without the rows of our own tables."""
    options = {
        "to": Variant("s", ADDRESS4),
        "port": Variant("u", PORT),
        "seconds": Variant("u", 1),
    }

    async def both() -> Any:
        call = asyncio.ensure_future(client.ask("Trace", "a{sv}", options, lease=lease))
        await under_way()
        meanwhile()
        return await call

    rows = client.run(both()).body[0]
    assert "inet sessionvirt_trace" not in host.tables()
    steps = [{key: one.value for key, one in row.items()} for row in rows]
    assert all(TraceStep(**one) for one in steps)  # it has these keys and no others
    return steps


async def under_way() -> None:
    """Nobody says that a trace has begun but its table."""
    while "inet sessionvirt_trace" not in host.tables():  # noqa: ASYNC110
        await asyncio.sleep(0)


def test_a_packet_is_followed_to_the_rule_that_drops_it(lease: Lease, alices: Client) -> None:
    subprocess.run(["nft", "-f", "-"], input=ADMINISTRATORS, text=True, check=True)
    try:
        tap = lease.tap
        syn = tap.tcp4(tap.ask_arp(GATEWAY), ADDRESS4, (next(_ports), PORT))
        steps = follow(alices, lease, lambda: tap.send(syn))
        # Answers to earlier connections may come between, and have their numbers.
        sent = [one for one in steps if one["direction"] == "out"]
        last = sent[-1]
        assert (last["packet"], last["verdict"]) == (sent[0]["packet"], "drop")
        assert (last["family"], last["table"], last["chain"]) == ("inet", "filter", "sorted")
        assert last["type"] == "rule"
        assert f"# handle {last['handle']}" in host.nft(
            "--handle", "list", "chain", "inet", "filter", "sorted"
        )
        assert {"forward", "prerouting"} & {one["hook"] for one in steps}
    finally:
        host.nft("delete", "table", "inet", "filter")


def test_a_packet_is_followed_out_and_its_answer_back(lease: Lease, alices: Client) -> None:
    def passing() -> None:
        assert reaches_outside(lease)

    steps = follow(alices, lease, passing)
    assert {one["direction"] for one in steps} == {"out", "in"}
    assert len({one["packet"] for one in steps if one["direction"] == "out"}) == 1
    assert all(one["verdict"] != "drop" for one in steps)
    assert {one["table"] for one in steps} >= {"sessionvirt"}


def test_of_a_flood_no_more_is_followed_than_is_told(lease: Lease, alices: Client) -> None:
    tap = lease.tap
    packet = tap.tcp4(tap.ask_arp(GATEWAY), ADDRESS4, (next(_ports), PORT))
    told: list[Step] = []
    with contextlib.closing(TraceWatch()) as watch:

        def flood() -> None:
            for _ in range(500):
                tap.send(packet)
                told.extend(watch.told())

        follow(alices, lease, flood)
    marked = [one for one in told if (one.table, one.chain) == (TABLE, MARKS["out"])]
    assert 32 <= sum(one.kind == "rule" for one in marked) <= 3 * 32


def test_who_leaves_takes_the_trace_along(lease: Lease, alices: Client) -> None:
    with pytest.raises(RefusalError) as missing:
        alices.call("Trace", "a{sv}", {}, lease=lease)
    assert missing.value.name == "InvalidArgs"
    alice = User.named("alice")
    with Client(alice) as other, Client(alice) as late:
        options = {"to": Variant("s", ADDRESS4), "seconds": Variant("u", 60)}

        async def begin() -> None:
            call = asyncio.ensure_future(other.ask("Trace", "a{sv}", options, lease=lease))
            await under_way()
            call.cancel()

        other.run(begin())
        with pytest.raises(RefusalError) as second:
            late.call("Trace", "a{sv}", options, lease=lease)
        assert second.value.name == "Busy"
    once(lambda: "inet sessionvirt_trace" not in host.tables(), alices)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Somebody takes our rules away while guests run: they are back at once, or it is said."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.brokerlog import Log
from lab.client import direct, network_tap
from lab.direct import wired
from lab.flushing import degraded, flush_until_given_up, once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client, Lease

pytestmark = pytest.mark.kernel

GATEWAY = "10.213.80.1"
STRANGER = "52:54:00:00:00:66"
WIRE = "wire7"


def rules() -> str:
    """All of ours, without what counts; in no order, which sets have not either."""
    words = host.nft("--stateless", "list", "ruleset").replace(",", " ").split()
    return " ".join(sorted(words))


def handle() -> str:
    listed = host.nft("--handle", "list", "chain", "bridge", "sessionvirt", "prerouting")
    return listed.rpartition("iifname")[2].rpartition("# handle ")[2].split()[0]


@pytest.fixture
def lease(broker: Broker, alices: Client) -> Iterator[Lease]:
    """Two TAPs and a macvtap device."""
    broker.configure(f"[direct.{WIRE}]\n")
    broker.restart()  # one that has put nothing back yet
    wire = direct(device=WIRE, mac="52:54:00:00:70:01")
    with wired(WIRE):
        with alices.acquire(network_tap(), network_tap(), wire) as lease:
            yield lease
        broker.wait_until_idle()


def honest_pass_and_forged_do_not(lease: Lease, alices: Client) -> None:
    one, two, wire = lease.taps
    before = lease.drops().get("mac", 0)
    honest = one.udp4(two.mac, two.ipv4, (4000, 4001), b"honest")
    assert one.reaches(two, honest)
    assert not one.reaches(two, honest[:6] + frames.mac_bytes(STRANGER) + honest[12:])
    assert one.ask_arp(GATEWAY)
    wire.send(frames.arp(1, STRANGER, "192.0.2.11", "192.0.2.97"))
    assert lease.drops()["mac"] == before + 2


#: No more in one life of a broker than it takes for accidents.
AWAY: dict[str, list[tuple[str, ...]]] = {
    "whole": [
        ("flush", "ruleset"),
        ("delete", "table", "bridge", "sessionvirt"),
        ("delete", "table", "inet", "sessionvirt"),
        ("delete", "table", "netdev", "sessionvirt"),
    ],
    "parts": [
        ("flush", "set", "bridge", "sessionvirt", "addresses4"),
        ("flush", "set", "netdev", "sessionvirt", "macs"),
        ("delete", "rule", "bridge", "sessionvirt", "prerouting", "handle", "HANDLE"),
        ("replace", "rule", "bridge", "sessionvirt", "prerouting", "handle", "HANDLE", "accept"),
        ("insert", "rule", "inet", "sessionvirt", "input", "accept"),
    ],
}


@pytest.mark.parametrize("away", AWAY)
def test_f63_what_somebody_takes_away_is_back(
    away: str, lease: Lease, alices: Client, broker: Broker
) -> None:
    before = rules()
    for words in AWAY[away]:
        log = Log()
        host.nft(*(handle() if word == "HANDLE" else word for word in words))
        once(lambda: rules() == before, alices)
        assert len(log.lines("rules-restored")) == (2 if words[-1] == "ruleset" else 1)
        honest_pass_and_forged_do_not(lease, alices)
    assert degraded(alices) == ""


def test_f63_what_was_taken_away_without_a_broker_is_back_with_it(
    lease: Lease, alices: Client, broker: Broker
) -> None:
    before = rules()
    for words in (*AWAY["whole"][:2], *AWAY["parts"][2:3]):
        broker.kill()
        host.nft(*(handle() if word == "HANDLE" else word for word in words))
        broker.start()
        assert rules() == before
    honest_pass_and_forged_do_not(lease, alices)


def test_f63_who_flushes_for_ever_is_not_fought_for_ever(
    lease: Lease, alices: Client, bobs: Client, broker: Broker
) -> None:
    log = Log()
    assert flush_until_given_up(alices) == 6
    assert "more than 5 times" in degraded(alices)
    (line,) = log.lines("rules-lost")
    assert "more than 5 times" in line
    # It answers, and whoever asks for something next has everybody's put back.
    with bobs.acquire() as other:
        assert other.tap.ask_arp(GATEWAY)
        assert other.listed()["degraded"].value
        honest_pass_and_forged_do_not(lease, alices)
    broker.restart()
    assert degraded(alices) == ""


def test_f63_what_others_do_to_their_own_makes_no_work(
    lease: Lease, alices: Client, bobs: Client, broker: Broker
) -> None:
    log = Log()
    with bobs.acquire():
        pass  # nor does what the broker itself does to its own
    before = cpu_seconds(broker.daemon.pid)
    elements = ", ".join(f"10.{n >> 8}.{n & 255}.1" for n in range(10_000))
    text = "table ip docker {\n set s {\n type ipv4_addr\n }\n chain c {\n }\n}\n"
    text += f"add element ip docker s {{ {elements} }}\n"
    text += "add rule ip docker c ip saddr @s drop\n" * 100
    try:
        for _ in range(3):
            subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
            host.nft("delete", "table", "ip", "docker")
        # A table of others' that is called nearly as ours is, and one of another family.
        for family, name in (("inet", "sessionvirtual"), ("ip", "sessionvirt")):
            host.nft("add", "table", family, name)
            host.nft("delete", "table", family, name)
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "docker"], capture_output=True, check=False)
    alices.settle()
    assert log.lines("rules") == []
    assert cpu_seconds(broker.daemon.pid) - before < 0.5


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors, utime and stime of proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_f64_a_foreign_table_in_the_place_of_ours_is_said_and_not_touched(
    lease: Lease, alices: Client, broker: Broker
) -> None:
    try:
        text = "delete table inet sessionvirt\nadd table inet sessionvirt\n"
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
        once(lambda: bool(degraded(alices)), alices)
        assert "foreign" in degraded(alices)
        assert "chain" not in host.nft("list", "table", "inet", "sessionvirt")
    finally:
        host.nft("delete", "table", "inet", "sessionvirt")
    broker.restart()
    assert degraded(alices) == ""
    honest_pass_and_forged_do_not(lease, alices)


def test_f65_a_trace_that_a_broker_did_not_live_to_end_goes_with_the_next_start(
    broker: Broker,
) -> None:
    broker.kill()
    host.nft("add", "table", "inet", "sessionvirt_trace")
    broker.start()
    assert "inet sessionvirt_trace" not in host.tables()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest may receive and send in a second, by real packets and the clock."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.client import RefusalError, network_tap
from lab.tap import HEADER
from lab.throttled import (
    GATEWAY,
    TABLE,
    WINDOW,
    add,
    bandwidth,
    flow,
    guest_reads_tcp,
    is_queued,
    known_to_gateway,
    rate_of,
    settles_at,
    to_guest,
)
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client, Lease

pytestmark = pytest.mark.kernel


@pytest.fixture
def lease(lasting_broker: Broker, alices: Client) -> Iterator[Lease]:
    """A guest with two queues, which the gateway knows."""
    with alices.acquire(network_tap(queues=2)) as lease, known_to_gateway(lease.tap):
        yield lease


def test_datagrams_come_at_the_rate_that_was_asked_for(lease: Lease) -> None:
    (grant,) = add(lease, bandwidth(inbound_average=2000))
    assert grant["id"] == "bandwidth1"
    assert grant["tap"] == "tap0"
    assert grant["inbound_average"] == 2000
    with to_guest(lease.tap):
        assert settles_at(lambda: rate_of(lease.tap), 2_000_000)


def test_a_change_is_in_force_at_once_and_the_former_again_when_it_is_given_back(
    lease: Lease,
) -> None:
    add(lease, bandwidth(inbound_average=1000))
    tap = lease.tap
    with to_guest(tap):
        assert settles_at(lambda: rate_of(tap), 1_000_000)
        add(lease, bandwidth(inbound_average=4000))
        assert settles_at(lambda: rate_of(tap), 4_000_000)
        lease.drop("bandwidth1")
        assert settles_at(lambda: rate_of(tap), 4_000_000)
        add(lease, bandwidth(inbound_average=2000))
        lease.drop("bandwidth3")
        assert settles_at(lambda: rate_of(tap), 4_000_000)
        lease.drop("bandwidth2")
        assert rate_of(tap) > 8_000_000
    assert not is_queued(tap.ifname)


@pytest.mark.parametrize(
    ("kind", "size"),
    [(socket.SOCK_DGRAM, 200), (socket.SOCK_DGRAM, 3000), (socket.SOCK_RAW, 200)],
    ids=["answer", "fragments", "ping"],
)
def test_no_service_of_the_host_waits_for_a_slow_guest(
    kind: socket.SocketKind, size: int, lease: Lease
) -> None:
    """Its one socket would be full of what waits for that guest, and answer nobody."""
    add(lease, bandwidth(inbound_average=1))
    protocol = socket.IPPROTO_ICMP if kind is socket.SOCK_RAW else 0
    with socket.socket(socket.AF_INET, kind, protocol) as service:
        service.settimeout(0)
        if not protocol:
            service.bind((GATEWAY, 123))
        for _ in range(1000):
            service.sendto(bytes(size), (lease.tap.ipv4, 5000))


def test_tcp_comes_at_the_rate_that_was_asked_for(lease: Lease) -> None:
    add(lease, bandwidth(inbound_average=2000))
    tap = lease.tap
    with guest_reads_tcp(tap) as rate:
        assert settles_at(rate, 2_000_000)


def test_what_a_guest_sends_comes_at_the_rate_that_was_asked_for(lease: Lease) -> None:
    add(lease, bandwidth(outbound_average=1000))
    tap = lease.tap
    gateway = str(host.link("svn_default")["address"])
    frame = HEADER + tap.udp4(gateway, GATEWAY, (7000, 7000), bytes(1372))
    counter = "/sys/class/net/svn_default/statistics/rx_bytes"

    def count() -> int:
        with open(counter, encoding="ascii") as file:
            return int(file.read())

    def rate() -> float:
        begin, before = time.monotonic(), count()
        time.sleep(WINDOW)
        return (count() - before) / (time.monotonic() - begin)

    with flow(lambda: os.write(tap.fds[0], frame)):
        # The bucket, a second's worth, is full at the beginning.
        deadline, first = time.monotonic() + 10, count()
        while count() - first < 1_100_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert settles_at(rate, 1_000_000)


def test_it_comes_with_the_tap_and_goes_with_it(lasting_broker: Broker, alices: Client) -> None:
    wanted = bandwidth(inbound_average=1000, outbound_average=500, outbound_peak=900)
    plan = alices.plan(network_tap(), wanted)
    assert plan["verdict"].value == "yes"
    words = [do for do, _ in plan["steps"].value if "kB/s" in do]
    assert [word.partition(" to ")[0] for word in words] == [words[0].partition(" to ")[0]]
    assert "receive at most 1000 kB/s and send at most 500 kB/s on average" in words[0]
    with alices.acquire(network_tap(), wanted, network_tap(mac="52:54:00:00:62:01")) as lease:
        tap = next(one for one in lease.taps if one.id == "tap0")
        assert is_queued(tap.ifname)
        assert TABLE in host.tables()
        (listed,) = (g for g in lease.listed()["grants"].value if g["id"].value == "bandwidth1")
        assert (listed["tap"].value, listed["outbound_peak"].value) == ("tap0", 900)
        lease.drop("tap0")
        assert [one["id"].value for one in lease.listed()["grants"].value] == ["tap2"]
        assert TABLE not in host.tables()
        with pytest.raises(RefusalError, match="no grant tap0"):
            add(lease, bandwidth(inbound_average=1))


def test_one_tap_has_no_more_limits_than_it_needs(lease: Lease) -> None:
    add(lease, *[bandwidth(inbound_average=1)] * 8)
    with pytest.raises(RefusalError, match="bandwidths of one TAP: 8") as refused:
        add(lease, bandwidth(inbound_average=2))
    assert refused.value.name == "LimitsExceeded"


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({}, "needs inbound_average or outbound_average"),
        ({"inbound_peak": 1}, "inbound_average: is missing"),
        ({"outbound_average": 4_000_001}, "must be from 1 to 4000000"),
        ({"outbound_average": 2, "outbound_peak": 1}, "must not be less than the average"),
        ({"inbound_average": 1, "inbound_burst": 235}, "at most 240 seconds of the average"),
        ({"inbound_average": 1, "floor": 1}, "floor is not known here"),
    ],
)
def test_what_cannot_be_kept_is_refused(numbers: dict[str, int], why: str, lease: Lease) -> None:
    with pytest.raises(RefusalError, match=why) as refused:
        add(lease, bandwidth(**numbers))
    assert refused.value.name == "InvalidArgs"
    assert not is_queued(lease.tap.ifname)


def test_the_largest_numbers_are_taken_as_they_are(lease: Lease) -> None:
    largest = {"average": 4_000_000, "peak": 4_000_000, "burst": 1 << 20}
    sides = {f"{way}_{key}": n for way in ("inbound", "outbound") for key, n in largest.items()}
    add(lease, bandwidth(**sides))
    shown = subprocess.run(
        ["tc", "class", "show", "dev", lease.tap.ifname], capture_output=True, check=True, text=True
    )
    assert "rate 32Gbit ceil 32Gbit burst 1073736000b" in shown.stdout
    assert "limit rate over 3906250 kbytes/second drop" in host.nft("list", "table", *TABLE.split())


def test_what_somebody_takes_away_is_given_up_and_the_machine_goes_on(lease: Lease) -> None:
    add(lease, bandwidth(inbound_average=1000))
    subprocess.run(["tc", "qdisc", "del", "dev", lease.tap.ifname, "root"], check=True)
    lease.client.settle()
    assert [one["id"].value for one in lease.listed()["grants"].value] == ["tap0"]


def test_a_flushed_ruleset_is_put_back_with_the_next_change(lease: Lease) -> None:
    add(lease, bandwidth(outbound_average=1000))
    host.nft("flush", "ruleset")
    lease.add(network_tap(mac="52:54:00:00:62:02"))
    assert lease.taps[0].ifname in host.nft("list", "table", *TABLE.split())


def test_the_command_changes_it_from_another_process(lease: Lease) -> None:
    alice = User.named("alice")

    def limit(*words: str) -> str:
        done = alice.run(["sessionvirt", "limit", *words])
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.split())

    assert limit("vm") == "inbound no limit outbound no limit"
    assert limit("vm", "--inbound", "16Mbit").startswith("inbound 2 MB/s (16 Mbit/s)")
    with to_guest(lease.tap):
        assert settles_at(lambda: rate_of(lease.tap), 2_000_000)
    words = limit(lease.id[:9], "--interface", lease.tap.mac, "--outbound", "1M,peak=2M,burst=4M")
    assert words == (
        "inbound 2 MB/s (16 Mbit/s) outbound 1 MB/s (8 Mbit/s), peak 2 MB/s, burst 4096 KiB"
    )
    grants = [one["id"].value for one in lease.listed()["grants"].value]
    assert grants == ["tap0", "bandwidth2"]
    listed = alice.run(["sessionvirt", "leases"]).stdout
    assert "tap0, a limit" in listed
    assert "in 2 MB/s (16 Mbit/s); out 1 MB/s" in listed
    limit("vm", "--interface", "0", "--inbound", "none", "--outbound", "none")
    assert [one["id"].value for one in lease.listed()["grants"].value] == ["tap0"]
    for wrong in (["nobody"], ["vm", "--interface", "1"]):
        assert alice.run(["sessionvirt", "limit", *wrong]).returncode == 3

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker crashes, anywhere: nothing is left, nothing foreign is removed, no lease is lost."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.broker import RUNTIME
from lab.client import Client, Lease, RefusalError, frame_filter, network_tap
from lab.outside import ADDRESS4, PORT, UPLINK4, Outside
from lab.tap import as_user
from lab.throttled import bandwidth
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker

pytestmark = pytest.mark.kernel

GATEWAY = "10.213.80.1"
BRIDGE = "svn_default"
FORCE_FORWARDING = Path("/proc/sys/net/ipv6/conf/up0/force_forwarding")
IPV6_OUT = f"""
[network.default]
ipv4 = ["{GATEWAY}/20", "10.213.120.1/24"]
ipv6 = "fd53:7669:7274:1::1/64"
nat6 = true
"""


@pytest.fixture
def foreign() -> Iterator[None]:
    """What somebody else has, by names like ours."""
    host.ip("link", "add", "br9", "type", "bridge")
    host.ip("tuntap", "add", "svtforeign", "mode", "tap")
    host.ip("link", "set", "svtforeign", "master", "br9")
    host.nft("add", "table", "inet", "theirs")
    yield
    assert host.link("svtforeign")["master"] == "br9"
    for name in ("svtforeign", "br9"):
        host.ip("link", "del", name)
    host.nft("delete", "table", "inet", "theirs")


def left() -> list[str]:
    """Whatever is there and should not be, without leases."""
    found = [name for name in host.ours() if name != "svtforeign"]
    found += [str(path) for name in ("records", "holds", "networks") for path in rest(name)]
    found += [table for table in host.tables() if "sessionvirt" in table]
    if host.link("up0") and host.forwarding("up0") != "0":
        found.append("up0 forwards")
    if FORCE_FORWARDING.exists() and FORCE_FORWARDING.read_text() != "0\n":
        found.append("up0 forwards IPv6")
    return found


def rest(name: str) -> list[Path]:
    return sorted((RUNTIME / name).iterdir())


def works(lease: Lease, port: int = 6100) -> bool:
    """Whether the lease's guest reaches the world, and what it forges is dropped and counted."""
    tap = lease.tap
    tap.attentive = True
    gateway = tap.ask_arp(GATEWAY)
    forged = tap.udp4(gateway, ADDRESS4, (port, PORT))
    before = lease.drops().get("mac", 0)
    tap.send(forged[:6] + b"\x52\x54\x00\x66\x66\x66" + forged[12:])
    if lease.drops().get("mac", 0) != before + 1:
        return False
    tap.send(tap.udp4(gateway, ADDRESS4, (port, PORT), b"who am I?"))
    answer = tap.until(lambda p: p.ports == (PORT, port))[-1]
    return answer.payload == f"{UPLINK4}\n".encode()


@pytest.mark.usefixtures("foreign", "outside")
def test_g69_killed_in_every_state_of_acquire_and_release(broker: Broker, alices: Client) -> None:
    broker.configure(IPV6_OUT)  # the network with the most steps
    broker.stop()
    lease: Lease | None = None
    for number in itertools.count():
        # What dies in this round has first to clear away after the last one.
        broker.start_dying(number, "acquire")
        if lease is not None:
            # Answered, so it is there, unless its release had got so far.
            if alices.leases():
                broker.restart()  # using and releasing it is not this round's crash
                assert works(lease), number
                lease.release()
            lease.close()
            lease = None
            broker.stop()
            broker.start_dying(number, "acquire")
        assert left() == [], number
        try:
            lease = alices.acquire()
            lease.release()
        except RefusalError as refusal:
            assert refusal.name == "NoReply"  # noqa: PT017  (no refusal is as good)
            broker.died()
        else:
            lease.close()
            break
    assert number > 25
    broker.restart()
    assert left() == []


@pytest.mark.usefixtures("foreign", "outside")
def test_g69_killed_in_every_state_of_add_and_drop(broker: Broker, alices: Client) -> None:
    """A lease that was answered stays, whatever happens to what comes on top of it."""
    with alices.acquire() as lease:
        first = Lease(alices, lease.path, -1, list(lease.taps))
        for number in itertools.count():
            broker.stop()
            broker.start_dying(number, "add")
            assert works(first), number
            assert len(host.elements("bridge", "macs")) == len(lease.listed()["grants"].value)
            assert "bridge sessionvirt_filter" not in host.tables()
            added = []
            try:
                wanted = network_tap(vhost=True, name="web")
                limit = bandwidth(inbound_average=900, outbound_average=900)
                added = lease.add(wanted, limit, frame_filter(deny_outbound=["udp:9"]))
                lease.drop(*(one["id"].value for one in lease.listed()["grants"].value[1:]))
                added[0].close()
                break
            except RefusalError as refusal:
                assert refusal.name == "NoReply"  # noqa: PT017  (no refusal is as good)
                broker.died()
                broker.start()
            # What was added and answered is a grant, until its Drop.
            for grant in lease.listed()["grants"].value[1:]:
                lease.drop(grant["id"].value)
            for tap in added:
                tap.close()
        assert number > 8
        broker.restart()  # it would die of the release
    assert left() == []


@pytest.mark.usefixtures("foreign")
def test_g69_traffic_flows_on_without_a_broker_and_the_next_takes_over(
    broker: Broker, outside: Outside, alices: Client, bobs: Client
) -> None:
    with alices.acquire() as lease, bobs.acquire() as other:
        assert works(lease, 6200)
        counted = lease.drops()
        broker.kill()
        gateway = lease.tap.ask_arp(GATEWAY)
        lease.tap.send(lease.tap.udp4(gateway, ADDRESS4, (6201, PORT)))
        assert lease.tap.until(lambda p: p.ports == (PORT, 6201))
        other.tap.waiting()
        lease.tap.send(lease.tap.udp4(other.tap.mac, other.tap.ipv4, (6202, 6202)))
        assert not [p for p in other.tap.waiting() if p.ports == (6202, 6202)]
        broker.start()
        # The counters went on counting meanwhile: the question by ARP, and the datagram.
        assert lease.drops() == counted | {"peer": counted.get("peer", 0) + 2}
        assert works(lease, 6203)
        assert works(other, 6204)
        listed = lease.listed()
        assert (listed["vm"].value, listed["uid"].value) == ("vm", 61001)
        (grant,) = listed["grants"].value
        assert grant["mac"].value == lease.tap.mac
    assert left() == []


@pytest.mark.parametrize("who", ["one", "both"])
def test_g69_a_holder_that_dies_while_the_broker_is_down(
    who: str, broker: Broker, outside: Outside, alices: Client, bobs: Client
) -> None:
    with alices.acquire() as lease, bobs.acquire() as other:
        broker.kill()
        lease.close()
        if who == "both":
            other.close()
        broker.start()
        assert alices.leases() == []
        if who == "one":
            assert works(other, 6300)
            assert lease.tap.ifname not in host.ours()
            assert lease.tap.mac not in host.nft("list", "ruleset")
            other.release()
    assert left() == []


def test_g69_the_fifo_is_read_after_a_restart(broker: Broker, alices: Client) -> None:
    """poll() alone is silent on a FIFO whose writer has gone before it was opened."""
    with alices.acquire() as full, alices.acquire(vm="other") as empty:
        os.set_blocking(full.hold, False)
        os.write(full.hold, b"x" * 60000)
        os.write(empty.hold, b"x" * 100)
        broker.kill()
        empty.close()
        broker.start()
        assert [lease["vm"].value for lease in alices.leases()] == ["vm"]
        full.let_go()
        wait_until_released(alices)
    assert left() == []


def wait_until_released(client: Client) -> None:
    """The hang-up is heard before a call that comes later is answered."""
    client.settle()
    client.settle()
    assert client.leases() == []


def test_g69_an_address_that_changed_while_the_broker_was_down(
    broker: Broker, alices: Client
) -> None:
    program = (
        'fcntl.ioctl(fd, 0x8924, struct.pack("16sH6s16x", b"{}", 1, bytes.fromhex("525400000099")))'
    )
    with alices.acquire() as lease:
        broker.kill()
        as_user(User.named("alice"), lease.tap.fds[0], program.format(lease.tap.ifname))
        broker.start()
        assert alices.leases() == []
        assert left() == []


def test_g69_a_bridge_that_vanished_while_the_broker_was_down(
    broker: Broker, alices: Client
) -> None:
    with alices.acquire():
        broker.kill()
        host.ip("link", "del", BRIDGE)
        broker.start()
        assert alices.leases() == []
        assert left() == []
    with alices.acquire() as again:
        assert again.tap.ask_arp(GATEWAY)


def test_g69_files_of_a_network_that_is_gone_are_not_served(broker: Broker, alices: Client) -> None:
    """A record that was lost, or a /run that was put back: its addresses may be another's now."""
    broker.stop()
    hosts = RUNTIME / "networks" / BRIDGE / "hosts"
    hosts.mkdir(parents=True, exist_ok=True)
    stale = hosts / "svt000000000000"
    stale.write_text("52:54:00:00:00:66,10.213.80.66\n")
    for path in (hosts.parent, hosts, stale):
        shutil.chown(path, RUNTIME.owner(), RUNTIME.group())
    broker.start()
    with alices.acquire() as lease:
        assert [path.name for path in hosts.iterdir()] == [lease.tap.ifname]


@pytest.mark.usefixtures("foreign")
def test_f65_only_orphans_are_deleted_at_start(broker: Broker, alices: Client) -> None:
    with alices.acquire() as lease:
        broker.kill()
        # An element that no record knows, and a foreign table.
        element = '{ "svt000000000000" . 52:54:00:00:00:65 }'
        host.nft("add", "element", "bridge", "sessionvirt", "macs", element)
        broker.start()
        assert host.elements("bridge", "macs") == [{"concat": [lease.tap.ifname, lease.tap.mac]}]
        assert "inet theirs" in host.tables()
        assert lease.tap.ask_arp(GATEWAY)


def test_g76_sigterm_leaves_leases_to_the_next(broker: Broker, alices: Client) -> None:
    with alices.acquire() as lease:
        assert broker.stop() == 0
        gateway = lease.tap.ask_arp(GATEWAY)
        broker.start()
        assert lease.tap.ask_arp(GATEWAY) == gateway
        assert lease.listed()
    assert left() == []


def test_g69_dnsmasq_comes_back_with_the_broker(broker: Broker, alices: Client) -> None:
    with alices.acquire():
        broker.kill()
        broker.start()
        children = subprocess.run(
            [
                "pgrep",
                "--ns",
                str(os.getpid()),
                "--nslist",
                "net",
                "--full",
                f"{BRIDGE}/dnsmasq.conf",
            ],
            stdout=subprocess.PIPE,
            check=True,
        )
        assert len(children.stdout.split()) == 1

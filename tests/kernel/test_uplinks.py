# SPDX-License-Identifier: LGPL-2.1-or-later
"""Published ports of a host with two uplinks: by which one the answer leaves, and what mends it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.client import network_tap, publish
from lab.doctoring import complaints
from lab.kernelguest import KernelGuest
from lab.outside import UPLINK4, UPLINK6, Outside
from lab.second import NEAR4, SECOND4, SECOND6, STRANGER4, STRANGER6, second_uplink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client, Lease
    from lab.users import User

pytestmark = pytest.mark.kernel

CONFIGURATION = """
[network.n]
ipv4 = "10.60.0.1/24"
ipv6 = "fd60::1/64"
nat6 = true
"""
GATEWAYS = ("10.60.0.1/24", "fd60::1/64")
CHECK = "published-ports"
_ports = itertools.count(8100)


@pytest.fixture(scope="module")
def world() -> Iterator[Outside]:
    with Outside() as outside, second_uplink(outside):
        yield outside


@pytest.fixture(scope="module")
def web(world: Outside, lasting_broker: Broker, alices: Client) -> Iterator[Lease]:
    lasting_broker.configure(CONFIGURATION)
    with (
        alices.acquire(network_tap("n"), vm="web") as lease,
        KernelGuest("web", lease.tap, GATEWAYS),
    ):
        yield lease


@contextlib.contextmanager
def published(lease: Lease, address: str = "") -> Iterator[int]:
    """A port that no other test has."""
    port = next(_ports)
    where = {"address": address} if address else {}
    grant = lease.add_one(publish("tap0", port, 80, **where))
    try:
        yield port
    finally:
        lease.drop(grant["id"])


def reached(world: Outside, address: str, port: int, seconds: float = 5) -> bool:
    """Whether somebody far away gets an answer."""
    far = STRANGER6 if ":" in address else STRANGER4
    return world.ask("tcp", address, port, timeout=seconds, source=far) == f"web 80 {far}"


@contextlib.contextmanager
def policy(*rules: str) -> Iterator[None]:
    """Rules for routing, and whatever is in tables 200 and 201, as long as the ``with`` lasts."""
    try:
        for rule in rules:
            host.ip(*rule.split())
        yield
    finally:
        for version in ("-4", "-6"):
            rules_now = host.ip(version, "rule", "show")
            for line in rules_now.splitlines():
                number = int(line.partition(":")[0])
                if 0 < number < 32766:
                    host.ip(version, "rule", "del", "pref", str(number))
            for table in ("200", "201"):
                argv = ["ip", version, "route", "flush", "table", table]
                subprocess.run(argv, stderr=subprocess.DEVNULL, check=False)
        if "inet answers" in host.tables():
            host.nft("delete", "table", "inet", "answers")


def test_the_answer_leaves_by_the_best_default_route(web: Lease, world: Outside) -> None:
    """So by the other uplink only its own network reaches a port."""
    with published(web) as port:
        assert reached(world, UPLINK4, port)
        assert reached(world, UPLINK6, port)
        assert not reached(world, SECOND4, port, 0.5)
        assert not reached(world, SECOND6, port, 0.5)
        assert world.ask("tcp", SECOND4, port, source=NEAR4) == f"web 80 {NEAR4}"


def test_a_rule_by_the_uplinks_address_is_about_the_hosts_own_services(
    web: Lease, world: Outside
) -> None:
    """A guest's answers have its own address when they are routed."""
    with (
        policy(
            f"route add default via {NEAR4} dev up1 table 200",
            f"rule add from {SECOND4} table 200",
        ),
        published(web) as port,
        host.listener(SECOND4, next(_ports), socket.SOCK_STREAM) as service,
    ):
        service.settimeout(5)

        def answer() -> None:
            with service.accept()[0] as caller:
                caller.sendall(b"the host")

        answering = threading.Thread(target=answer)
        answering.start()
        own = service.getsockname()[1]
        assert world.ask("tcp", SECOND4, own, source=STRANGER4) == "the host"
        answering.join()
        assert not reached(world, SECOND4, port, 0.5)


def test_what_doctor_says_has_each_uplink_answer_for_itself(
    web: Lease, world: Outside, alice: User
) -> None:
    assert complaints(alice, "web", CHECK) == []  # nothing is published
    with published(web, UPLINK4):
        assert complaints(alice, "web", CHECK) == []
    with published(web) as port, policy():
        (said,) = complaints(alice, "web", CHECK)
        assert said["level"] == "warning"
        assert "web: a connection to a published port that comes in by up1, " in said["found"]
        assert said["found"].endswith(" is answered by up0")
        command = said["advice"].partition("   (")[0]
        subprocess.run(["bash", "-ec", command], check=True, capture_output=True)
        for address in (UPLINK4, UPLINK6, SECOND4, SECOND6):
            assert reached(world, address, port)
        # Neighbours have no gateway in between.
        assert "via" not in host.ip("route", "get", "198.51.100.77", "mark", "200")
        assert complaints(alice, "web", CHECK) == []
    with published(web, SECOND4):
        (said,) = complaints(alice, "web", CHECK)
        assert "ip -6" not in said["advice"]


def test_with_a_vpn_the_uplink_answers_for_itself_likewise(
    web: Lease, world: Outside, alice: User
) -> None:
    """One that has all leave by itself but its own packets, as wg-quick(8) does."""
    vpn = (
        f"route add default via {NEAR4} dev up1 table 201",
        "rule add not fwmark 51820 table 201",
        "rule add table main suppress_prefixlength 0",
    )
    with published(web, UPLINK4) as port, policy(*vpn):
        assert not reached(world, UPLINK4, port, 0.5)
        (said,) = complaints(alice, "web", CHECK)
        assert said["found"].endswith(" is answered by up1")
        command = said["advice"].partition("   (")[0]
        subprocess.run(["bash", "-ec", command], check=True, capture_output=True)
        assert reached(world, UPLINK4, port)
        assert complaints(alice, "web", CHECK) == []


def test_strict_filtering_drops_the_question_and_is_named(
    web: Lease, world: Outside, alice: User
) -> None:
    path = Path("/proc/sys/net/ipv4/conf/up1/rp_filter")
    former = path.read_text()
    path.write_text("1")
    try:
        with published(web) as port, policy():
            (strict,) = complaints(alice, "web", "reverse-path")
            (crossed,) = complaints(alice, "web", CHECK)
            for said, works in ((crossed, False), (strict, True)):
                command = said["advice"].partition("   (")[0]
                subprocess.run(["bash", "-ec", command], check=True, capture_output=True)
                assert reached(world, SECOND4, port, 5 if works else 0.5) is works
    finally:
        path.write_text(former)

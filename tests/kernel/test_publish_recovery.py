# SPDX-License-Identifier: LGPL-2.1-or-later
"""Published ports when the broker ends, crashes, or finds its rules gone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.client import Client, RefusalError, network_tap, publish
from lab.flushing import degraded, flush_until_given_up, once
from lab.kernelguest import KernelGuest
from lab.outside import ADDRESS4, UPLINK4, Outside

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.client import Lease

pytestmark = pytest.mark.kernel

CONFIGURATION = """
[network.n]
ipv4 = "10.60.0.1/24"
ipv6 = "fd60::1/64"
"""
GATEWAYS = ("10.60.0.1/24", "fd60::1/64")
LOCALNET = Path("/proc/sys/net/ipv4/conf/svn_n/route_localnet")


def test_it_outlives_the_broker_and_comes_back_with_the_rules(
    broker: Broker, outside: Outside, alices: Client
) -> None:
    broker.configure(CONFIGURATION)
    with alices.acquire(network_tap("n"), vm="web") as lease:
        grant = lease.add_one(publish("tap0", 8080, 80))
        with KernelGuest("web", lease.tap, GATEWAYS):
            answer = f"web 80 {ADDRESS4}"
            assert outside.ask("tcp", UPLINK4, 8080) == answer
            broker.kill()
            assert outside.ask("tcp", UPLINK4, 8080) == answer
            broker.start()
            assert outside.ask("tcp", UPLINK4, 8080) == answer
            with pytest.raises(RefusalError, match="is published"):
                lease.add_one(publish("tap0", 8080, 81))
            host.nft("flush", "ruleset")
            lease.add_one(publish("tap0", 8081, 81))
            assert outside.ask("tcp", UPLINK4, 8080) == answer
            assert outside.ask("tcp", UPLINK4, 8081) == f"web 81 {ADDRESS4}"
            broker.restart()
            lease.drop(grant["id"])
            assert outside.ask("tcp", UPLINK4, 8080) == "ConnectionRefusedError"
            assert LOCALNET.read_text() == "1\n"
            lease.drop("publish2")
            assert LOCALNET.read_text() == "0\n"


def test_f63_nobody_gets_at_localhost_where_the_rules_do_not_hold(
    broker: Broker, alices: Client, bobs: Client
) -> None:
    broker.configure(CONFIGURATION)
    broker.restart()  # one that has put nothing back yet
    with alices.acquire(network_tap("n"), vm="web") as lease:
        lease.add_one(publish("tap0", 8080, 80))
        assert LOCALNET.read_text() == "1\n"
        flush_until_given_up(alices)
        assert LOCALNET.read_text() == "0\n"
        # What is given meanwhile has the rules put back; the next flush shuts again.
        with bobs.acquire(network_tap("n"), vm="other") as other:
            other.add_one(publish("tap0", 8081, 80))
            host.nft("flush", "ruleset")
            once(lambda: LOCALNET.read_text() == "0\n", alices)
        broker.restart()
        assert degraded(alices) == ""
        assert LOCALNET.read_text() == "1\n"
    broker.wait_until_idle()


def test_g69_killed_in_every_state_of_publishing(broker: Broker, alices: Client) -> None:
    broker.configure(CONFIGURATION)
    with alices.acquire(network_tap("n"), vm="web") as lease:
        broker.stop()
        for number in itertools.count():
            broker.start_dying(number, "add")
            for name in held(lease)[1:]:  # its Drop had not begun
                lease.drop(name)
            assert host.elements("inet", "turning") == []
            assert host.elements("inet", "admitted4") == []
            assert LOCALNET.read_text() == "0\n"
            try:
                grant = lease.add_one(publish("tap0", 8080, 80))
                lease.drop(grant["id"])
                break
            except RefusalError as refused:
                assert refused.name == "NoReply"  # noqa: PT017  (no refusal is as good)
                broker.died()
        assert number > 8
        broker.restart()


def held(lease: Lease) -> list[str]:
    return [grant["id"].value for grant in lease.listed()["grants"].value]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one caller's call, or one fault below the broker, must not cost: the broker, or a lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.broker import CONFIGURATION, RUNTIME
from lab.client import RefusalError, network_tap

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.client import Client

pytestmark = pytest.mark.kernel

HOSTS = RUNTIME / "networks/svn_default/hosts"


def test_more_descriptors_than_a_message_carries_cost_the_caller_only(
    broker: Broker, alices: Client
) -> None:
    with pytest.raises(RefusalError) as refusal:
        alices.acquire(network_tap(queues=8), network_tap(queues=8))
    assert refusal.value.name == "LimitsExceeded"
    with alices.acquire(network_tap(queues=8), network_tap(queues=7)) as lease:
        assert [len(tap.fds) for tap in lease.taps] == [8, 7]
        with pytest.raises(RefusalError) as refusal:
            lease.add(network_tap(queues=8), network_tap(queues=8), network_tap())
        assert refusal.value.name == "LimitsExceeded"


def test_a_configuration_that_is_a_symlink_is_named_as_the_fault(
    broker: Broker, alices: Client
) -> None:
    elsewhere = CONFIGURATION.with_name("elsewhere.toml")
    elsewhere.write_text("")
    CONFIGURATION.symlink_to(elsewhere)
    try:
        with pytest.raises(RefusalError) as refusal:
            alices.acquire()
        assert refusal.value.name == "Configuration"
        assert "Traceback" not in refusal.value.text
        assert alices.leases() == []
    finally:
        CONFIGURATION.unlink()
        elsewhere.unlink()


def test_a_grant_that_could_not_be_undone_is_nobodys_and_hides_no_lease(
    broker: Broker, alices: Client
) -> None:
    with alices.acquire(network_tap(), network_tap()) as lease:
        stuck = HOSTS / lease.taps[0].ifname
        stuck.unlink()
        stuck.mkdir()
        lease.drop("tap0")
        assert [grant["id"].value for grant in lease.listed()["grants"].value] == ["tap1"]
        assert alices.networks()["default"]["leases"] == 1
        stuck.rmdir()
    broker.wait_until_idle()


def test_a_guest_that_gives_up_one_tap_keeps_the_others(broker: Broker, alices: Client) -> None:
    with alices.acquire(network_tap(), network_tap()) as lease:
        lease.taps[0].close()
        alices.settle()
        assert [grant["id"].value for grant in lease.listed()["grants"].value] == ["tap1"]


def test_a_journal_that_nobody_reads_any_more_costs_no_lease_its_end(
    broker: Broker, alices: Client
) -> None:
    broker.stop()
    former = broker.daemon.argv
    # Its standard error is a pipe whose reader has gone.
    script = 'mkfifo "$0"; exec 3<>"$0"; exec 4>"$0" 3<&-; rm "$0"; exec "$@" 2>&4 4>&-'
    broker.daemon.argv = ["bash", "-c", script, str(RUNTIME / "stderr"), *former]
    broker.start()
    try:
        alices.acquire().close()
        broker.wait_until_idle()
    finally:
        broker.kill()
        broker.daemon.argv = former
        broker.start()

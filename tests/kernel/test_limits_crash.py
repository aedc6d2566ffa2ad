# SPDX-License-Identifier: LGPL-2.1-or-later
"""The limits of a guest's traffic while brokers come and go."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.client import network_tap
from lab.stage import Flavour
from lab.throttled import (
    TABLE,
    add,
    bandwidth,
    is_queued,
    known_to_gateway,
    rate_of,
    settles_at,
    to_guest,
)

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.client import Client

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("broker", Flavour, indirect=True)
def test_limits_go_on_over_a_crash(broker: Broker, alices: Client) -> None:
    with alices.acquire(network_tap(), bandwidth(inbound_average=500)) as lease:
        tap = lease.taps[0]
        add(lease, bandwidth(inbound_average=1000, outbound_average=500))
        broker.kill()
        subprocess.run(["tc", "qdisc", "del", "dev", tap.ifname, "root"], check=True)
        host.nft("delete", "table", *TABLE.split())
        broker.start()
        alices.settle()
        assert TABLE in host.tables()
        with known_to_gateway(tap), to_guest(tap):
            assert settles_at(lambda: rate_of(tap), 1_000_000)
        lease.drop("bandwidth2")
        assert TABLE not in host.tables()
        assert is_queued(tap.ifname)
        tap.close()
        alices.settle()
        assert alices.leases() == []
    assert host.tables() == []

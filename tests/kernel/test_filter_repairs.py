# SPDX-License-Identifier: LGPL-2.1-or-later
"""Filters in hard times: quotas, a flushed ruleset, a broker that is killed, others' tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.client import RefusalError, network_tap
from lab.flushing import once

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.client import Client
    from lab.tap import Tap

pytestmark = pytest.mark.kernel

TABLE = ("bridge", "sessionvirt_filter")


def passes(sender: Tap, receiver: Tap, port: int) -> bool:
    """Whether a datagram arrives."""
    receiver.waiting()
    frame = sender.udp4(receiver.mac, receiver.ipv4, (5000, port))
    sender.send(frame)
    return frame in [packet.frame for packet in receiver.waiting()]


def test_a_users_entries_are_counted(broker: Broker, alices: Client, bobs: Client) -> None:
    broker.configure("[limits]\nfilter_entries_per_user = 4\n")
    with alices.acquire(network_tap()) as lease, bobs.acquire(network_tap()) as other:
        name = lease.filter(deny_outbound=["tcp:1", "tcp:2"], allow_inbound=["tcp:3"])
        with pytest.raises(RefusalError, match="filter_entries_per_user: 4") as refusal:
            lease.filter(deny_outbound=["tcp:1", "tcp:2"])
        assert refusal.value.name == "LimitsExceeded"
        other.filter(deny_outbound=["tcp:1", "tcp:2"])
        lease.drop(name)
        lease.filter(deny_outbound=["tcp:1", "tcp:2", "tcp:3", "tcp:4"])


@pytest.mark.parametrize("when", ["while the broker runs", "while there is none"])
@pytest.mark.parametrize("damage", ["ruleset", "table", "element", "rule", "fixed"])
def test_a_lost_filter_is_put_back(damage: str, when: str, broker: Broker, alices: Client) -> None:
    words = {
        "ruleset": ["flush", "ruleset"],
        "table": ["delete", "table", *TABLE],
        "element": ["flush", "map", *TABLE, "outbound"],
        "fixed": ["flush", "chain", *TABLE, "prerouting"],
    }
    with alices.acquire(network_tap()) as lease, alices.acquire(network_tap(), vm="two") as two:
        lease.filter(deny_outbound=["udp:9"])
        one, peer = lease.tap, two.tap
        words["rule"] = ["flush", "chain", *TABLE, f"out_{one.ifname}"]
        if when == "while there is none":
            broker.kill()
        host.nft(*words[damage])
        if when == "while there is none":
            assert passes(one, peer, 9)  # nothing keeps it: it was an administrator
            broker.start()
        once(lambda: not passes(one, peer, 9), alices)
        assert passes(one, peer, 8)


def test_a_filter_outlives_the_broker(broker: Broker, alices: Client) -> None:
    with alices.acquire(network_tap()) as lease, alices.acquire(network_tap(), vm="two") as two:
        first = lease.filter(deny_outbound=["udp:8"])
        second = lease.filter(deny_outbound=["udp:9"], allow_inbound=["tcp:22"])
        gone = two.filter(deny_outbound=["udp:1"])
        broker.kill()
        assert not passes(lease.tap, two.tap, 9)
        broker.start()
        listed = host.nft("list", "table", *TABLE)
        assert not passes(lease.tap, two.tap, 9)
        two.drop(gone)
        lease.drop(second)
        assert not passes(lease.tap, two.tap, 8)
        lease.drop(first)
        assert " ".join(TABLE) not in host.tables()
        assert listed.count("chain out_") == 2


def test_a_foreign_table_of_our_name_is_not_touched(broker: Broker, alices: Client) -> None:
    with alices.acquire(network_tap()) as lease:
        host.nft("add", "table", *TABLE)
        try:
            before = host.nft("list", "ruleset")
            with pytest.raises(RefusalError, match="foreign") as refusal:
                lease.filter(deny_outbound=["udp:9"])
            assert refusal.value.name == "Failed"
            assert host.nft("list", "ruleset") == before
        finally:
            host.nft("delete", "table", *TABLE)
        lease.filter(deny_outbound=["udp:9"])

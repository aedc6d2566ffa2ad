# SPDX-License-Identifier: LGPL-2.1-or-later
"""An upgrade: what the broker before this one left is taken over, records and rules alike."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from lab import frames, host
from lab.broker import RUNTIME
from lab.client import network_tap

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.client import Client

pytestmark = pytest.mark.kernel

GATEWAY = "10.213.80.1"
#: The fields that each step had in the edition before networks had modes; others are as they were.
FORMER = {
    "network-files": ("bridge", "ipv4", "ipv6", "mtu"),
    "network-filter": ("ipv4", "ipv6"),
    "bridge": ("bridge", "mac", "mtu", "ipv4", "ipv6", "ifindex"),
    "bridge-forward": ("bridge",),
    "forward": ("ifname", "ifindex", "former"),
    "dhcp-host": ("bridge", "ifname", "mac", "ipv4", "ipv6"),
}


def as_before(step: dict[str, Any]) -> dict[str, Any]:
    known = FORMER.get(step["step"])
    if known is None:
        return step
    kept = {key: value for key, value in step.items() if key in (*known, "step")}
    # One address was a string.
    return {
        key: "".join(value) if isinstance(value, list) else value for key, value in kept.items()
    }


def test_leases_of_the_former_edition_go_on(broker: Broker, alices: Client, bobs: Client) -> None:
    with alices.acquire() as lease:
        before = {name: host.elements("bridge", name) for name in ("macs", "addresses4")}
        broker.stop()
        for path in (RUNTIME / "records").glob("*.json"):
            record = json.loads(path.read_text())
            record["parts"] = {
                name: [as_before(step) for step in steps] for name, steps in record["parts"].items()
            }
            path.write_text(json.dumps(record))
        shutil.rmtree(RUNTIME / "networks/svn_default/names")
        for family in ("bridge", "inet"):
            host.nft("delete", "table", family, "sessionvirt")
            host.nft("add", "table", family, "sessionvirt")
            host.nft("add", "chain", family, "sessionvirt", "sessionvirt_2")
        # Of another type than this edition's.
        former = "{ type ifname . ipv4_addr; }"
        host.nft("add", "set", "bridge", "sessionvirt", "addresses4", former)
        broker.start()
        assert list((RUNTIME / "records").glob("quarantine/*")) == []
        assert {name: host.elements("bridge", name) for name in before} == before
        assert len(host.elements("inet", "masqueraded4")) == 1
        assert alices.diagnose()["nft_tables"] == "present"
        tap = lease.tap
        gateway = tap.ask_arp(GATEWAY)
        frame = tap.echo4(gateway, GATEWAY, 5)
        tap.send(frame[:6] + frames.mac_bytes("52:54:00:00:00:66") + frame[12:])
        assert lease.drops() == {"mac": 1}
        with bobs.acquire(network_tap(), vm="new") as other:
            assert other.tap.ipv4 != tap.ipv4
    assert host.ours() == []
    assert list((RUNTIME / "records").glob("*.json")) == []


def test_rules_of_the_former_edition_go_where_nobody_is_left(broker: Broker) -> None:
    broker.stop()
    for family in ("bridge", "inet"):
        host.nft("add", "table", family, "sessionvirt")
        host.nft("add", "chain", family, "sessionvirt", "sessionvirt_1")
    broker.start()
    assert [one for one in host.tables() if "sessionvirt" in one] == []

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker answers has the keys and types that the contract's comments promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lab.contract import documented
from lab.direct import wired
from lab.fakepolkit import YES, FakePolkit
from lab.lan import lan_bridge
from lab.rawbus import Client, direct, options, tap
from lab.stage import Flavour

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.users import User

pytestmark = pytest.mark.bus


def types(row: dict[str, Any]) -> dict[str, str]:
    return {key: variant.signature for key, variant in row.items()}


@pytest.mark.parametrize("broker", Flavour, indirect=True)
def test_answers_have_the_documented_keys_and_types(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    broker.configure('[bridge.lan0]\n[network.default]\nipv4 = "10.9.0.1/24"\n')
    keys = documented()
    mixed = [tap(queues=2), tap(None, bridge="lan0", vhost=True, name="web.1")]
    with Client(alice) as client, lan_bridge("lan0"):
        serial = client.ask("Plan", mixed, options(vm="one"))
        authority.decide(YES, YES)
        plan = client.answer(serial).body[0]
        assert types(plan) == keys["plan"]
        assert [types(row) for row in plan["requests"].value] == [keys["requests"]] * 2
        for row in client.call("ListNetworks", {})[0]:
            assert types(row) == keys["networks"]
        assert types(client.call("Diagnose", {})[0]) == keys["facts"]

        serial = client.ask("Acquire", mixed, options(vm="one"))
        authority.decide(YES, YES)
        answer = client.answer(serial)
        path, hold, grants = answer.body
        elsewhere = ("device", "mode")
        every = {k: v for k, v in keys["grant"].items() if k not in (*elsewhere, "drops")}
        on_network = {k: v for k, v in every.items() if k not in ("bridge", "vlan")}
        on_bridge = {k: v for k, v in every.items() if k != "network"}
        assert [types(row) for row in grants] == [on_network, on_bridge]
        assert [row["id"].value for row in grants] == ["tap0", "tap1"]
        assert sorted([hold, *grants[0]["fds"].value, *grants[1]["fds"].value]) == [0, 1, 2, 3]
        assert len(answer.fds) == 4
        assert grants[1]["bridge"].value == "lan0"
        # The laboratory's kernel has no vhost, which is no error.
        assert [row["vhost"].value for row in grants] == [False, False]
        assert [row["altname"].value for row in grants] == [
            f"svt-{alice.uid}-one-0",
            f"svt-{alice.uid}-web.1",
        ]

        (lease,) = client.call("ListLeases", {})[0]
        assert types(lease) == keys["leases"]
        listed = lease["grants"].value
        drops = {"drops": keys["grant"]["drops"]}
        assert [types(row) for row in listed] == [on_network | drops, on_bridge | drops]
        assert [row["fds"].value for row in listed] == [[], []]
        assert lease["lease"].value == path
        client.release(path)
        answer.close()


def test_answers_about_a_macvtap_are_as_documented(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    broker.configure('[direct.wire0]\nmodes = ["private", "bridge"]\n')
    keys = documented()
    others = ("network", "bridge", "vlan", "isolated", "drops")
    expected = {key: type_ for key, type_ in keys["grant"].items() if key not in others}
    with Client(alice) as client, wired("wire0"):
        serial = client.ask("Acquire", [direct("wire0", queues=2)], options(vm="one"))
        (check,) = authority.decide(YES)
        assert check.action == "direct-attach"
        told = {key: check.details[key] for key in ("device", "mode", "vm")}
        assert told == {"device": "wire0", "mode": "bridge", "vm": "one"}
        answer = client.answer(serial)
        path, _, grants = answer.body
        assert [types(row) for row in grants] == [expected]
        assert (grants[0]["id"].value, len(grants[0]["fds"].value)) == ("direct0", 2)
        rows = [row for row in client.call("ListNetworks", {})[0] if row["type"].value == "direct"]
        assert [types(row) for row in rows] == [keys["networks"]]
        names = ("name", "mode", "bridge", "up", "mtu", "leases")
        assert [rows[0][name].value for name in names] == [
            *("wire0", "bridge,private", "wire0", True, 1500, 1)
        ]
        (lease,) = client.call("ListLeases", {})[0]
        drops = {"drops": keys["grant"]["drops"]}
        assert [types(row) for row in lease["grants"].value] == [expected | drops]
        client.release(path)
        answer.close()


def test_a_network_and_a_bridge_of_one_name(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    """Each has its own users, and tells its own facts: as configured, then the kernel's."""
    broker.configure(
        "[bridge.twin]\n[bridge.gone]\n"
        '[network.twin]\nipv4 = "10.9.0.1/24"\nipv6 = "fd00::1/64"\nmtu = 1400\n'
    )
    with Client(alice) as client, lan_bridge("twin"):
        row = client.call("ListNetworks", {})[0][0]
        assert {key: variant.value for key, variant in row.items()} == {
            "name": "twin",
            "type": "network",
            "mode": "nat",
            "bridge": "svn_twin",
            "up": False,
            "mtu": 1400,
            "ipv4": ["10.9.0.1/24"],
            "ipv6": ["fd00::1/64"],
            "leases": 0,
        }
        serial = client.ask(
            "Acquire", [tap(None, bridge="twin"), tap(None, bridge="twin")], options(vm="one")
        )
        authority.decide(YES, YES)
        lease = client.lease(serial)
        rows = client.call("ListNetworks", {})[0]
        told = [
            tuple(row[key].value for key in ("name", "type", "up", "mtu", "ipv4", "leases"))
            for row in rows
            if row["name"].value in ("twin", "gone")
        ]
        assert told == [
            ("twin", "network", False, 1400, ["10.9.0.1/24"], 0),
            ("gone", "bridge", False, 0, [], 0),
            ("twin", "bridge", True, 1500, [], 2),
        ]
        client.release(lease.path)
        lease.close()

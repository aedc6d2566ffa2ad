# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt networks NAME`` as different users see it: their own, and of others a number."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from lab.client import network_tap
from lab.forgeries import FORGERIES
from lab.users import User

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.client import Client

pytestmark = pytest.mark.kernel

COMMAND = ["sessionvirt", "networks", "default"]


def seen(user: User | None) -> dict[str, Any]:
    """The network as a user, or root, is shown it."""
    if user is None:
        output = subprocess.check_output([*COMMAND, "--json"], text=True)
    else:
        done = user.run([*COMMAND, "--json"])
        assert done.returncode == 0, done.stderr
        output = done.stdout
    (network,) = json.loads(output)["networks"]
    assert isinstance(network, dict)
    return network


def test_everybody_sees_his_own_and_how_many_more_there_are(
    lasting_broker: Broker, alices: Client, bobs: Client
) -> None:
    alice, bob = User.named("alice"), User.named("bob")
    with (
        alices.acquire(vm="hers") as hers,
        bobs.acquire(vm="his") as his,
        bobs.acquire(vm="his too"),
    ):
        mine = seen(alice)
        assert (mine["leases"], mine["others"], mine["up"], mine["mtu"]) == (1, 2, True, 1500)
        (interface,) = mine["interfaces"]
        tap = hers.tap
        assert {
            key: interface[key] for key in ("vm", "uid", "user", "interface", "mac", "ipv4", "ipv6")
        } == {
            "vm": "hers",
            "uid": alice.uid,
            "user": "alice",
            "interface": tap.ifname,
            "mac": tap.mac,
            "ipv4": [tap.ipv4],
            "ipv6": [tap.ipv6],
        }
        theirs = seen(bob)
        assert ([row["vm"] for row in theirs["interfaces"]], theirs["others"]) == (
            ["his", "his too"],
            1,
        )
        everybody = seen(None)
        assert everybody["others"] == 0
        assert {row["user"] for row in everybody["interfaces"]} == {"alice", "bob"}
        shown = alice.run(COMMAND).stdout
        assert "2 interfaces of other users" in shown
        assert his.tap.mac not in shown


def test_what_a_guest_sends_is_counted(lasting_broker: Broker, alices: Client) -> None:
    """Between two looks, so that it is in a rate; what the filter drops is told with the reason."""
    with alices.acquire(vm="hers") as lease, alices.acquire(vm="peer") as other:
        forged = FORGERIES["mac"].forged(lease.tap, other.tap)
        with User.named("alice").popen([*COMMAND, "--watch", "--json"]) as process:
            assert process.stdout is not None

            def look() -> dict[str, Any]:
                assert process.stdout is not None
                (network,) = json.loads(process.stdout.readline())["networks"]
                found = {row["vm"]: row for row in network["interfaces"]}["hers"]
                assert isinstance(found, dict)
                return found

            before = look()
            lease.tap.send(*[forged] * 50)
            after = look()
            while after["totals"]["out_packets"] == before["totals"]["out_packets"]:
                after = look()
            # That one may have come in the middle of it.
            last = look()
            process.terminate()
            assert process.wait(30) == 143
    assert last["totals"]["out_packets"] == before["totals"]["out_packets"] + 50
    assert last["totals"]["out_bytes"] == before["totals"]["out_bytes"] + 50 * len(forged)
    assert max(each["rates"]["out_packets"] for each in (after, last)) > 0
    assert last["drops"]["mac"] == before["drops"].get("mac", 0) + 50


def test_what_was_dropped_is_told_by_interface(lasting_broker: Broker, alices: Client) -> None:
    honest, hostile = "52:54:00:00:44:01", "52:54:00:00:44:02"
    with alices.acquire(network_tap(mac=honest), network_tap(mac=hostile)) as lease:
        first, second = lease.taps
        second.send(first.udp4(first.mac, first.ipv4, (7000, 7000)))
        assert lease.drops() == {"mac": 1}
        told = {one["mac"].value: one["drops"].value for one in lease.listed()["grants"].value}
        assert told == {honest: {}, hostile: {"mac": 1}}
        mine = {one["mac"]: one["drops"] for one in seen(User.named("alice"))["interfaces"]}
        assert mine == told

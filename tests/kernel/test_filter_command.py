# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt filter`` on a machine that another process has: shown, changed, and gone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.client import network_tap
from lab.users import User

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.client import Client
    from lab.tap import Tap

pytestmark = pytest.mark.kernel


def command(*words: str, user: str = "alice") -> tuple[int, str]:
    done = User.named(user).run(["sessionvirt", "filter", *words])
    return done.returncode, done.stdout + done.stderr


def passes(sender: Tap, receiver: Tap, port: int, flags: int = 0x02) -> bool:
    receiver.waiting()
    segment = frames.tcp(sender.ipv4, receiver.ipv4, (5000, port), flags)
    frame = sender.to4(receiver.mac, receiver.ipv4, frames.TCP, segment)
    sender.send(frame)
    return frame in [packet.frame for packet in receiver.waiting()]


def test_the_command_shows_and_changes_what_a_machine_may(
    lasting_broker: Broker, alices: Client
) -> None:
    with (
        alices.acquire(network_tap(), network_tap(), vm="web") as web,
        alices.acquire(network_tap(), vm="peer") as peer,
    ):
        one, two = web.taps[1], peer.tap
        web.filter(tap="tap1", deny=["ipv6"])  # as a <filterref> of the definition would
        assert command("web", "--deny-inbound", "tcp:22")[0] == 2  # which of the two?
        status, text = command("web", "--interface", one.mac, "--deny-inbound", "tcp:22")
        assert (status, "the new lists hold" in text) == (0, True)
        assert not passes(two, one, 22)
        assert passes(two, one, 22, 0x10)
        assert passes(two, web.taps[0], 22)
        assert command("web", "--interface", "1", "--allow-inbound", "tcp:22")[0] == 0
        assert passes(two, one, 22)
        assert not passes(two, one, 23)
        assert passes(two, one, 23, 0x10)
        status, text = command("web", "--json")
        shown = json.loads(text)["interfaces"][1]["filter"]
        assert (shown["allow_inbound"], shown["deny_inbound"], shown["deny"]) == (
            ["tcp:22"],
            [],
            ["ipv6"],
        )
        listed = User.named("alice").run(["sessionvirt", "leases"]).stdout
        assert "filter of tap1" in listed
        assert "allow inbound tcp:22; no ipv6" in listed
        assert command("web", "--interface", "1", "--none")[0] == 0
        assert passes(two, one, 23)
        (held,) = [g for g in web.listed()["grants"].value if g["kind"].value == "filter"]
        assert held["deny"].value == ["ipv6"]
        web.drop(held["id"].value)
        assert "bridge sessionvirt_filter" not in host.tables()


def test_what_the_command_refuses_and_to_whom(lasting_broker: Broker, alices: Client) -> None:
    with alices.acquire(network_tap(), vm="web"):
        for words, status, says in (
            (("web", "--allow-inbound", "tcp:0"), 2, "no entry"),
            (("web", "--allow-inbound", "::ffff:10.0.0.1"), 2, "mapped"),
            (("web", "--none", "--deny-inbound", "tcp"), 2, "contradict"),
            (("nobody", "--none"), 3, "no machine of yours"),
            (("web", "--interface", "7", "--none"), 3, "no such interface"),
        ):
            found = command(*words)
            assert (found[0], says in found[1]) == (status, True), found
        assert command("web", user="bob")[0] == 3

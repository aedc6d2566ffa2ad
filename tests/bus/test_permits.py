# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whom ``broker.toml`` permits a bridge: nobody is prompted, and polkit's no is still a no."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.direct import wired
from lab.fakepolkit import ASK, NO, YES, FakePolkit
from lab.lan import lan_bridge
from lab.rawbus import LEASE, Client, direct, options, publish, tap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.polkit import Polkit
    from lab.users import User

pytestmark = pytest.mark.bus

INTERACTIVE = 0x4
ON_LAN = tap(None, bridge="lan0", mac="52:54:00:00:00:01")
ON_NETWORK = tap(mac="52:54:00:00:00:02")


@pytest.fixture
def lan(broker: Broker) -> Iterator[None]:
    with lan_bridge("lan0"):
        yield
        broker.wait_until_idle()


def acquire(client: Client, *requests: object) -> int:
    return client.ask("Acquire", list(requests), options(vm="one"), flags=INTERACTIVE)


def add(client: Client, lease: str, request: object) -> int:
    return client.ask(
        *("Add", [request], options()), path=lease, interface=LEASE, flags=INTERACTIVE
    )


@pytest.mark.parametrize(
    "permit",
    ['users = ["alice"]', "users = [61001]", 'groups = ["sessionvirt"]', 'groups = ["alice"]'],
    ids=["user", "uid", "supplementary group", "primary group"],
)
def test_who_is_permitted_is_not_prompted(
    permit: str, broker: Broker, lan: None, authority: FakePolkit, alice: User
) -> None:
    broker.configure(f"[bridge.lan0]\n{permit}\n")
    with Client(alice) as client:
        serial = client.ask("Plan", [ON_LAN], options(vm="one"))
        (check,) = authority.decide(ASK)
        plan = client.answer(serial).body[0]
        assert (plan["verdict"].value, plan["prompt"].value) == ("yes", "")
        serial = acquire(client, ON_LAN)
        (check,) = authority.decide(ASK)
        assert (check.action, check.flags) == ("bridge-attach", 0)
        with closing(client.lease(serial)):
            authority.silence()
            assert [one["allowed"] for one in client.leases()] == ["configured"]


def test_an_interface_is_permitted_likewise_and_by_itself_alone(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    """Who is permitted one interface is asked about another."""
    broker.configure('[direct.wire0]\nusers = ["alice"]\n[direct.wire1]\n')
    wanted = [direct(f"wire{number}", mac=f"52:54:00:00:00:0{number}") for number in (0, 1)]
    with wired("wire0"), wired("wire1"), Client(alice) as client:
        plans = []
        for request in wanted:
            serial = client.ask("Plan", [request], options(vm="one"))
            authority.decide(ASK)
            plans.append(client.answer(serial).body[0])
        assert [plan["verdict"].value for plan in plans] == ["yes", "ask"]
        assert plans[1]["prompt"].value == (
            'Authentication is required to connect the virtual machine "one" to the local network'
            ' of the interface "wire1", as a host of its own (52:54:00:00:00:01, mode bridge)'
        )
        serial = acquire(client, wanted[0])
        (check,) = authority.decide(ASK)
        assert (check.action, check.flags) == ("direct-attach", 0)
        with closing(client.lease(serial)):
            assert [one["allowed"] for one in client.leases()] == ["configured"]
        serial = acquire(client, wanted[0])
        authority.decide(NO)
        assert client.answer(serial).error.short == "NotAuthorized"
    broker.wait_until_idle()


def test_ports_are_permitted_by_range_and_never_below_1024(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    broker.configure('[publish]\nusers = ["alice"]\nports = ["8000-8099"]\n')
    with Client(alice) as client:
        serial = acquire(client, ON_NETWORK, publish("tap0", 8080, ports=2))
        checks = authority.decide(YES, ASK)
        assert [(one.action, one.flags) for one in checks] == [
            ("network-attach", 0),
            ("publish-port", 0),
        ]
        with closing(client.lease(serial)) as lease:
            assert [one["allowed"] for one in client.leases()] == ["configured"]
            # Another port is asked about, by its own action and in words.
            serial = add(client, lease.path, publish("tap0", 8099, ports=2))
            first, prompt = authority.decide(ASK, NO)
            assert (first.action, first.flags, prompt.flags) == ("publish-port", 0, 1)
            assert prompt.sentence == (
                "Authentication is required to have TCP ports 8099-8100 of every address of this"
                ' machine lead to the virtual machine "one"'
            )
            assert client.answer(serial).error.short == "NotAuthorized"
            # One that is privileged is, whatever the answer for others is; a no to those is enough.
            for answers in ((YES, ASK, NO), (NO,)):
                serial = add(client, lease.path, publish("tap0", 1023))
                checks = authority.decide(*answers)
                asked = ["publish-port", "publish-privileged-port", "publish-privileged-port"]
                assert [one.action for one in checks] == asked[: len(answers)]
                assert client.answer(serial).error.short == "NotAuthorized"
    broker.wait_until_idle()


def test_another_wire_under_the_same_name_is_another(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    broker.configure("[direct.wire0]\n")
    with Client(alice) as client:
        with wired("wire0"):
            serial = acquire(client, direct("wire0"))
            authority.decide(ASK)
            prompt = authority.check()
        with wired("wire0"):
            authority.answer_check(prompt, YES)
            assert client.answer(serial).error.short == "StateChanged"


def test_a_no_of_polkit_is_a_no_whatever_the_file_says(
    broker: Broker, lan: None, authority: FakePolkit, alice: User
) -> None:
    broker.configure('[bridge.lan0]\nusers = ["alice"]\ngroups = ["alice"]\n')
    with Client(alice) as client:
        serial = acquire(client, ON_LAN)
        authority.decide(NO)
        assert client.answer(serial).error.short == "NotAuthorized"
        serial = acquire(client, ON_LAN)
        authority.fail(authority.check(), "org.freedesktop.PolicyKit1.Error.Failed", "")
        assert client.answer(serial).error.short == "AuthorityUnavailable"
        authority.silence()
        assert client.leases() == []
        # And a yes is polkit's own.
        serial = acquire(client, ON_LAN)
        authority.decide(YES)
        with closing(client.lease(serial)):
            assert [one["allowed"] for one in client.leases()] == ["yes"]


@pytest.mark.parametrize(
    "permit",
    ["", 'users = ["bob"]', 'groups = ["bob"]', "users = [61000]", "groups = [0]"],
    ids=["nobody", "another", "another's group", "a group's number", "root's group"],
)
def test_who_is_not_permitted_is_prompted(
    permit: str, broker: Broker, lan: None, authority: FakePolkit, alice: User
) -> None:
    broker.configure(f"[bridge.lan0]\n{permit}\n")
    with Client(alice) as client:
        serial = acquire(client, ON_LAN)
        first, prompt = authority.decide(ASK, NO)
        assert (first.flags, prompt.flags) == (0, 1)
        assert client.answer(serial).error.short == "NotAuthorized"


def test_a_permit_is_for_its_bridge_and_leaves_other_questions(
    broker: Broker, lan: None, authority: FakePolkit, alice: User
) -> None:
    broker.configure('[bridge.lan0]\nusers = ["alice"]\n[network.default]\nipv4 = "10.9.0.1/24"\n')
    with Client(alice) as client:
        serial = acquire(client, ON_LAN, ON_NETWORK)
        checks = authority.decide(ASK, ASK, NO)
        # One question is left, so it is asked for itself, and does not speak of the bridge.
        assert [check.action for check in checks][2] == "network-attach"
        assert "lan0" not in checks[2].sentence
        assert client.answer(serial).error.short == "NotAuthorized"


def test_who_left_the_group_after_connecting_is_who_connected(
    broker: Broker, lan: None, authority: FakePolkit, alice: User
) -> None:
    """Membership is what the bus recorded; /etc/group says what a name means, and no more."""
    broker.configure('[bridge.lan0]\ngroups = ["sessionvirt"]\n')
    group = Path("/etc/group")
    text = group.read_text()
    try:
        group.write_text(text.replace(":alice,bob", ":carol"))
        with Client(alice) as late:
            group.write_text(text)
            serial = acquire(late, ON_LAN)
            checks = authority.decide(ASK, NO)
            assert [check.flags for check in checks] == [0, 1]
            assert late.answer(serial).error.short == "NotAuthorized"
        with Client(alice) as early:
            group.write_text(text.replace(":alice,bob", ":carol"))
            serial = acquire(early, ON_LAN)
            authority.decide(ASK)
            early.lease(serial).close()
    finally:
        group.write_text(text)


def test_a_permit_that_is_withdrawn_behind_another_prompt_gives_nothing(
    broker: Broker, lan: None, authority: FakePolkit, alice: User
) -> None:
    with Client(alice) as client:
        broker.configure(
            '[bridge.lan0]\nusers = ["alice"]\n[network.default]\nipv4 = "10.9.0.1/24"\n'
        )
        serial = acquire(client, ON_LAN, ON_NETWORK)
        authority.decide(ASK, ASK)
        prompt = authority.check()
        broker.configure('[bridge.lan0]\n[network.default]\nipv4 = "10.9.0.1/24"\n')
        authority.answer_check(prompt, YES)
        assert client.answer(serial).error.short == "StateChanged"
        assert client.leases() == []


def test_a_rule_of_polkit_takes_away_what_the_file_gives(
    broker: Broker, lan: None, polkit: Polkit, alice: User, bob: User
) -> None:
    """With the real polkitd, where nobody has an agent and both are asked by default."""
    broker.configure('[bridge.lan0]\ngroups = ["sessionvirt"]\n')
    with Client(alice) as hers, Client(bob) as his:
        with closing(hers.lease(acquire(hers, ON_LAN))):
            assert [one["allowed"] for one in hers.leases()] == ["configured"]
        polkit.answer("org.sessionvirt.broker1.bridge-attach", "no", user="bob")
        error = his.error("Acquire", [tap(None, bridge="lan0")], options(vm="x"))
        assert error.short == "NotAuthorized"

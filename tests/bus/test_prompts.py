# SPDX-License-Identifier: LGPL-2.1-or-later
"""Group A of the attacks, prompts: how many, for whom, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.fakepolkit import ASK, DISMISSED, NO, YES, FakePolkit
from lab.lan import lan_bridge
from lab.rawbus import LEASE, Client, options, tap

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.users import User

pytestmark = pytest.mark.bus

INTERACTIVE = 0x4
NETWORK_SENTENCE = (
    'Authentication is required to connect the virtual machine "$(vm)" to the network "$(network)"'
)
FAST = "[limits]\ncalls_per_second = 65536\n"


def taps() -> list[str]:
    return [path.name for path in Path("/sys/class/net").glob("svt*")]


def test_a09_a_yes_for_one_is_none_for_another_that_waits_beside_it(
    broker: Broker, authority: FakePolkit, alice: User, bob: User
) -> None:
    with Client(alice) as hers, Client(bob) as his:
        serial = hers.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
        authority.decide(ASK)
        prompt = authority.check()
        other = his.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
        authority.decide(ASK)
        second = authority.check()
        assert second.subject[1]["name"].value == his.name
        assert prompt.cancellation != second.cancellation
        authority.answer_check(prompt, YES)
        lease = hers.lease(serial)
        authority.answer_check(second, NO)
        assert his.answer(other).error.short == "NotAuthorized"
        assert [one["allowed"] for one in hers.leases()] == ["asked"]
        hers.release(lease.path)
        lease.close()


def test_a09_what_was_allowed_once_is_asked_again_for_the_next(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    with Client(alice) as client:
        serial = client.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
        authority.decide(ASK, YES)
        lease = client.lease(serial)
        serial = client.ask("Add", [tap()], {}, path=lease.path, interface=LEASE, flags=INTERACTIVE)
        first, second = authority.decide(ASK, NO)
        assert (first.flags, second.flags) == (0, 1)
        assert client.answer(serial).error.short == "NotAuthorized"
        client.release(lease.path)
        lease.close()


def test_a12_fifty_calls_of_one_connection_are_one_prompt(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    """calls_pending_per_sender is 8: so many are looked at, and one of them may prompt."""
    with Client(alice) as client:
        calls = [
            client.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE) for _ in range(50)
        ]
        prompts = []
        for _ in range(8 + 1):
            check = authority.check()
            if check.flags:
                prompts.append(check)
            else:
                authority.answer_check(check, ASK)
        for _ in calls[1:]:
            assert client.receive().error.short == "LimitsExceeded"
        (prompt,) = prompts
        authority.silence()
        authority.answer_check(prompt, DISMISSED)
        assert client.receive().error.short == "Dismissed"


def test_a12_ten_connections_of_a_user_wait_in_line_up_to_the_limit(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    """prompts_per_user is 4: one is open, three wait for it, the rest are refused."""
    clients = [Client(alice) for _ in range(10)]

    def want(client: Client) -> tuple[Client, int]:
        serial = client.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
        authority.decide(ASK)
        return client, serial

    try:
        waiting = [want(clients[0])]
        prompt = authority.check()
        assert prompt.flags == 1
        waiting += [want(client) for client in clients[1:]]
        for client, serial in waiting[4:]:
            error = client.answer(serial).error
            assert error.short == "LimitsExceeded"
            assert "prompts_per_user" in error.text
        for client, serial in waiting[:4]:
            authority.silence()  # one at a time
            assert prompt.subject[1]["name"].value == client.name
            authority.answer_check(prompt, NO)
            assert client.answer(serial).error.short == "NotAuthorized"
            if (client, serial) != waiting[3]:
                prompt = authority.check()
    finally:
        for client in clients:
            client.close()


def test_a12_one_who_waits_in_line_and_leaves_is_not_asked_about(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    with Client(alice) as first:
        serial = first.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
        authority.decide(ASK)
        prompt = authority.check()
        with Client(alice) as second:
            second.ask("Acquire", [tap()], options(vm="two"), flags=INTERACTIVE)
            authority.decide(ASK)
        with Client(alice) as third:
            other = third.ask("Acquire", [tap()], options(vm="three"), flags=INTERACTIVE)
            authority.decide(ASK)
            authority.answer_check(prompt, NO)
            assert first.answer(serial).error.short == "NotAuthorized"
            (next_prompt,) = authority.decide(NO)
            assert next_prompt.details["vm"] == "three"
            assert third.answer(other).error.short == "NotAuthorized"


def test_a12_one_users_prompt_does_not_keep_another_user_waiting(
    broker: Broker, authority: FakePolkit, alice: User, bob: User
) -> None:
    with Client(alice) as hers, Client(bob) as his:
        serial = hers.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
        authority.decide(ASK)
        prompt = authority.check()
        other = his.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
        authority.decide(ASK, DISMISSED)
        assert his.answer(other).error.short == "Dismissed"
        authority.answer_check(prompt, DISMISSED)
        assert hers.answer(serial).error.short == "Dismissed"


def test_the_prompt_algorithm_one_asks_for_itself_and_several_ask_as_one(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    """Section 4 of the design, all of it, with a network and a bridge that are asked about."""
    broker.configure('[bridge.lan0]\n[network.default]\nipv4 = "10.9.0.1/24"\n')
    mixed = [tap(mac="52:54:00:00:00:01"), tap(None, bridge="lan0", mac="52:54:00:00:00:02")]
    with Client(alice) as client, lan_bridge("lan0"):

        def start() -> int:
            return client.ask("Acquire", mixed, options(vm="one"), flags=4)

        # One no refuses all, whatever else would be asked, and nobody is prompted.
        for first, second in ((NO, YES), (YES, NO), (NO, ASK), (ASK, NO)):
            serial = start()
            checks = authority.decide(first, second)
            assert [check.action for check in checks] == ["network-attach", "bridge-attach"]
            assert [check.flags for check in checks] == [0, 0]
            assert client.answer(serial).error.short == "NotAuthorized"
            authority.silence()
        # If exactly one would ask, that action is asked, with its details and no other.
        for first, second, name in ((ASK, YES, "network-attach"), (YES, ASK, "bridge-attach")):
            serial = start()
            checks = authority.decide(first, second, NO)
            assert (checks[2].action, checks[2].flags) == (name, 1)
            assert checks[2].details in (checks[0].details, checks[1].details)
            assert client.answer(serial).error.short == "NotAuthorized"
            authority.silence()
        # If several would, vm-start alone is asked, and names them all.
        serial = start()
        *_, prompt = authority.decide(ASK, ASK, NO)
        assert (prompt.action, prompt.flags) == ("vm-start", 1)
        assert prompt.sentence == (
            'Authentication is required to give the virtual machine "one": a connection to the'
            ' network "default"; a place on the local network by the bridge "lan0"'
            " (52:54:00:00:00:02)"
        )
        assert client.answer(serial).error.text.endswith(prompt.sentence)
        # And its yes is a yes to all of them.
        serial = start()
        authority.decide(ASK, ASK, YES)
        lease = client.lease(serial)
        assert [one["allowed"] for one in client.leases()] == ["asked"]
        client.release(lease.path)
        lease.close()
        # Plan says the same, and asks nobody.
        serial = client.ask("Plan", mixed, options(vm="one"))
        authority.decide(ASK, ASK)
        plan = client.answer(serial).body[0]
        assert plan["verdict"].value == "ask"
        assert plan["action"].value == "org.sessionvirt.broker1.vm-start"
        assert plan["prompt"].value == prompt.sentence
        authority.silence()
    assert list(Path("/sys/class/net").glob("svt*")) == []

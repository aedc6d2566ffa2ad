# SPDX-License-Identifier: LGPL-2.1-or-later
"""Group A of the attacks: who is asked what, and that nothing but a clear yes is a yes."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dbus_fast import Variant

from lab.fakepolkit import ASK, DISMISSED, NO, YES, FakePolkit
from lab.lan import lan_bridge
from lab.rawbus import INTERFACE, Client, marshalled, options, tap
from lab.stage import Flavour

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from lab.broker import Broker
    from lab.bus import SystemBus
    from lab.polkit import Polkit
    from lab.users import User

pytestmark = pytest.mark.bus

INTERACTIVE = 0x4
NETWORK_SENTENCE = (
    'Authentication is required to connect the virtual machine "$(vm)" to the network "$(network)"'
)
FAST = "[limits]\ncalls_per_second = 65536\n"


def taps() -> list[str]:
    return [path.name for path in Path("/sys/class/net").glob("svt*")]


def test_a01_the_subject_is_the_senders_bus_name_and_nothing_else(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    """A subject of another D-Bus type is ignored by polkitd, which then asks about root."""
    with Client(alice) as client:
        serial = client.ask("Plan", [tap(mac="52:54:00:00:00:01")], options(vm="one"))
        check = authority.check()
        assert check.message.signature == "(sa{sv})sa{ss}us"
        assert check.subject == ("system-bus-name", {"name": Variant("s", client.name)})
        assert check.message.body[1] == "org.sessionvirt.broker1.network-attach"
        assert check.details == {
            "polkit.message": NETWORK_SENTENCE,
            "vm": "one",
            "uid": str(alice.uid),
            "mac": "52:54:00:00:00:01",
            "network": "default",
        }
        assert check.flags == 0
        authority.answer_check(check, YES)
        plan = client.answer(serial).body[0]
        assert plan["verdict"].value == "yes"


def test_a02_a_caller_that_leaves_before_the_answer_gets_nothing(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    """CVE-2021-3560's shape: polkitd says yes for somebody who has gone."""
    with Client() as root:
        with Client(alice) as client:
            client.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
            check = authority.check()
        authority.answer_check(check, YES)
        authority.silence()
        assert root.leases() == []
        assert root.leases() == []
    assert taps() == []


def test_a03_a_caller_that_leaves_its_prompt_takes_it_along(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    with Client() as root:
        with Client(alice) as client:
            client.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
            authority.decide(ASK)
            prompt = authority.check()
        assert authority.cancelled() == prompt.cancellation
        authority.answer_check(prompt, YES)
        authority.silence()
        assert root.leases() == []
        assert root.leases() == []
        # A new connection of the same process and user has no part in it.
        with Client(alice) as client:
            serial = client.ask("Acquire", [tap()], options(vm="one"))
            authority.decide(NO)
            assert client.answer(serial).error.short == "NotAuthorized"
    assert taps() == []


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("", []),
        ("b", [True]),
        ("bba{ss}", [True, False, {}]),
        ("(bba{sv})", [[True, False, {}]]),
        ("(bb)", [[True, False]]),
        ("(uba{ss})", [[1, False, {}]]),
        ("(sba{ss})", [["true", False, {}]]),
        ("v", [Variant("(bba{ss})", [True, False, {}])]),
        ("(bba{ss})b", [[True, False, {}], True]),
    ],
)
def test_a04_an_answer_of_another_form_is_no_answer(
    broker: Broker, authority: FakePolkit, alice: User, signature: str, body: list[Any]
) -> None:
    with Client(alice) as client:
        serial = client.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
        authority.raw(authority.check(), signature, body)
        assert client.answer(serial).error.short == "AuthorityUnavailable"
        authority.silence()
    assert taps() == []


def test_a04_an_error_a_no_and_a_challenge_are_not_a_yes(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    results: list[tuple[Sequence[Any], str]] = [
        (NO, "NotAuthorized"),
        (ASK, "InteractiveAuthorizationRequired"),
        (DISMISSED, "NotAuthorized"),
        ([False, False, {"polkit.result": "yes"}], "NotAuthorized"),
    ]
    with Client(alice) as client:
        for result, error in results:
            serial = client.ask("Acquire", [tap()], options(vm="one"))
            authority.decide(result)
            assert client.answer(serial).error.short == error
        for name in (
            "org.freedesktop.PolicyKit1.Error.Failed",
            "org.freedesktop.DBus.Error.NoReply",
        ):
            serial = client.ask("Acquire", [tap()], options(vm="one"))
            authority.fail(authority.check(), name, "\n/etc/shadow says yes")
            error_ = client.answer(serial).error
            assert error_.short == "AuthorityUnavailable"
            assert "shadow" not in error_.text
    assert taps() == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [(NO, "NotAuthorized"), (ASK, "InteractiveAuthorizationRequired"), (DISMISSED, "Dismissed")],
)
def test_a04_only_a_yes_at_the_prompt_is_one(
    broker: Broker, authority: FakePolkit, alice: User, answer: list[Any], error: str
) -> None:
    with Client(alice) as client:
        serial = client.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
        first, second = authority.decide(ASK, answer)
        assert (first.flags, second.flags) == (0, 1)
        assert first.action == second.action
        assert first.details == second.details
        assert client.answer(serial).error.short == error
    assert taps() == []


def test_a04_a_prompt_that_nobody_answers_ends_by_the_brokers_own_deadline(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    broker.configure("[limits]\nprompt_seconds = 1\n")
    with Client(alice) as client:
        serial = client.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
        authority.decide(ASK)
        prompt = authority.check()
        assert authority.cancelled() == prompt.cancellation
        error = client.answer(serial).error
        assert error.short == "Dismissed"
        assert "not answered in time" in error.text
        authority.answer_check(prompt, YES)
        authority.silence()
        assert client.leases() == []
    assert taps() == []


def test_a05_polkit_absent_or_failing_to_start_is_a_no_for_everybody(
    broker: Broker, polkit: Polkit, bus: SystemBus, alice: User
) -> None:
    polkit.stop()
    service = Path("/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service")
    try:
        for text in ("", "[D-BUS Service]\nName=org.freedesktop.PolicyKit1\nExec=/bin/false\n"):
            if text:
                service.write_text(text + "User=root\n")
                bus.reload()
            for user in (alice.uid, 0):
                with Client(user) as client:
                    error = client.error("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
                    assert error.name == f"{INTERFACE}.Error.AuthorityUnavailable"
                    facts = client.call("Diagnose", {})[0]
                    assert facts["polkit"].value == ("activatable" if text else "absent")
    finally:
        service.unlink(missing_ok=True)
        bus.reload()
    assert taps() == []


def test_a05_polkit_that_dies_or_restarts_in_mid_check_is_a_no(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    with Client(alice) as client:
        for prompts in (False, True):
            with FakePolkitAgain(authority) as fake:
                serial = client.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
                if prompts:
                    fake.decide(ASK)
                fake.check()
                fake.close()
                with FakePolkit() as next_one:
                    assert client.answer(serial).error.short == "AuthorityUnavailable"
                    next_one.silence()
    assert taps() == []


class FakePolkitAgain(FakePolkit):
    """The name's next owner; the former one gives it up."""

    def __init__(self, former: FakePolkit) -> None:
        former.close()
        super().__init__()


def test_a06_without_the_flag_or_the_option_nobody_is_prompted(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    with Client(alice) as client:
        serial = client.ask("Acquire", [tap()], options(vm="one", interactive=False))
        (check,) = authority.decide(ASK)
        assert check.flags == 0
        error = client.answer(serial).error
        assert error.name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
        assert '"one"' in error.text
        authority.silence()
        serial = client.ask("Acquire", [tap()], options(vm="one", interactive=True))
        first, second = authority.decide(ASK, NO)
        assert (first.flags, second.flags) == (0, 1)
        assert client.answer(serial).error.short == "NotAuthorized"


@pytest.mark.parametrize("broker", Flavour, indirect=True)
def test_a07_one_bit_of_the_header_allows_a_prompt_whatever_the_others_are(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    broker.configure(FAST)
    with Client(alice) as client:
        for flags in range(0x100):
            message = client.message("Acquire", [[tap()], options(vm="one")])
            raw = marshalled(message)
            raw[2] = flags
            client.send_bytes(bytes(raw))
            if flags & 0x1:
                continue  # NO_REPLY_EXPECTED is refused before polkit; see B21
            authority.decide(ASK)
            if flags & INTERACTIVE:
                (prompt,) = authority.decide(NO)
                assert prompt.flags == 1
            error = client.answer(message.serial).error
            expected = (
                "NotAuthorized" if flags & INTERACTIVE else "InteractiveAuthorizationRequired"
            )
            assert error.short == expected
        authority.silence()


CHANGES = {
    "another address": '[network.default]\nipv4 = "10.99.0.1/24"\n',
    "the network is gone": '[network.other]\nipv4 = "10.99.0.1/24"\n',
    "the file is wrong": "[nonsense]\n",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a08_a_network_that_changes_behind_the_prompt_is_not_given(
    broker: Broker, authority: FakePolkit, alice: User, change: str
) -> None:
    with Client(alice) as client:
        serial = client.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
        authority.decide(ASK)
        prompt = authority.check()
        broker.configure(CHANGES[change])
        authority.answer_check(prompt, YES)
        error = client.answer(serial).error
        assert error.short in ("StateChanged", "NotFound", "Configuration")
        assert error.short == "StateChanged" or change != "another address"
        assert client.leases() == []
    assert taps() == []


def test_a08_a_bridge_that_was_replaced_behind_the_prompt_is_another(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    broker.configure("[bridge.lan0]\n")
    with Client(alice) as client:
        with lan_bridge("lan0"):
            serial = client.ask("Acquire", [tap(None, bridge="lan0")], options(vm="one"), flags=4)
            authority.decide(ASK)
            prompt = authority.check()
        with lan_bridge("lan0"):
            authority.answer_check(prompt, YES)
            assert client.answer(serial).error.short == "StateChanged"
    assert taps() == []


@contextmanager
def account(uid: int) -> Iterator[None]:
    """The lab's own /etc/passwd knows this uid."""
    passwd = Path("/etc/passwd")
    text = passwd.read_text()
    passwd.write_text(f"{text}lab{uid}:x:{uid}:{uid}::/:/bin/sh\n")
    try:
        yield
    finally:
        passwd.write_text(text)


@pytest.mark.parametrize("uid", [0, 65534, 3_000_000_000])
def test_a14_no_uid_is_special_by_its_number(
    broker: Broker, authority: FakePolkit, uid: int
) -> None:
    # The bus turns away whom the system does not know.
    with account(uid), Client(uid) as client:
        serial = client.ask("Acquire", [tap()], options(vm="one"))
        (check,) = authority.decide(NO)
        assert check.details["uid"] == str(uid)
        assert client.answer(serial).error.short == "NotAuthorized"
        serial = client.ask("Acquire", [tap()], options(vm="one"))
        authority.decide(YES)
        lease = client.lease(serial)
        assert [one["uid"] for one in client.leases()] == [uid]
        client.release(lease.path)
        lease.close()


def test_a15_no_two_checks_have_the_same_cancellation_id(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    seen = []
    with Client(alice) as client:
        for _ in range(3):
            for _ in range(3):
                serial = client.ask("Acquire", [tap()], options(vm="one"), flags=INTERACTIVE)
                seen += [check.cancellation for check in authority.decide(ASK, NO)]
                assert client.answer(serial).error.short == "NotAuthorized"
            broker.restart()
    assert len(set(seen)) == len(seen) == 18

# SPDX-License-Identifier: LGPL-2.1-or-later
"""polkit and PCI devices: what the prompt named is what was given, each time anew.

By the person at the machine, who is asked too: ``pci-assign`` is an administrator's, and no answer
is kept. pkttyagent on a real terminal takes the password.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from host.inside import machines
from host.inside.bootdisk import machine
from host.inside.hostdevs import LEGACY, NIC, comes_back, driver, with_ids
from host.inside.prompts import COMPLETE, FAILED, PASSWORDS, asked, planned
from host.inside.sessions import Session
from lab.button import POWER_OFF, RUNNING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.inside.sessions import Terminal

pytestmark = pytest.mark.host

ACTIONS = "org.sessionvirt.broker1"
#: One device is refused by its address, wherever it would go along; everything else is permitted.
RULE = """\
polkit.addRule(function (action, subject) {
    if (action.id !== "org.sessionvirt.broker1.pci-assign") { return polkit.Result.NOT_HANDLED; }
    var members = action.lookup("members").split(" ");
    return members.indexOf("%s") >= 0 ? polkit.Result.NO : polkit.Result.YES;
});
"""


@pytest.fixture
def session() -> Iterator[Session]:
    """user1, at the machine."""
    with Session.open("user1", vt=8, active=True) as one:
        yield one


def given(session: Session) -> list[dict[str, Any]]:
    """The grants of the user's only lease."""
    done = session.run(["sessionvirt", "leases", "--json"])
    (lease,) = json.loads(done.stdout)["leases"]
    assert lease["allowed"] == "asked"
    grants: list[dict[str, Any]] = lease["grants"]
    return grants


def answer(terminal: Terminal, plan: dict[str, Any]) -> None:
    """The prompt puts the question of the plan; an administrator says yes; the machine runs."""
    asked(terminal, plan)
    terminal.press(PASSWORDS["admin"] + "\n")
    terminal.expect(COMPLETE)
    terminal.expect(RUNNING)


def power_off(terminal: Terminal) -> None:
    terminal.press(POWER_OFF)
    assert terminal.end() == 0


def test_a_device_is_asked_for_by_name_and_each_time(session: Session) -> None:
    """Also by who sits at the machine; a yes for one is none for another, nor for the next time."""
    first, second = with_ids(NIC)
    name = "Intel Corporation 82574L Gigabit Network Connection"
    with machine(session, "named") as vm:
        options = ("--network=none", f"--pci={first}")
        plan = planned(session, vm, *options)
        assert (plan["verdict"], plan["action"]) == ("ask", f"{ACTIONS}.pci-assign")
        assert plan["prompt"] == (
            f'Authentication is required to give "{name}" ({first}) to the virtual machine'
            ' "named". The host cannot use it until the machine ends.'
        )
        with session.terminal(vm.command("run", *options)) as terminal:
            answer(terminal, plan)
            (grant,) = given(session)
            assert (grant["address"], grant["name"], grant["members"]) == (first, name, [first])
            assert (driver(first), driver(second)) == ("vfio-pci", "e1000e")
            power_off(terminal)
        comes_back(first, "e1000e")
        for card in (second, first):
            other = ("--network=none", f"--pci={card}")
            with session.terminal(vm.command("run", *other)) as terminal:
                asked(terminal, planned(session, vm, *other))
                terminal.press(PASSWORDS["user1"] + "\n")
                terminal.expect(FAILED)
                assert terminal.end() == 4
            assert driver(card) == "e1000e"


def test_several_things_are_one_question_that_names_them_all(session: Session) -> None:
    """Two devices, one of them with another of its group: one prompt, of the action for several."""
    card = with_ids(NIC)[0]
    legacy, along = with_ids(LEGACY)
    with machine(session, "several") as vm:
        options = ("--network=none", f"--pci={card}", f"--pci={legacy}", "--with-group")
        plan = planned(session, vm, *options)
        assert (plan["verdict"], plan["action"]) == ("ask", f"{ACTIONS}.vm-start")
        for address in (card, legacy, along):
            assert f"({address})" in plan["prompt"]
        with session.terminal(vm.command("run", *options)) as terminal:
            answer(terminal, plan)
            assert [grant["members"] for grant in given(session)] == [[card], [legacy, along]]
            power_off(terminal)
    for address, former in ((card, "e1000e"), (legacy, "e1000"), (along, "e1000")):
        comes_back(address, former)


def test_a_rule_that_refuses_one_device_refuses_the_start(session: Session) -> None:
    """Nobody is asked and nothing is given, whatever the rule says of the other."""
    first, second = with_ids(NIC)
    machines.RULES.write_text(RULE % second)
    try:
        machines.wait_for_rule("pci-assign", "yes", members=first)
        with machine(session, "refused") as vm:
            options = ("--network=none", f"--pci={first}", f"--pci={second}")
            done = session.run(vm.command("plan", "--json", *options))
            plan = json.loads(done.stdout)
            assert (done.returncode, plan["verdict"]) == (4, "no")
            assert [one["verdict"] for one in plan["requests"]] == ["yes", "no"]
            with session.terminal(vm.command("run", *options)) as terminal:
                assert terminal.end() == 4
                assert "AUTHENTICATING" not in terminal.seen
                assert f"({second})" in terminal.seen
            assert [driver(card) for card in (first, second)] == ["e1000e", "e1000e"]
    finally:
        machines.RULES.unlink()
        machines.wait_for_rule("pci-assign", "no", members=first)

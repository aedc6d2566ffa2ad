# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt run`` and polkit, as people meet them: no prompt, a prompt, every way out of it.

Sessions are logind's own, the agent is pkttyagent on a real terminal, started by the command
itself, and the password goes through PAM. Who sits at the machine is in the session in the
foreground of seat0; user2 is logged in there, too, but in the background.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from host.inside import strangers, units
from host.inside.bootdisk import Machine, machine
from host.inside.prompts import AGENTS, COMPLETE, FAILED, PASSWORDS, asked, planned
from host.inside.sessions import Session, foreground, processes, until
from lab import host
from lab.button import POWER_OFF, RUNNING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.inside.sessions import Terminal

pytestmark = pytest.mark.host

ACTIONS = "org.sessionvirt.broker1"
NETWORK = "--network=default"
#: What a plan says of the prompt.
ASKED = ("verdict", "action", "prompt", "requests")
BRIDGE = "br0"


@pytest.fixture
def background() -> Iterator[Session]:
    """user2, logged in on a virtual terminal that is not in the foreground."""
    with Session.open("user2", vt=9) as session:
        assert foreground() != 9
        yield session


@pytest.fixture
def lan() -> Iterator[None]:
    """A bridge with a MAC address of its own, which broker.toml offers."""
    host.ip(*f"link add {BRIDGE} address 52:54:00:00:00:b0 type bridge".split())
    try:
        host.ip(*f"address add 192.0.2.1/24 dev {BRIDGE}".split())
        host.ip("link", "set", BRIDGE, "up")
        with strangers.configured(f"[bridge.{BRIDGE}]\n"):
            yield
    finally:
        host.ip("link", "delete", BRIDGE)


# What is given


def leases(session: Session) -> list[dict[str, Any]]:
    """What ``sessionvirt leases`` tells them."""
    done = session.run(["sessionvirt", "leases", "--json"])
    found: list[dict[str, Any]] = json.loads(done.stdout)["leases"]
    return found


def given(session: Session, vm: Machine) -> dict[str, Any]:
    """The one lease of that user, for this machine, with the TAP that the host really has."""
    (lease,) = leases(session)
    assert (lease["vm"], lease["uid"], lease["state"]) == (vm.name, session.uid, "held")
    assert abs(time.time() - lease["since"]) < 100
    (grant,) = lease["grants"]
    link = host.link(grant["ifname"])
    bridge = grant["bridge"] or f"svn_{grant['network']}"
    assert (link["ifindex"], link["master"]) == (grant["ifindex"], bridge)
    return lease


def power_off(terminal: Terminal) -> None:
    """The guest's end, as its user ends it, and the command's."""
    terminal.press(POWER_OFF)
    assert terminal.end() == 0
    until(lambda: not taps(), "the TAPs are gone")


def taps() -> list[str]:
    return [name for name in host.ours() if name.startswith("svt")]


def nothing_came_of_it() -> None:
    """No prompt is open, nobody holds anything, and nothing was granted."""
    until(lambda: not processes(*AGENTS), "the agent and its helper have ended")
    assert (taps(), processes("qemu-system-x86")) == ([], [])
    root = subprocess.run(["sessionvirt", "leases", "--json"], stdout=subprocess.PIPE, check=True)
    assert json.loads(root.stdout)["leases"] == []


# Tests


def test_who_sits_at_the_machine_is_not_asked() -> None:
    """allow_active=yes: no agent ever speaks; the lease says so, and ends with QEMU."""
    with (
        Session.open("user1", vt=8, active=True) as session,
        machine(session, "quiet") as vm,
    ):
        plan = planned(session, vm, NETWORK)
        assert (plan["verdict"], plan["prompt"]) == ("yes", "")
        began = units.now()
        with session.terminal(vm.command("run", NETWORK)) as terminal:
            assert "AUTHENTICATING" not in terminal.expect(RUNNING)
            assert terminal.process.pid in session.processes()
            lease = given(session, vm)
            assert (lease["allowed"], lease["grants"][0]["network"]) == ("yes", "default")
            power_off(terminal)
        (line,) = granted(began)
        assert f'uid="{session.uid}"' in line
        assert 'why="yes"' in line


def granted(began: str) -> list[str]:
    """The broker's own words on what was granted since."""
    lines = units.journal_since(began, f"--unit={units.BROKER}")
    return [line for line in lines if "event=grant" in line]


def test_in_the_background_an_administrator_is_asked(background: Session) -> None:
    """allow_inactive: plan says so before; the right password; the lease has what the prompt said.

    A session without a seat, as one over SSH is, is asked the same.
    """
    with machine(background, "asking") as vm:
        plan = planned(background, vm, NETWORK)
        assert (plan["verdict"], plan["action"]) == ("ask", f"{ACTIONS}.network-attach")
        assert plan["prompt"] == (
            "Authentication is required to connect the virtual machine"
            ' "asking" to the network "default"'
        )
        with Session.open("user2") as far:
            assert (far.show("Seat"), far.show("Active")) == ("", "yes")
            other = planned(far, vm, NETWORK)
            # The TAP's name is drawn anew each time.
            assert [other[key] for key in ASKED] == [plan[key] for key in ASKED]
        with background.terminal(vm.command("run", NETWORK)) as terminal:
            asked(terminal, plan)
            assert leases(background) == []
            terminal.press(PASSWORDS["admin"] + "\n")
            terminal.expect(COMPLETE)
            terminal.expect(RUNNING)
            lease = given(background, vm)
            assert (lease["allowed"], lease["grants"][0]["network"]) == ("asked", "default")
            assert PASSWORDS["admin"] not in terminal.seen
            power_off(terminal)


#: Ways out of a prompt: what is pressed, the command's exit status, and a word of it.
WAYS_OUT = {
    "wrong password": (PASSWORDS["user2"] + "\n", 4, "polkit does not allow this user what"),
    "end of file": ("\x04", 4, ""),
    "interrupt": ("\x03", 130, ""),
    "left alone": ("", 4, "the prompt was not answered in time"),
}


def test_every_other_way_out_of_a_prompt_gives_nothing(background: Session) -> None:
    """A clear word, an exit status, the terminal as it was, and nothing that stays.

    Each prompt comes at once although the one before it did not end well.
    """
    began = units.now()
    with machine(background, "refused") as vm:
        plan = planned(background, vm, NETWORK)
        for way, (keys, status, word) in WAYS_OUT.items():
            patience = "prompt_seconds = 5" if way == "left alone" else ""
            with (
                strangers.configured(f"[limits]\n{patience}\n"),
                background.terminal(vm.command("run", NETWORK)) as terminal,
            ):
                asked(terminal, plan)
                terminal.press(keys)
                assert (terminal.end(), way) == (status, way), terminal.seen
                assert word in terminal.seen
                assert "Traceback" not in terminal.seen
                assert terminal.echoes(), f"{way}: what is typed next would not be seen"
                nothing_came_of_it()
    assert granted(began) == []


def test_the_prompt_ends_with_who_asked(background: Session) -> None:
    """SIGKILL of the command while the prompt is open; and where there is nobody to ask, no prompt.

    The next one is not kept waiting: one prompt of a user is open at a time.
    """
    began = units.now()
    with machine(background, "killed") as vm:
        plan = planned(background, vm, NETWORK)
        for _ in range(2):
            with background.terminal(vm.command("run", NETWORK)) as terminal:
                asked(terminal, plan)
                os.kill(terminal.process.pid, signal.SIGKILL)
                assert terminal.end() == -signal.SIGKILL
                nothing_came_of_it()
        for options in ((), ("--no-ask-password",)):
            done = background.run(vm.command("run", NETWORK, *options))
            assert (done.returncode, done.stdout) == (5, ""), done.stderr
            assert "nobody to ask" in done.stderr
        nothing_came_of_it()
    assert granted(began) == []


@pytest.mark.usefixtures("lan")
def test_a_bridge_of_the_lan_is_asked_for_at_the_machine_too_each_by_himself(
    background: Session,
) -> None:
    """Two prompts of two users at once, of which one's session goes to the background meanwhile.

    Each names its own machine and what it is for; a right password for the one is none for the
    other.
    """
    with (
        Session.open("user1", vt=8, active=True) as session,
        machine(session, "on-lan") as ours,
        machine(background, "on-nat") as theirs,
        contextlib.ExitStack() as stack,
    ):
        first = planned(session, ours, f"--bridge={BRIDGE}")
        second = planned(background, theirs, NETWORK)
        assert (first["verdict"], first["action"]) == ("ask", f"{ACTIONS}.bridge-attach")
        assert f'"on-lan" to the local network by the bridge "{BRIDGE}"' in first["prompt"]
        one = stack.enter_context(session.terminal(ours.command("run", f"--bridge={BRIDGE}")))
        asked(one, first)
        two = stack.enter_context(background.terminal(theirs.command("run", NETWORK)))
        asked(two, second)
        session.deactivate()
        two.press(PASSWORDS["user1"] + "\n")
        two.expect(FAILED)
        assert two.end() == 4
        assert leases(session) == []
        one.press(PASSWORDS["admin"] + "\n")
        one.expect(COMPLETE)
        one.expect(RUNNING)
        lease = given(session, ours)
        (grant,) = lease["grants"]
        assert (lease["allowed"], grant["bridge"], grant["network"]) == ("asked", BRIDGE, "")
        assert f"({grant['mac']})" in first["prompt"]
        assert leases(background) == []
        power_off(one)

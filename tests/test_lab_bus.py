# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's system bus and polkitd answer as Debian's do."""

from __future__ import annotations

import json
import os
import select
import signal
from typing import TYPE_CHECKING

import pytest

from lab.broker import NAME

if TYPE_CHECKING:
    from lab.bus import SystemBus
    from lab.polkit import Polkit
    from lab.users import User

pytestmark = pytest.mark.bus

ACTION = "org.freedesktop.policykit.exec"
CHECK = ["sh", "-c", f"pkcheck --action-id {ACTION} --process $$"]
#: pkcheck(1): 0 authorised, 1 not, 2 it would have to ask.
YES, NO, WOULD_ASK = 0, 1, 2


def test_an_actions_own_defaults_decide_where_there_are_no_rules(
    polkit: Polkit, alice: User
) -> None:
    assert alice.run(CHECK).returncode == WOULD_ASK


def test_each_new_rule_is_in_force_when_the_call_returns(polkit: Polkit, alice: User) -> None:
    for result, status in (("yes", YES), ("no", NO), ("auth_admin", WOULD_ASK)) * 5:
        polkit.answer(ACTION, result)
        assert alice.run(CHECK).returncode == status


def test_a_rule_for_one_user_leaves_the_others(polkit: Polkit, alice: User, bob: User) -> None:
    polkit.answer("org.freedesktop.policykit.*", "yes", user="alice")
    assert alice.run(CHECK).returncode == YES
    assert bob.run(CHECK).returncode == WOULD_ASK


def test_a_rule_can_go_by_group(polkit: Polkit, alice: User, carol: User) -> None:
    polkit.rules(
        "polkit.addRule(function (action, subject) {"
        ' return subject.isInGroup("sessionvirt") ? "yes" : "no"; });'
    )
    assert alice.run(CHECK).returncode == YES
    assert carol.run(CHECK).returncode == NO


@pytest.mark.usefixtures("no_broker")
def test_the_bus_starts_the_broker_for_who_asks(bus: SystemBus, alice: User) -> None:
    done = alice.run(["sessionvirt", "networks", "--json"])
    pidfd = os.pidfd_open(bus.pid_of(NAME))
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        assert select.select([pidfd], [], [], 10)[0]
    finally:
        os.close(pidfd)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["networks"]


def test_polkit_can_be_absent(polkit: Polkit, alice: User) -> None:
    polkit.stop()
    assert alice.run(CHECK).returncode not in (YES, NO, WOULD_ASK)

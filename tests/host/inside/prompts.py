# SPDX-License-Identifier: LGPL-2.1-or-later
"""A prompt of polkit's on somebody's terminal: what was planned, what it asks, what is answered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from host.inside.sessions import until
from host.recipe import ACCOUNTS

if TYPE_CHECKING:
    from host.inside.bootdisk import Machine
    from host.inside.sessions import Session, Terminal

__all__ = ["AGENTS", "COMPLETE", "FAILED", "PASSWORDS", "asked", "planned"]

PASSWORDS = {account.name: account.password for account in ACCOUNTS}
#: What pkttyagent writes around a prompt.
COMPLETE = "==== AUTHENTICATION COMPLETE ====\n"
FAILED = "==== AUTHENTICATION FAILED ====\n"
#: What shows a prompt, and what takes the password.
AGENTS = ("pkttyagent", "polkit-agent-helper-1")


def planned(session: Session, vm: Machine, *wanted: str) -> dict[str, Any]:
    """What ``sessionvirt plan`` says before."""
    done = session.run(vm.command("plan", "--json", *wanted))
    assert done.returncode == 0, done.stderr
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def asked(terminal: Terminal, plan: dict[str, Any]) -> None:
    """The prompt comes; it puts the question that was planned, to an administrator."""
    terminal.expect(f"==== AUTHENTICATING FOR {plan['action']} ====\n")
    lines = terminal.expect("Password: ").split("\n")
    assert lines == [plan["prompt"], "Authenticating as: admin", "Password: "]
    until(lambda: not terminal.echoes(), "the terminal shows no keys")

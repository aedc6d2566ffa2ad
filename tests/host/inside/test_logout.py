# SPDX-License-Identifier: LGPL-2.1-or-later
"""Logout, sleep and the clock: a lease lives exactly as long as its QEMU.

What a logout ends is logind's and systemd's decision, not ours: with Debian's KillUserProcesses=no
what runs in a session stays when its leader goes, a user manager stays where there is lingering,
and both end what is left by SIGTERM. Whatever they do, what QEMU had is there before and gone
after.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from host.inside import machines
from host.inside.bootdisk import machine
from host.inside.hostdevs import NIC, comes_back, driver, with_ids
from host.inside.sessions import Session, processes, properties, until
from lab import host
from lab.button import RUNNING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.inside.bootdisk import Machine

pytestmark = pytest.mark.host

NETWORK = "--network=default"
#: As root sees them, whoever is logged in.
LISTING = ("sessionvirt", "leases", "--json")


def leases() -> dict[str, dict[str, Any]]:
    """All leases, by the machine's name."""
    done = subprocess.run(LISTING, stdout=subprocess.PIPE, check=True)
    return {lease["vm"]: lease for lease in json.loads(done.stdout)["leases"]}


def held(vm: Machine) -> None:
    """The machine runs, and has what it was given."""
    assert len(processes("qemu-system-x86_64")) == 1
    lease = leases()[vm.name]
    grant, *devices = lease["grants"]
    assert lease["state"] == "held"
    assert all(driver(device["address"]) == "vfio-pci" for device in devices)
    assert host.link(grant["ifname"])["master"] == "svn_default"
    assert {"concat": [grant["ifname"], grant["mac"]]} in host.elements("bridge", "macs")


def returned() -> None:
    """No machine runs, and nothing that one had is left: TAP, bridge, addresses, rules, dnsmasq."""
    assert processes("qemu-system-x86_64", "sessionvirt") == []
    assert leases() == {}
    until(lambda: not host.ours(), "the network is gone")
    until(lambda: not processes("dnsmasq"), "dnsmasq has ended")
    assert "svt" not in host.nft("list", "ruleset")


def state(user: str) -> str:
    """What logind says of a user: active, online, lingering, closing; nothing when forgotten."""
    return properties("user", user).get("State", "")


def test_without_lingering_what_runs_in_the_session_stays_until_logind_ends_it() -> None:
    """``sessionvirt run &`` and exit; then the administrator ends what is left of the session.

    A card of the host's goes the same way.
    """
    card = with_ids(NIC)[0]
    with (
        machines.permitted(),
        Session.open("user1", vt=8, active=True) as session,
        machine(session, "stays") as vm,
    ):
        command = vm.command("run", NETWORK, f"--pci={card}", "--no-ask-password")
        with session.running(command, stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            assert any(RUNNING in line for line in running.stdout)
            session.log_out()
            until(lambda: session.show("State") == "closing", "logind knows of the logout")
            held(vm)
            assert driver(card) == "vfio-pci"
            subprocess.run(["loginctl", "kill-session", session.id], check=True)
            running.wait(60)
            until(lambda: not properties("session", session.id), "the session is gone")
            comes_back(card, "e1000e")
            returned()


def test_a_terminal_that_is_closed_asks_the_guest_to_power_down() -> None:
    """SIGHUP: the guest ends in order, and so does the command."""
    with Session.open("user1", vt=8, active=True) as session, machine(session, "hung-up") as vm:
        with session.terminal(vm.command("run", NETWORK)) as terminal:
            terminal.expect(RUNNING)
            held(vm)
            terminal.hang_up()
            # 128 + SIGHUP: it was the guest that ended, and the command that told why.
            assert terminal.process.wait(60) == 129
        returned()


def test_a_machine_of_the_user_manager_stays_for_as_long_as_the_user_lingers() -> None:
    """Started by ``systemd-run --user``, in no session: no prompt, as the user is at the machine.

    Then the logout; and then the end of lingering, which ends the user manager and the machine.
    """
    with Session.open("user1", vt=8, active=True) as session, machine(session, "lingers") as vm:
        with lingering(session.user):
            start = ["systemd-run", "--user", "--quiet", "--collect", "--unit=vm"]
            start.append("--setenv=XDG_CACHE_HOME")
            command = vm.command("run", NETWORK, "--no-ask-password")
            assert session.run([*start, *command]).returncode == 0
            until(lambda: processes("qemu-system-x86_64") and vm.name in leases(), "it runs")
            assert leases()[vm.name]["allowed"] == "yes"
            session.log_out()
            until(lambda: state(session.user) == "lingering", "no session is left")
            held(vm)
        until(lambda: not state(session.user), "the user manager has ended")
        returned()


@contextlib.contextmanager
def lingering(user: str) -> Iterator[None]:
    """As an administrator says that a user's services outlive their sessions."""
    subprocess.run(["loginctl", "enable-linger", user], check=True)
    try:
        yield
    finally:
        subprocess.run(["loginctl", "disable-linger", user], check=True)

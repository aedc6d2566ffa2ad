# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker is started by the first call and ends when it has held nothing for a while.

Under the real systemd and the real dbus-daemon, by the installed unit. The hard part is the moment
of the end: systemd must hear of it before the name is given up, or a call that comes then waits for
a unit that "runs already"; and what was sent before the name was given up has to be answered.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

import pytest

from host.inside import machines, units
from lab import host, rawbus
from lab.files import wait_until_empty
from lab.rawbus import Client
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.host

#: As the broker has it where nothing else is said.
IDLE_SECONDS = 30.0


@pytest.mark.usefixtures("permission")
def test_a_call_starts_it_and_thirty_seconds_after_the_last_lease_it_ends() -> None:
    """The installed unit: Type=notify; inactive, active, deactivating, inactive; and again."""
    units.stop()
    with units.Watch() as watch, Client(User.named("user1")) as client:
        first = client.acquire([rawbus.tap()])
        assert units.show(units.BROKER, "Type", "ActiveState", "SubState", "NotifyAccess") == {
            "Type": "notify",
            "NotifyAccess": "main",
            "ActiveState": "active",
            "SubState": "running",
        }
        former = units.main_pid()
        with units.pidfd_of(former) as ended:
            # A lease keeps it, and what was last done counts, not when it was started.
            assert not select.select([ended], [], [], IDLE_SECONDS / 4)[0]
            client.release(first.path)
            released = time.monotonic()
            units.wait_for_end(ended, 2 * IDLE_SECONDS)
            assert time.monotonic() - released > IDLE_SECONDS - 1
        first.close()
        watch.until("inactive")
        results = units.show(units.BROKER, "Result", "ExecMainStatus", "NRestarts")
        assert results == {"Result": "success", "ExecMainStatus": "0", "NRestarts": "0"}
        with pytest.raises(rawbus.BusError, match="NameHasNoOwner"):
            client.owner()
        assert client.call("ListNetworks", {})[0][0]["name"].value == "default"
        assert units.main_pid() not in (0, former)


@pytest.mark.usefixtures("permission")
def test_ready_is_said_when_old_leases_are_taken_up() -> None:
    """``systemctl start`` returns, and so does everything ordered after it, when READY=1 came.

    At that moment a lease whose holder has gone meanwhile is undone already, and one whose holder
    is there is watched.
    """
    with machines.Holder("user1") as one, machines.Holder("user2") as two:
        gone, kept = one.take(), two.take()
        units.stop()
        gone.close()
        assert len(host.elements("bridge", "macs")) == 2
        units.systemctl("start", units.BROKER)
        (element,) = host.elements("bridge", "macs")
        assert element == {"concat": [kept.tap.ifname, kept.tap.mac]}
        assert not (machines.RECORDS / f"lease-{gone.id}.json").exists()
        assert [lease["vm"] for lease in two.leases()] == ["vm"]
        with kept:
            assert machines.works(kept)


# The moment of the end


class Crowd:
    """Connections of two users that call all at once, and what they were answered."""

    def __init__(self, stack: contextlib.ExitStack, size: int) -> None:
        users = [User.named("user1"), User.named("user2")]
        self.clients = [stack.enter_context(Client(users[i % 2])) for i in range(size)]
        self._asked: list[tuple[Client, int, bool]] = []

    def ask(self, number: int) -> None:
        """One call: every other pair of connections wants a lease."""
        client, wants = self.clients[number], number % 4 < 2
        if wants:
            named = rawbus.options(vm=f"vm{number}")
            serial = client.ask("Acquire", [rawbus.tap()], named)
        else:
            serial = client.ask("ListNetworks", {})
        self._asked.append((client, serial, wants))

    def answers(self) -> list[rawbus.Lease]:
        """Exactly one answer to each call, and no error; the leases that they gave."""
        leases = []
        asked, self._asked = self._asked, []
        for client, serial, wants in asked:
            if wants:
                answer = client.answer(serial, units.SECONDS)
                path, hold, grants = answer.body
                plain = [{key: one.value for key, one in grant.items()} for grant in grants]
                fds = list(answer.fds)
                leases.append(rawbus.Lease(path, fds.pop(hold), plain, fds))
            else:
                network, private = client.answer(serial, units.SECONDS).body[0]
                assert (network["name"].value, private["name"].value) == ("default", "private")
        for client, serial, _ in asked:
            client.bus_call("GetId")
            with pytest.raises(TimeoutError):
                client.answer(serial, 0.001)
        return leases

    def intact(self, leases: list[rawbus.Lease]) -> None:
        """Each lease is known to the broker that serves now, and the host has what it needs."""
        known = {lease["lease"]: lease for client in self.clients[:2] for lease in client.leases()}
        assert set(known) == {lease.path for lease in leases}
        rules = host.elements("bridge", "macs")
        for lease in leases:
            (grant,) = lease.grants
            assert known[lease.path]["state"] == "held"
            assert host.link(grant["ifname"])["ifindex"] == grant["ifindex"]
            assert {"concat": [grant["ifname"], grant["mac"]]} in rules

    def release(self, leases: list[rawbus.Lease]) -> None:
        """Give all back; afterwards the broker is idle."""
        for lease in leases:
            lease.close()
        wait_until_empty(machines.RECORDS, units.SECONDS)


@contextlib.contextmanager
def stopped_bus() -> Iterator[int]:
    """dbus-daemon does not run, so that what is sent to it waits, in order of arrival."""
    pid = units.main_pid("dbus.service")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


#: So short that a round is mostly a start; and more starts in a minute than the unit allows.
QUICK = (
    "ExecStart=",
    "ExecStart=/usr/bin/python3 -IB -m sessionvirt_broker --idle-seconds 0.4",
)
OFTEN = ("StartLimitIntervalSec=0",)


@pytest.mark.usefixtures("permission")
def test_what_is_sent_before_and_after_the_name_is_given_up_is_answered() -> None:
    """dbus-daemon stands still while the broker ends: both sides of the moment, for certain.

    Four calls are in front of the broker's ReleaseName, so that the old one must answer them after
    it has said STOPPING=1, and four are behind it, so that they start the next. Two leases of each.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(units.drop_in(*QUICK, unit=OFTEN))
        crowd = Crowd(stack, 8)
        began = units.now()
        for _ in range(2):
            crowd.clients[0].call("ListNetworks", {}, timeout=units.SECONDS)
            with stopped_bus():
                for number in range(4):
                    crowd.ask(number)
                # systemd is told by a socket of its own; without the bus it tells nobody.
                while units.show(units.BROKER, "ActiveState")["ActiveState"] == "active":
                    pass
                for number in range(4, 8):
                    crowd.ask(number)
            leases = crowd.answers()
            assert len(leases) == 4
            crowd.intact(leases)
            crowd.release(leases)
        quiet(began)


@pytest.mark.usefixtures("permission")
def test_calls_around_the_moment_of_the_end_are_answered_once() -> None:
    """As it happens by itself: the calls of a round are spread over the time of the end."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(units.drop_in(*QUICK, unit=OFTEN))
        crowd = Crowd(stack, 8)
        began = units.now()
        for number in range(4):
            leases = [crowd.clients[0].acquire([rawbus.tap()])]
            crowd.release(leases)
            end = time.monotonic() + 0.4
            for caller in range(8):
                # Not a wait for anything: when to call is what is tried.
                moment = end + (caller - 3) * 0.008 + number * 0.006
                time.sleep(max(0.0, moment - time.monotonic()))
                crowd.ask(caller)
            leases = crowd.answers()
            crowd.intact(leases)
            crowd.release(leases)
        quiet(began)


def quiet(began: str) -> None:
    """Nothing was killed, timed out, failed or started again by systemd."""
    said = units.journal_since(began, f"--unit={units.BROKER}")
    troubles = ("kill", "timed out", "Failed", "failed", "Traceback", "incident", "locked")
    assert not [line for line in said if any(word in line for word in troubles)]

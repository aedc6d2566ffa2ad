# SPDX-License-Identifier: LGPL-2.1-or-later
"""A call that was sent before the idle broker gave its name up, under systemd: the broker has said
STOPPING=1 then, from which there is no way back, and still has to answer.

The broker is started as systemd does: as its own user, with a notification socket. dbus-daemon
stands still while it ends, so that the call is in front of ReleaseName for certain.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from lab.broker import COMMAND, USER, Broker
from lab.bus import ENVIRONMENT
from lab.fakepolkit import ASK, NO, YES, FakePolkit
from lab.lan import lan_bridge
from lab.rawbus import Client, assert_serves, options, tap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.bus import SystemBus
    from lab.users import User

pytestmark = pytest.mark.bus

INTERACTIVE = 0x4
BRIDGE = "br-lab"
SUCCESSOR = 75
CAPABILITIES = "-all,+net_admin,+dac_override,+fowner,+kill"


class Manager:
    """systemd's end of the notification socket (sd_notify(3))."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.socket.bind("\0sessionvirt-test-notify")
        self.socket.settimeout(10)

    def hear(self) -> str:
        """The next that it is told."""
        return self.socket.recv(4096).decode()

    def heard(self) -> list[str]:
        """What it has been told since."""
        said = []
        self.socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                said.append(self.hear())
        return said


@pytest.fixture
def manager(broker: Broker) -> Iterator[Manager]:
    """The broker runs as a service of this one, and is idle after a moment."""
    user = pwd.getpwnam(USER)
    identity = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    given = ("inh-caps", "ambient-caps", "bounding-set")
    powers = [f"--{name}={CAPABILITIES}" for name in given]
    broker.configure(f"[bridge.{BRIDGE}]\n")
    broker.stop()
    systemd = Manager()
    with lan_bridge(BRIDGE), systemd.socket:
        broker.daemon.environment = ENVIRONMENT | {"NOTIFY_SOCKET": "@sessionvirt-test-notify"}
        broker.daemon.argv = ["setpriv", *identity, *powers, "--no-new-privs", *COMMAND]
        broker.daemon.argv += ["--idle-seconds", "0.3"]
        broker.start()
        assert systemd.hear() == "READY=1"
        yield systemd
        broker.daemon.argv, broker.daemon.environment = COMMAND, ENVIRONMENT


def acquire_at_the_end(client: Client, bus: SystemBus, manager: Manager) -> int:
    """An Acquire that is read by a broker which has said STOPPING=1; the call's serial."""
    os.kill(bus.daemon.pid, signal.SIGSTOP)
    try:
        wanted = [tap(None, bridge=BRIDGE)]
        serial = client.ask("Acquire", wanted, options(vm="late"), flags=INTERACTIVE)
        assert manager.hear() == "STOPPING=1"
    finally:
        os.kill(bus.daemon.pid, signal.SIGCONT)
    return serial


def test_a_lease_of_the_last_moment_is_left_to_a_successor(
    manager: Manager, bus: SystemBus, authority: FakePolkit, broker: Broker, alice: User
) -> None:
    with Client(alice) as client:
        serial = acquire_at_the_end(client, bus, manager)
        authority.decide(YES)
        lease = client.lease(serial)
        assert broker.daemon.wait(10) == SUCCESSOR
        assert manager.heard() == []
        broker.daemon.argv, broker.daemon.environment = COMMAND, ENVIRONMENT
        broker.start()
        assert [one["lease"] for one in client.leases()] == [lease.path]
        client.release(lease.path)
        lease.close()


@pytest.mark.parametrize(("answer", "status"), [(YES, SUCCESSOR), (NO, 0)])
def test_a_prompt_of_the_last_moment_is_waited_for_and_nobody_waits_for_it(
    answer: list[object],
    status: int,
    manager: Manager,
    bus: SystemBus,
    authority: FakePolkit,
    broker: Broker,
    alice: User,
    bob: User,
) -> None:
    """systemd is asked for more time, and others are served meanwhile."""
    with Client(alice) as client:
        serial = acquire_at_the_end(client, bus, manager)
        authority.decide(ASK)
        prompt = authority.check()
        assert manager.hear().startswith("EXTEND_TIMEOUT_USEC=")
        pid = broker.daemon.pid
        assert_serves(bob)
        assert bus.pid_of("org.sessionvirt.Broker1") == pid
        authority.answer_check(prompt, answer)
        with contextlib.ExitStack() as stack:
            if answer is YES:
                stack.callback(client.lease(serial).close)
            else:
                assert client.answer(serial).error.short == "NotAuthorized"
            assert broker.daemon.wait(10) == status
            assert "READY=1" not in manager.heard()
    # What the holder has let go of meanwhile is given back by the next.
    broker.daemon.argv, broker.daemon.environment = COMMAND, ENVIRONMENT
    broker.start()
    broker.wait_until_idle()

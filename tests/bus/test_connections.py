# SPDX-License-Identifier: LGPL-2.1-or-later
"""Group B of the attacks, connections: their descriptors, their end, their floods, their names."""

from __future__ import annotations

import contextlib
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dbus_fast import MessageType

from lab.broker import COMMAND
from lab.bus import ENVIRONMENT
from lab.fakepolkit import ASK, YES, FakePolkit
from lab.links import link_goes
from lab.rawbus import (
    INTERFACE,
    LEASE,
    PATH,
    BusError,
    Client,
    assert_serves,
    marshalled,
    options,
    tap,
)
from lab.stage import Flavour

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.polkit import Polkit
    from lab.users import User

pytestmark = pytest.mark.bus

LEASE_PATH = f"{PATH}/lease/{'0' * 32}"
PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PROPERTIES = "org.freedesktop.DBus.Properties"

NO_AUTO_START = 2

both_flavours = pytest.mark.parametrize("broker", Flavour, indirect=True)


def descriptors(broker: Broker) -> int:
    return len(os.listdir(f"/proc/{broker.daemon.pid}/fd"))


# B18, B19: descriptors


@both_flavours
def test_b18_descriptors_are_closed_wherever_they_come(
    broker: Broker, unlimited: None, open_bus: None, alice: User
) -> None:
    calls: list[tuple[str, str, list[Any], str]] = [
        (INTERFACE, "Plan", [[tap()], options(vm="x")], "a(sa{sv})a{sv}"),
        (INTERFACE, "Acquire", [[tap()], options(vm="x")], "a(sa{sv})a{sv}"),
        (INTERFACE, "Nothing", [], ""),
        (INTERFACE, "Diagnose", [0], "h"),
        (PEER, "Ping", [], ""),
        (PROPERTIES, "Get", ["a", "b"], "ss"),
        (LEASE, "Release", [{}], "a{sv}"),
    ]
    with Client(alice) as client, Path("/dev/null").open() as null:
        assert_serves(alice)
        before = descriptors(broker)
        for count in (1, 2, 16):
            fds = [null.fileno()] * count
            for interface, member, body, signature in calls * 30:
                message = client.message(member, body, signature=signature, interface=interface)
                error = client.answer(client.send(message, fds)).error
                assert error.short in ("InvalidArgs", "UnknownMethod", "NotFound")
            for _ in range(30):
                signal = client.message("Hello", [], signature="")
                signal.message_type = MessageType.SIGNAL
                client.send(signal, fds)
                client.bus_call("GetId")
        assert_serves(alice)
        assert descriptors(broker) == before


def test_b18_the_shipped_bus_policy_lets_no_descriptor_through(broker: Broker, alice: User) -> None:
    with Client(alice) as client, Path("/dev/null").open() as null:
        message = client.message("Diagnose", [{}])
        error = client.answer(client.send(message, [null.fileno()])).error
        assert error.name == "org.freedesktop.DBus.Error.AccessDenied"


@both_flavours
def test_b19_indexes_and_counts_that_do_not_fit_the_descriptors(
    broker: Broker, unlimited: None, open_bus: None, alice: User
) -> None:
    assert_serves(alice)
    before = descriptors(broker)
    for index in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
        for count in (0, 1, 2):
            with Client(alice) as client, Path("/dev/null").open() as null:
                fds = [null.fileno()] * count
                message = client.message("Diagnose", [index], signature="h")
                message.unix_fds = fds
                raw = bytes(marshalled(message))
                # The header says *count*, and one more, or one fewer, comes along.
                for really in {count, count + 1, max(count - 1, 0)}:
                    try:
                        client.send_bytes(raw, [null.fileno()] * really)
                        client.receive(2)
                    except (ConnectionError, TimeoutError):
                        break
    assert_serves(alice)
    assert descriptors(broker) == before


def test_the_limits_of_the_file_hold_from_the_first_call(broker: Broker, alice: User) -> None:
    """Also for calls that are refused before anything of the host is looked at."""
    broker.stop()
    broker.configure("[limits]\ncalls_per_second = 1\n")
    broker.start()
    with Client(alice) as client:
        errors = [client.error("Diagnose", "x", signature="s").short for _ in range(20)]
    assert errors[0] == "InvalidArgs"
    assert "LimitsExceeded" in errors


# B21, B22: nobody to answer


def test_b21_a_lease_that_nobody_could_receive_is_not_made(
    broker: Broker, authority: FakePolkit, root: Client, alice: User
) -> None:
    with Client(alice) as client:
        client.ask("Acquire", [tap()], options(vm="one"), flags=1)
        serial = client.ask("Acquire", [tap()], options(vm="one"))
        authority.decide(YES)  # of the second
        lease = client.lease(serial)
        client.ask("Add", [tap()], {}, path=lease.path, interface=LEASE, flags=1)
        assert len(client.leases()) == 1
        assert [grant["id"].value for grant in client.leases()[0]["grants"]] == ["tap0"]
        authority.silence()
        client.ask("Release", {}, path=lease.path, interface=LEASE, flags=1)
        assert client.leases() == []
        assert root.leases() == []
        lease.close()


def test_b22_a_caller_that_never_reads_does_not_keep_others_waiting(
    broker: Broker, alice: User, bob: User
) -> None:
    with Client(alice) as client:
        for _ in range(2000):
            client.ask("ListNetworks", {})
        assert_serves(bob)
        assert_serves(alice.uid + 2)
    assert_serves(bob)


def test_b22_a_connection_that_floods_takes_nobody_elses_room(
    broker: Broker, unlimited: None, root: Client, alice: User, bob: User
) -> None:
    """Calls come faster than the bus can say whose they are: each connection has its own bound."""
    with Client(alice) as client, Client(bob) as his:
        call: dict[str, Any] = {"signature": "", "interface": INTROSPECTABLE, "flags": 1}
        flood = [marshalled(client.message("Introspect", **call)) for _ in range(8000)]
        client.send_bytes(b"".join(flood))
        for _ in range(20):
            assert his.call("ListNetworks", {})[0]
    assert_serves(alice)


@both_flavours
def test_b22_answers_faster_than_the_bus_reads_do_not_end_the_broker(
    broker: Broker, alice: User
) -> None:
    call: dict[str, Any] = {"signature": "", "interface": INTROSPECTABLE, "flags": 1}
    with ExitStack() as stack, Client() as root:
        before = root.owner()
        clients = [stack.enter_context(Client(alice)) for _ in range(150)]
        for client in clients:
            calls = [marshalled(client.message("Introspect", **call)) for _ in range(60)]
            client.send_bytes(b"".join(calls))
        for client in clients:
            client.bus_call("GetId")  # the bus has all of it
        for _ in range(1000):
            with contextlib.suppress(BusError):  # it has too much to do
                root.call("ListNetworks", {})
                break
        assert root.owner() == before


def test_b22_descriptors_that_nobody_fetches_stop_the_broker_for_seconds_only(
    broker: Broker, unlimited: None, polkit: Polkit, alice: User, bob: User
) -> None:
    """dbus-daemon counts them for who sent them, and reads no more from there at 64."""
    polkit.answer(f"{INTERFACE.lower()}.*", "yes")
    with Client(alice) as client:
        for _ in range(3000):  # answers that fill what the kernel keeps for it
            client.ask("ListNetworks", {})
        assert_serves(bob)
        for number in range(8):
            wanted = [tap(queues=8), tap(queues=7)]
            client.ask("Acquire", wanted, options(vm=f"vm{number}"))
        with Client(bob) as his:
            with contextlib.suppress(TimeoutError):
                while True:  # the first whose answer does not come, and one more
                    his.call("ListNetworks", {}, timeout=1)
            his.ask("ListNetworks", {})
            assert broker.daemon.wait(15) == 1
        broker.daemon.spawn()
        served = None
        with Client(bob) as his:
            while served is None:
                with contextlib.suppress(BusError):  # of a name that has no owner yet
                    served = his.call("ListNetworks", {}, flags=NO_AUTO_START)
    broker.wait_until_idle()


def test_b22_a_caller_that_vanishes_in_mid_call_leaves_nothing(
    broker: Broker, authority: FakePolkit, root: Client, alice: User
) -> None:
    with link_goes("svn_default"):
        client = Client(alice)
        client.ask("Acquire", [tap(), tap()], options(vm="one"), flags=4)
        authority.decide(YES, YES)
        second = Client(alice)
        serial = second.ask("Acquire", [tap()], options(vm="two"), flags=4)
        authority.decide(ASK, YES)
        second.socket.recv(1)  # the beginning of an answer with descriptors in it
        client.close()
        second.close()
    assert root.leases() == []
    assert serial


# B23, B24: names


def test_b23_the_unique_name_is_no_second_door(broker: Broker, polkit: Polkit, alice: User) -> None:
    with Client(alice) as client:
        owner = client.owner()
        error = client.error("Acquire", [tap()], options(vm="one"), destination=owner)
        assert error.short == "InteractiveAuthorizationRequired"
        error = client.error("GetAll", "x", signature="s", destination=owner, interface=PROPERTIES)
        assert error.name == "org.freedesktop.DBus.Error.AccessDenied"


def test_b24_nobody_but_the_brokers_user_may_own_its_name(broker: Broker, alice: User) -> None:
    for user in (alice.uid, 0):
        with Client(user) as client, pytest.raises(BusError) as refused:
            client.bus_call("RequestName", "su", INTERFACE, 2)
        assert refused.value.short == "AccessDenied"


def test_b24_a_second_broker_waits_for_the_first_and_then_takes_over(broker: Broker) -> None:
    with Client() as client:
        first = client.owner()
        second = subprocess.Popen(COMMAND, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        try:
            client.bus_call(
                "AddMatch", "s", f"type='signal',member='NameOwnerChanged',arg0='{INTERFACE}'"
            )
            assert broker.stop() == 0
            owners: list[str] = []
            while not owners or not owners[-1]:
                owners.append(client.receive().message.body[2])
            assert owners[-1] != first
        finally:
            second.terminate()
            assert second.wait(10) == 0


def test_b24_a_second_broker_elsewhere_finds_the_name_taken_and_ends(
    broker: Broker, tmp_path: Path
) -> None:
    argv = [*COMMAND, "--runtime", f"/run/{tmp_path.name}"]
    try:
        done = subprocess.run(
            argv, env=ENVIRONMENT, stderr=subprocess.PIPE, timeout=10, check=False
        )
        assert done.returncode == 1
        assert b"is owned by somebody else" in done.stderr
    finally:
        subprocess.run(["rm", "-r", f"/run/{tmp_path.name}"], check=True)

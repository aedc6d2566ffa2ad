# SPDX-License-Identifier: LGPL-2.1-or-later
"""PCI devices and LockMemory at the broker's edge, on a host without an IOMMU: what is answered,
refused and closed. That a device is really given is proved in the test host.
"""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dbus_fast import Message, MessageType, Variant

from lab.broker import RUNTIME
from lab.fakepolkit import YES, FakePolkit
from lab.rawbus import LEASE, PATH, Client, assert_serves, options, pci, tap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.rawbus import BusError
    from lab.users import User

pytestmark = pytest.mark.bus

#: What the contract's comment of ListDevices promises.
ROW = {
    "address": "s", "name": "s", "ids": "s", "subsystem": "s", "class": "s", "driver": "s",
    "variant": "s", "group": "s", "endpoint": "b", "resets": "as", "rom": "b", "uses": "as",
    "holder": "s", "verdict": "s",
}  # fmt: skip
ABSENT = "ffff:ff:1f.7"
NO_LEASE = f"{PATH}/lease/{'0' * 32}"
#: A method takes no descriptor, but for this one; and a signal of its name none either.
LOCK = ("LockMemory", LEASE)
HERE = sorted(path.name for path in Path("/sys/bus/pci/devices").glob("*"))

needs_pci = pytest.mark.skipif(not HERE, reason="this machine has no PCI device")
needs_no_iommu = pytest.mark.skipif(
    any(Path("/sys/kernel/iommu_groups").glob("*")), reason="this machine has an IOMMU"
)


@contextmanager
def pidfd() -> Iterator[int]:
    """This process'."""
    descriptor = os.pidfd_open(os.getpid())
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def descriptors(broker: Broker) -> int:
    return len(os.listdir(f"/proc/{broker.daemon.pid}/fd"))


def lock(client: Client, lease: str, *fds: int, index: int = 0) -> BusError:
    """The error that a LockMemory must end with."""
    message = client.message("LockMemory", [index, 1 << 20, {}], path=lease, interface=LEASE)
    return client.answer(client.send(message, fds)).error


# ListDevices


def test_devices_have_the_documented_keys_and_types_whoever_asks(
    broker: Broker, alice: User
) -> None:
    answers = []
    for user in (0, alice):
        with Client(user) as client:
            rows = client.call("ListDevices", {})[0]
        assert [row["address"].value for row in rows] == HERE
        for row in rows:
            assert {key: value.signature for key, value in row.items()} == ROW
            verdicts = ("free", "group", "refused", "held", "no-iommu", "bridge")
            assert row["verdict"].value in verdicts
            assert row["holder"].value == ""
        answers.append([{key: value.value for key, value in row.items()} for row in rows])
    assert answers[0] == answers[1]


def test_no_option_is_known_to_list_devices(broker: Broker, alice: User) -> None:
    with Client(alice) as client:
        error = client.error("ListDevices", {"all": Variant("b", value=True)})
    assert (error.short, "all" in error.text) == ("InvalidArgs", True)


# Requests


@needs_pci
@needs_no_iommu
@pytest.mark.parametrize("member", ["Plan", "Acquire"])
def test_without_an_iommu_a_device_is_refused_at_once_and_nothing_is_left(
    member: str, broker: Broker, authority: FakePolkit, alice: User
) -> None:
    """Neither is a module loaded nor polkit asked; everybody else would wait meanwhile."""
    device = HERE[-1]
    with Client(alice) as client:
        for request in (pci(device), pci(device, with_group=True, managed=False)):
            error = client.error(member, [request], options(vm="one"), timeout=5)
            assert error.short == "NotSupported"
            assert device in error.text
        mixed = client.error(member, [tap(), pci(device)], options(vm="one"), timeout=5)
        assert mixed.short == "NotSupported"
        authority.silence()
        assert client.leases() == []
    assert list((RUNTIME / "records").iterdir()) == []
    assert list((RUNTIME / "holds").iterdir()) == []


@pytest.mark.parametrize(
    ("request_", "name", "word"),
    [
        (pci(ABSENT), "NotFound", ABSENT),
        (pci("0000:03:00.8"), "InvalidArgs", "address"),
        (pci("../../etc"), "InvalidArgs", "address"),
        (["pci", {}], "InvalidArgs", "address"),
        (["pci", {"address": Variant("u", 3)}], "InvalidArgs", "address"),
        (pci(ABSENT, also=Variant("as", ["x"])), "InvalidArgs", "also"),
        (pci(ABSENT, also=Variant("as", [ABSENT] * 33)), "InvalidArgs", "also"),
        (pci(ABSENT, also=Variant("s", ABSENT)), "InvalidArgs", "also"),
        (pci(ABSENT, with_group=Variant("s", "yes")), "InvalidArgs", "with_group"),
        (pci(ABSENT, managed=Variant("u", 1)), "InvalidArgs", "managed"),
        (pci(ABSENT, rom=Variant("b", value=True)), "InvalidArgs", "rom"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_is_refused_by_its_field(
    request_: Any, name: str, word: str, broker: Broker, alice: User
) -> None:
    with Client(alice) as client:
        error = client.error("Plan", [request_], options(vm="one"))
    assert error.short == name
    assert word in error.text
    assert "requests[0]" in error.text or name == "NotFound"


# LockMemory


def test_only_a_lease_with_a_device_locks_memory(
    broker: Broker, authority: FakePolkit, alice: User, bob: User
) -> None:
    """By the shipped bus policy, which lets this one descriptor through."""
    with Client(alice) as client, Client(bob) as other, pidfd() as process:
        serial = client.ask("Acquire", [tap()], options(vm="one"))
        authority.decide(YES)
        with closing(client.lease(serial)) as lease:
            assert lock(client, lease.path, process).short == "NotSupported"
            forbidden, absent = lock(other, lease.path, process), lock(other, NO_LEASE, process)
            assert forbidden.short == "NotFound"
            assert (forbidden.name, forbidden.text) == (absent.name, absent.text)
            # What the call is about comes before what comes along.
            assert lock(other, lease.path, 2).text == absent.text
            client.release(lease.path)


def test_lock_memory_takes_one_descriptor_and_other_members_none(
    broker: Broker, open_bus: None, alice: User
) -> None:
    with Client(alice) as client, pidfd() as process:
        for fds in ((), (process, process)):
            error = lock(client, NO_LEASE, *fds)
            assert (error.short, error.text) == (
                "InvalidArgs",
                "one file descriptor belongs in this call",
            )
        assert lock(client, NO_LEASE, process, index=1).short == "InvalidArgs"
        for member, body in (("Release", [{}]), ("Drop", [["pci0"], {}])):
            message = client.message(member, body, path=NO_LEASE, interface=LEASE)
            error = client.answer(client.send(message, [process])).error
            assert error.text == "no file descriptor belongs in this call"


def test_the_shipped_bus_policy_lets_one_descriptor_through_to_lock_memory_alone(
    broker: Broker, alice: User
) -> None:
    denied = "org.freedesktop.DBus.Error.AccessDenied"
    with Client(alice) as client, pidfd() as process:
        assert lock(client, NO_LEASE, process).short == "NotFound"
        assert lock(client, NO_LEASE, process, process).name == denied
        message = client.message("Release", [{}], path=NO_LEASE, interface=LEASE)
        assert client.answer(client.send(message, [process])).error.name == denied
        message = client.message("LockMemory", [0, 1, {}])
        assert client.answer(client.send(message, [process])).error.name == denied


def test_descriptors_of_whatever_is_called_lock_memory_are_closed(
    broker: Broker, unlimited: None, open_bus: None, alice: User
) -> None:
    member, interface = LOCK
    with Client(alice) as client, pidfd() as process:
        assert_serves(alice)
        before = descriptors(broker)
        for count in (0, 1, 2, 16):
            for path in (NO_LEASE, PATH, "/"):
                for signature, body in (("hta{sv}", [0, 1, {}]), ("", []), ("a{sv}", [{}])):
                    message = client.message(
                        member, body, signature=signature, path=path, interface=interface
                    )
                    error = client.answer(client.send(message, [process] * count)).error
                    assert error.short in ("InvalidArgs", "UnknownMethod", "NotFound")
        assert_serves(alice)
        assert descriptors(broker) == before


@pytest.mark.parametrize("kind", [MessageType.SIGNAL, MessageType.METHOD_RETURN, MessageType.ERROR])
def test_descriptors_of_what_is_no_call_are_closed_whatever_it_is_called(
    kind: MessageType, broker: Broker, unlimited: None, open_bus: None, alice: User
) -> None:
    """A header may name interface and member in a signal, and by the bus' leave in an answer."""
    member, interface = LOCK
    with Client(alice) as client, pidfd() as process:
        assert_serves(alice)
        before = descriptors(broker)
        for _ in range(20):
            message = Message(
                destination=client.owner(),
                path=NO_LEASE,
                interface=interface,
                member=member,
                message_type=kind,
                error_name="a.b.C" if kind is MessageType.ERROR else None,
                reply_serial=0 if kind is MessageType.SIGNAL else 1,
                serial=client.next_serial(),
            )
            client.send(message, [process])
        client.bus_call("GetId")
        assert_serves(alice)
        assert descriptors(broker) == before

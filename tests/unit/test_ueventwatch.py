# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is heard of the kernel's events: devices of PCI that came, went or changed their driver."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from sessionvirt_broker.ueventwatch import UeventWatch, changed_device

pytestmark = pytest.mark.unit

ADDRESS = "0000:03:00.0"
PATH = f"/devices/pci0000:00/0000:00:1c.0/{ADDRESS}"


@pytest.mark.parametrize("action", ["remove", "unbind", "bind", "move"])
def test_a_device_that_changed(action: str) -> None:
    event = f"{action}@{PATH}\0ACTION={action}\0DEVPATH={PATH}\0SUBSYSTEM=pci\0".encode()
    assert changed_device(event) == ADDRESS
    assert changed_device(f"{action}@{PATH}".encode()) == ADDRESS


@pytest.mark.parametrize(
    "event",
    [
        b"",
        b"\0",
        b"@",
        b"remove",
        b"remove@",
        b"remove@/",
        b"\xff\xfe@\xff",
        b"add@" + PATH.encode(),
        b"change@" + PATH.encode(),
        b"remove@" + PATH.encode() + b"/net/eth0",
        b"remove@" + PATH.encode() + b"/",
        b"remove@/devices/pci0000:00",
        b"remove@/bus/pci/drivers/e1000e",
        b"libudev\0remove@" + PATH.encode(),
        b"x\0remove@" + PATH.encode(),
    ],
)
def test_what_is_none(event: bytes) -> None:
    assert changed_device(event) == ""


class Queue:
    """A socket's receiving end that has these."""

    def __init__(self, *heard: tuple[bytes, tuple[int, int]] | OSError) -> None:
        self.heard = list(heard)

    def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
        if not self.heard:
            raise BlockingIOError
        one = self.heard.pop(0)
        if isinstance(one, OSError):
            raise one
        return one


def watching(queue: Queue) -> UeventWatch:
    watch = UeventWatch.__new__(UeventWatch)
    watch._socket = queue  # type: ignore[assignment]  # only this end of it is used
    return watch


def test_only_the_kernel_is_heard() -> None:
    """Who may send to the group at all is a process, with a port of its own."""
    event = f"remove@{PATH}".encode()
    assert watching(Queue((event, (4711, 1)))).changes().addresses == frozenset()
    assert watching(Queue((event, (0, 1)))).changes().addresses == {ADDRESS}


def test_lost_messages_are_everything_and_those_that_came_count() -> None:
    event = f"bind@{PATH}".encode()
    changes = watching(Queue(OSError(105, "ENOBUFS"), (event, (0, 1)))).changes()
    assert changes.everything
    assert changes.addresses == {ADDRESS}


def test_another_error_is_not_swallowed() -> None:
    with pytest.raises(OSError, match="EIO"):
        watching(Queue(OSError(5, "EIO"))).changes()


def test_a_flood_does_not_keep_the_loop() -> None:
    queue = Queue(*[(f"bind@{PATH}".encode(), (0, 1))] * 1000)
    assert watching(queue).changes().addresses == {ADDRESS}
    assert 0 < len(queue.heard) < 1000


def test_the_socket_is_the_kernels_group_and_does_not_block() -> None:
    with closing(UeventWatch()) as watch:
        assert watch._socket.getsockname()[1] == 1
        assert watch._socket.family == socket.AF_NETLINK
        assert watch.changes().everything is False

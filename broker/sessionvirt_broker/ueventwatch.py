# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hears from the kernel that a PCI device came, went, or changed its driver.

Only the first line of each message is read, on the loop: ACTION@DEVPATH (lib/kobject_uevent.c);
what has become of a device is then asked of sysfs, on the worker. A queue that overflowed (ENOBUFS)
means: look at everything. udev's own messages, which have another form and group, are not heard.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from .pci import is_address

__all__ = ["DeviceChanges", "UeventWatch", "changed_device"]

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL = 1
_ACTIONS = frozenset({"remove", "unbind", "bind", "move"})
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class DeviceChanges:
    """What was heard.

    :param everything: messages were lost.
    """

    addresses: frozenset[str]
    everything: bool


class UeventWatch:
    """The socket. Give :meth:`fileno` to the loop."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            _NETLINK_KOBJECT_UEVENT,
        )
        self._socket.bind((0, _KERNEL))

    def fileno(self) -> int:
        """What the loop watches for reading."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    def changes(self) -> DeviceChanges:
        """Everything heard since the last call."""
        addresses: set[str] = set()
        everything = False
        for _ in range(_AT_ONCE):  # the loop comes again for what is left
            try:
                data, sender = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                everything = True
                continue
            if sender[0] == 0 and (address := changed_device(data)):  # only the kernel has port 0
                addresses.add(address)
        return DeviceChanges(frozenset(addresses), everything)


def changed_device(event: bytes) -> str:
    """The PCI address of a device that an event says came, went or changed its driver.

    Empty: it says nothing like that.
    """
    action, _, path = event.partition(b"\0")[0].decode(errors="replace").partition("@")
    name = path.rpartition("/")[2]
    return name if action in _ACTIONS and is_address(name) else ""

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hears from the kernel that a PCI device came, went, or changed its driver.

Only the first line of each message is read, on the loop: ACTION@DEVPATH (lib/kobject_uevent.c);
what has become of a device is then asked of sysfs, on the worker. Where messages were lost,
everything has to be looked at. udev's own, which have another form and group, are not heard.
"""

from __future__ import annotations

from dataclasses import dataclass

from .listener import KernelListener
from .pci import is_address

__all__ = ["DeviceChanges", "UeventWatch", "changed_device"]

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL = 1
_ACTIONS = frozenset({"remove", "unbind", "bind", "move"})


@dataclass(frozen=True, slots=True)
class DeviceChanges:
    """What was heard.

    :param everything: messages were lost.
    """

    addresses: frozenset[str]
    everything: bool


class UeventWatch(KernelListener):
    """The socket."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_KOBJECT_UEVENT, _KERNEL)

    def changes(self) -> DeviceChanges:
        """Everything heard since the last call."""
        messages, lost = self.heard()
        return DeviceChanges(frozenset(map(changed_device, messages)) - {""}, everything=lost)


def changed_device(event: bytes) -> str:
    """The PCI address of a device that an event says came, went or changed its driver.

    Empty: it says nothing like that.
    """
    action, _, path = event.partition(b"\0")[0].decode(errors="replace").partition("@")
    name = path.rpartition("/")[2]
    return name if action in _ACTIONS and is_address(name) else ""

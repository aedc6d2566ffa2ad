# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every part of the command line shares: the domain, the binary, the wiring, addresses, boot.

One board serves one call of :func:`~.command.build`; the parts ask it for devices in a fixed order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sessionvirt.model.devices import DiskDevice
from sessionvirt.model.domain import BootDevice
from sessionvirt.model.interface import Interface, host_devices

from .option import structured
from .pci import PciLayout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sessionvirt.model.devices import Controller, ControllerType
    from sessionvirt.model.domain import Domain
    from sessionvirt.xmltree import Location

    from .capabilities import Capabilities
    from .wiring import Wiring

__all__ = ["Board", "hostdev_id", "interface_id"]

#: What else does the job, for a message that a device is missing.
_INSTEAD: Final = {
    "virtio-blk-pci": "bus='sata'",
    "virtio-net-pci": "<model type='e1000e'/>",
    "virtio-vga": "<model type='vga'/>",
    "virtio-rng-pci": "no <rng>",
    "virtio-balloon-pci": "<memballoon model='none'/>",
    "pcie-root-port": "machine='pc'",
    "qemu-xhci": "<controller type='usb' model='none'/> and bus='virtio' for inputs",
    "rtl8139": "<model type='virtio'/>",
    "e1000": "<model type='virtio'/>",
    "e1000e": "<model type='virtio'/>",
}


def interface_id(index: int) -> str:
    """The ``-device`` id of an interface; its ``-netdev`` is ``host`` and that."""
    return f"net{index}"


def hostdev_id(index: int) -> str:
    """The ``-device`` id of a host device."""
    return f"hostdev{index}"


class Board:
    """See the module.

    :param machine: the canonical machine type.
    """

    def __init__(
        self, domain: Domain, capabilities: Capabilities, wiring: Wiring, machine: str
    ) -> None:
        self.domain = domain
        self.capabilities = capabilities
        self.wiring = wiring
        self.express = "q35" in machine
        self.pci = PciLayout(domain, express=self.express)
        self._boot_order = dict(_boot_order(domain))

    def device(
        self, driver: str, name: str, where: Location, properties: Mapping[str, object]
    ) -> list[str]:
        """One ``-device``.

        :param name: its id; also what boot order goes by.
        :param where: the element that asks for it.
        :raise DefinitionError: this binary does not have it.
        """
        self.require("device", driver, self.capabilities.devices, where)
        values = {"driver": driver, "id": name, "bootindex": self._boot_order.get(name)}
        return ["-device", structured(values | dict(properties))]

    def controller(self, kind: ControllerType) -> Controller | None:
        """The first controller of a kind that the document names."""
        return next((c for c in self.domain.controllers if c.type is kind), None)

    def require(self, kind: str, name: str, present: frozenset[str], where: Location) -> None:
        """Refuse an element for which the binary has nothing.

        :raise DefinitionError: naming the element, the binary and what could be used instead.
        """
        if name in present:
            return
        version = ".".join(str(part) for part in self.capabilities.version)
        instead = _INSTEAD.get(name)
        where.refuse(
            f"{self.capabilities.binary} (QEMU {version}) has no {kind} '{name}'",
            f"Use {instead} instead, or install a QEMU that has it."
            if instead
            else "Install a QEMU that has it (distributions split it into modules), or remove "
            "the element.",
        )


def _boot_order(domain: Domain) -> Iterator[tuple[str, int]]:
    """Device id and bootindex, from 1: QEMU gives 0 to a kernel on the command line."""
    names = [(disk.target, disk.boot_order) for disk in domain.disks]
    emulated = [(interface_id(i), n) for i, n in enumerate(domain.interfaces) if not n.is_hostdev]
    names += [(name, nic.boot_order) for name, nic in emulated]
    given = host_devices(domain)
    names += [(hostdev_id(i), device.boot_order) for i, device in enumerate(given)]
    fixed = [(name, order) for name, order in names if order is not None]
    if fixed:
        yield from fixed
        return
    of_kind = {
        BootDevice.DISK: [d.target for d in domain.disks if d.device is DiskDevice.DISK],
        BootDevice.CDROM: [d.target for d in domain.disks if d.device is DiskDevice.CDROM],
        BootDevice.NETWORK: [
            *(name for name, _ in emulated),
            *(hostdev_id(i) for i, device in enumerate(given) if isinstance(device, Interface)),
        ],
    }
    listed = [boot.device for boot in domain.os.boot] if domain.os is not None else []
    index = 0
    for kind in listed or [BootDevice.DISK]:
        for name in of_kind[kind][:1]:
            index += 1
            yield name, index

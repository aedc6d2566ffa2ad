# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where each PCI device sits in the guest.

The same domain gives the same addresses, always: a guest names its interfaces by them. What the
document fixes is kept; the rest is given out in the order in which devices ask, interfaces first
and the host's devices next, so that another disk moves neither, and another device of the host no
interface.

On q35 every PCI Express device has a root port of its own, :data:`SPARE_PORTS` stay free for
hot-plug, and conventional PCI devices stand on the root bus from slot 0x10 up. On i440fx all
devices stand on the one bus. Slot 1 (q35) or 2 (i440fx) of the root bus is the primary display's,
whether there is one or not.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sessionvirt.model.addresses import PciAddress
from sessionvirt.model.devices import Controller, ControllerModel, ControllerType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sessionvirt.model.devices import Device, PciPlace
    from sessionvirt.model.domain import Domain

__all__ = ["SPARE_PORTS", "PciLayout", "Place"]

SPARE_PORTS: Final = 4

_LAST_SLOT: Final = 0x1E  # 0x1f is the chipset's on q35
_LEGACY_SLOT: Final = 0x10
_SATA_PLACE: Final = (0, 0x1F, 2)
_ROOT_MODELS: Final = (ControllerModel.PCI_ROOT, ControllerModel.PCIE_ROOT)


class _FullError(Exception):
    """No slot is left."""


@dataclass(frozen=True)
class Place:
    """Where a device is, in the words of ``device_add``.

    :param bus: QEMU's name of it.
    :param number: the bus as a document writes it, and ``slot`` likewise.
    """

    bus: str
    number: int
    slot: int

    @property
    def addr(self) -> str:
        """The property ``addr``."""
        return hex(self.slot)


class PciLayout:
    """Gives out addresses for one command line.

    :param express: a q35 machine; else i440fx.
    :raise DefinitionError: the document's own addresses collide or name no bus.
    """

    def __init__(self, domain: Domain, *, express: bool) -> None:
        self._domain = domain
        self._express = express
        self._root = "pcie.0" if express else "pci.0"
        self.display_slot = 1 if express else 2
        self._declared = self._root_ports(domain)
        self._ports: dict[int, dict[str, object]] = {}
        self._used: dict[tuple[int, int, int], str] = {
            (0, slot, function): "the chipset"
            for slot in (0, 0x1F if express else 1)
            for function in range(8)
        }
        for device in _devices(domain):
            if device.address is not None and not self._built_in(device):
                self._reserve(device.address)
        self._busy = {key[0] for key in self._used}
        for index, controller in sorted(self._declared.items(), key=lambda item: item[0]):
            try:
                self._add_port(index, controller)
            except _FullError:
                controller.where.refuse("no PCI slot is left", "Use fewer controllers.")

    def place(self, device: Device | None, *, legacy: bool = False) -> dict[str, object]:
        """The properties that put a device where it belongs.

        :param device: None: one that the document does not name.
        :param legacy: conventional PCI.
        :raise DefinitionError: no slot is left.
        """
        if device is not None and device.address is not None:
            return self._fixed(device.address)
        try:
            if not self._express:
                return self._on_root(3)
            if legacy:
                return self._on_root(_LEGACY_SLOT)
            return {"bus": f"pci.{self._free_port()}", "addr": "0x0"}
        except _FullError:
            where = device.where if device is not None else self._domain.where
            where.refuse("no PCI slot is left", "Use fewer devices.")

    def place_display(self, device: Device | None) -> dict[str, object]:
        """The same for the primary display."""
        if device is not None and device.address is not None:
            return self._fixed(device.address)
        self._used[0, self.display_slot, 0] = "the display"
        return {"bus": self._root, "addr": hex(self.display_slot)}

    def ports(self) -> tuple[dict[str, object], ...]:
        """The root ports, spare ones included, for the front of the command line. Call it last."""
        with contextlib.suppress(_FullError):
            while self._express and len(self._ports.keys() - self._busy) < SPARE_PORTS:
                self._add_port(self._next_index(), None)
        return tuple(self._ports[index] for index in sorted(self._ports))

    def free(self) -> tuple[Place, ...]:
        """Where a device can be plugged in later, the first first. Call it after :meth:`ports`.

        The root bus of q35 takes none while the machine runs.
        """
        if self._express:
            indices = sorted(self._ports.keys() - self._busy)
            return tuple(Place(f"pci.{index}", index, 0) for index in indices)
        taken = {slot for bus, slot, _ in self._used if bus == 0}
        slots = sorted(set(range(3, _LAST_SLOT + 1)) - taken)
        return tuple(Place(self._root, 0, slot) for slot in slots)

    def _built_in(self, device: Device) -> bool:
        """Whether it is q35's own SATA controller, which has its place."""
        if not (self._express and isinstance(device, Controller)):
            return False
        if device.type is not ControllerType.SATA:
            return False
        place = device.address
        if place is not None and (place.bus, place.slot, place.function) != _SATA_PLACE:
            place.where.refuse(
                "the SATA controller of q35 is at slot 0x1f function 0x2",
                "Write that, or leave <address> out.",
            )
        return True

    def _root_ports(self, domain: Domain) -> dict[int, Controller]:
        found: dict[int, Controller] = {}
        chassis: set[int | None] = set()
        for controller in domain.controllers:
            if controller.type is not ControllerType.PCI or controller.model in _ROOT_MODELS:
                continue
            if controller.model is None:
                continue
            if not self._express or controller.model is not ControllerModel.PCIE_ROOT_PORT:
                controller.at("@model").refuse(
                    f"this machine type has no {controller.model} for PCI",
                    "Write machine='q35' and model='pcie-root-port', or leave it out.",
                )
            index = controller.index
            if not index or index in found:
                controller.at("@index").refuse(
                    "each PCI controller needs an index of its own, from 1",
                    "Write a number from 1 that no other PCI controller has.",
                )
            if controller.address is not None and controller.address.bus:
                controller.address.where.refuse(
                    "a root port is on bus 0", "Write bus='0x00', or leave <address> out."
                )
            if controller.chassis in chassis:
                controller.at("target/@chassis").refuse(
                    f"chassis {controller.chassis} is used twice", "Write a number of its own."
                )
            chassis |= {controller.chassis} - {None}
            found[index] = controller
        return found

    def _reserve(self, place: PciPlace) -> None:
        self._check(place)
        key = (place.bus, place.slot, place.function)
        if key in self._used:
            place.where.refuse(
                f"bus {place.bus} slot {place.slot:#x} function {place.function} is already "
                f"used by {self._used[key]}",
                "Write a free slot, or leave <address> out.",
            )
        self._used[key] = place.where.path.removesuffix("/address")

    def _check(self, place: PciPlace) -> None:
        try:
            PciAddress(place.domain, place.bus, place.slot, place.function)
        except ValueError as error:
            place.where.refuse(str(error), "Write slot 0x00 to 0x1f, function 0x0 to 0x7.")
        if place.domain or (place.bus and place.bus not in self._declared):
            place.where.refuse(
                f"there is no PCI bus {place.domain:#x}:{place.bus}",
                f"Add <controller type='pci' index='{place.bus}' model='pcie-root-port'/>, or "
                "leave <address> out.",
            )
        if place.bus and place.slot:
            place.where.refuse("a root port has slot 0 only", "Write slot='0x00'.")

    def _fixed(self, place: PciPlace) -> dict[str, object]:
        values: dict[str, object] = {
            "bus": f"pci.{place.bus}" if place.bus else self._root,
            "addr": f"{place.slot:#x}.{place.function:#x}" if place.function else hex(place.slot),
        }
        return values | ({"multifunction": True} if place.multifunction else {})

    def _on_root(self, first: int) -> dict[str, object]:
        for slot in range(first, _LAST_SLOT + 1):
            if not any((0, slot, function) in self._used for function in range(8)):
                self._used[0, slot, 0] = "another device"
                return {"bus": self._root, "addr": hex(slot)}
        raise _FullError

    def _free_port(self) -> int:
        free = sorted(self._ports.keys() - self._busy)
        index = free[0] if free else self._next_index()
        if not free:
            self._add_port(index, None)
        self._busy.add(index)
        return index

    def _next_index(self) -> int:
        for index in range(1, 256):
            if index not in self._ports:
                return index
        raise _FullError

    def _add_port(self, index: int, controller: Controller | None) -> None:
        if controller is not None and controller.address is not None:
            place = self._fixed(controller.address)
            slot, function = controller.address.slot, controller.address.function
        else:
            slot, function = self._port_function()
            self._used[0, slot, function] = "a root port"
            place = {"bus": self._root, "addr": f"{slot:#x}.{function:#x}"}
            if function == 0:
                place["multifunction"] = True
        declared = controller.port if controller is not None else None
        chassis = controller.chassis if controller is not None else None
        if chassis is None:
            taken = {port["chassis"] for port in self._ports.values()}
            taken |= {other.chassis for other in self._declared.values()}
            chassis = next(number for number in range(index, 512) if number not in taken)
        self._ports[index] = {
            "driver": "pcie-root-port",
            "id": f"pci.{index}",
            "port": declared if declared is not None else slot << 3 | function,
            "chassis": chassis,
            **place,
        }

    def _port_function(self) -> tuple[int, int]:
        """The next function for a root port: eight to a slot, from slot 2 up."""
        for slot in range(2, _LEGACY_SLOT):
            taken = {f: self._used.get((0, slot, f)) for f in range(8)}
            if all(owner in (None, "a root port") for owner in taken.values()):
                for function, owner in taken.items():
                    if owner is None:
                        return slot, function
        raise _FullError


def _devices(domain: Domain) -> Iterator[Device]:
    yield from (c for c in domain.controllers if c.model not in _ROOT_MODELS)
    yield from domain.interfaces
    yield from domain.hostdevs
    yield from domain.disks
    yield from domain.consoles
    yield from domain.inputs
    yield from domain.rngs
    yield from (d for d in (domain.video, domain.balloon) if d is not None)

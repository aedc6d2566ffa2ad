# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's PCI devices: as descriptors, or each by its address on the host.

By the address QEMU finds the VFIO group, whose node the broker lets this user open. With
descriptors of IOMMUFD it opens nothing, and needs no address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sessionvirt.model.interface import host_devices

from .board import hostdev_id
from .option import structured

if TYPE_CHECKING:
    from sessionvirt.model.interface import HostPci

    from .board import Board
    from .pci import Place

__all__ = ["VFIO", "hostdev_arguments", "hostdev_plug", "rom_properties"]

#: QEMU's driver for all of them.
VFIO: Final = "vfio-pci"
#: What "host" takes.
_MAX_DOMAIN: Final = 0xFFFF
#: The object's id.
_IOMMUFD: Final = "iommufd0"


def hostdev_arguments(board: Board) -> list[str]:
    """Every host device, in order, by whichever element it came."""
    arguments: list[str] = []
    wiring = board.wiring.hostdevs
    if wiring is not None:
        iommufd = {"qom-type": "iommufd", "id": _IOMMUFD, "fd": str(wiring.iommufd)}
        arguments += ["-object", structured(iommufd)]
    for index, hostdev in enumerate(host_devices(board.domain)):
        properties = _properties(hostdev)
        if wiring is not None:
            fd = str(wiring.devices[index])
            passed = {"iommufd": _IOMMUFD, "fd": fd}
            properties = passed | properties | dict.fromkeys(("host", "sysfsdev"))
        place = board.pci.place(hostdev)
        name = hostdev_id(index)
        arguments += board.device(VFIO, name, hostdev.where, properties | place)
    return arguments


def hostdev_plug(hostdev: HostPci, name: str, place: Place) -> dict[str, object]:
    """The arguments of ``device_add`` for one that comes while the machine runs."""
    values = {
        "driver": VFIO,
        "id": name,
        "bootindex": hostdev.boot_order,
        **_properties(hostdev),
        "bus": place.bus,
        "addr": place.addr,
    }
    return {key: value for key, value in values.items() if value is not None}


def _properties(hostdev: HostPci) -> dict[str, object]:
    # A MAC address and a VLAN are not QEMU's business: the host's card has been told.
    # QEMU's property for an address has four digits for the domain, and this one the kernel's name.
    host = hostdev.host
    wide = host.domain > _MAX_DOMAIN
    return {
        "host": None if wide else str(host),
        "sysfsdev": f"/sys/bus/pci/devices/{host}" if wide else None,
        **rom_properties(hostdev),
    }


def rom_properties(device: HostPci) -> dict[str, object]:
    """The expansion ROM, which every PCI device may have."""
    return {
        # A number in QEMU, not a boolean.
        "rombar": None if device.rom_bar is None else int(device.rom_bar),
        "romfile": device.rom_file,
    }

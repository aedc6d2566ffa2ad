# SPDX-License-Identifier: LGPL-2.1-or-later
"""A start without a start: what would fail is found before anybody is asked for a password.

The command line is built with examples in place of what only the start knows, so what the binary
lacks is told; and the files are looked at as QEMU will open them.

What this never does: start a process, open a file, ask the broker. A file may be gone a moment
later, or be another machine's; QEMU says so then.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from sessionvirt.errors import NotFoundError
from sessionvirt.model.devices import DiskDevice
from sessionvirt.model.interface import host_devices
from sessionvirt.model.needs import NeedKind, needs
from sessionvirt.qemu.command import build
from sessionvirt.qemu.command_hostdevs import VFIO
from sessionvirt.qemu.wiring import HostdevWiring, PasstWiring, TapWiring, UserWiring, Wiring

from .network import default_mac, find_passt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sessionvirt.model.domain import Domain
    from sessionvirt.model.interface import HostPci
    from sessionvirt.qemu.capabilities import Capabilities
    from sessionvirt.qemu.command import Command
    from sessionvirt.qemu.wiring import Accelerator, InterfaceWiring
    from sessionvirt.xmltree import Location

__all__ = ["rehearse", "rehearse_hostdev"]

#: Stands for a descriptor that is only known when the machine is started.
_EXAMPLE_FD: Final = 9
_EXAMPLE_MTU: Final = 1500
#: It comes with VFIO: on a host that has not loaded that yet, devices are shown by their addresses.
_IOMMUFD: Final = "/dev/iommu"


def rehearse(domain: Domain, capabilities: Capabilities, accelerator: Accelerator) -> Command:
    """Return the command of a start; its descriptors and given addresses are examples.

    :raise DefinitionError: the domain asks for what this binary lacks.
    :raise NotFoundError: a file is missing, or not for this user.
    """
    wirings = tuple(_examples(domain, capabilities))
    hostdevs = None
    given = len(host_devices(domain))
    if given and capabilities.takes_iommufd and os.path.exists(_IOMMUFD):
        hostdevs = HostdevWiring(_EXAMPLE_FD, (_EXAMPLE_FD,) * given)
    command = build(domain, capabilities, Wiring(_EXAMPLE_FD, accelerator, wirings, hostdevs))
    for path, mode, where in _files(domain):
        _look(path, mode, where)
    return command


def rehearse_hostdev(hostdev: HostPci, drivers: frozenset[str]) -> None:
    """The same for a device that comes while the machine runs.

    :param drivers: what the QEMU that runs has.
    :raise DefinitionError: it lacks the one for this.
    :raise NotFoundError: a file is missing, or not for this user.
    """
    if VFIO not in drivers:
        hostdev.where.refuse(
            f"the QEMU that runs has no device '{VFIO}'",
            "Install a QEMU that has it (distributions split it into modules), and start anew.",
        )
    if hostdev.rom_file is not None:
        _look(hostdev.rom_file, os.R_OK, hostdev.at("rom/@file"))


def _examples(domain: Domain, capabilities: Capabilities) -> Iterator[InterfaceWiring]:
    for need in needs(domain):
        mac = need.mac or default_mac(domain.name, need.interface)
        if need.kind is NeedKind.TAP:
            yield TapWiring((_EXAMPLE_FD,) * need.queues, mac, need.mtu or _EXAMPLE_MTU)
        elif find_passt(capabilities) is not None:
            yield PasstWiring(_EXAMPLE_FD, mac)
        else:
            yield UserWiring(mac, need.ports)


def _files(domain: Domain) -> Iterator[tuple[str, int, Location]]:
    """Each file that has to be there, as ``os.access`` knows its use, and who names it."""
    for disk in domain.disks:
        if disk.file is not None:
            reads_only = disk.readonly or disk.device is DiskDevice.CDROM
            mode = os.R_OK if reads_only else os.R_OK | os.W_OK
            yield disk.file, mode, disk.at("source/@file")
    devices: tuple[HostPci, ...] = (*domain.hostdevs, *domain.interfaces)
    for device in devices:
        if device.rom_file is not None:
            yield device.rom_file, os.R_OK, device.at("rom/@file")
    if domain.os is not None:
        for path, name in ((domain.os.kernel, "kernel"), (domain.os.initrd, "initrd")):
            if path is not None:
                yield path, os.R_OK, domain.os.at(name)


def _look(path: str, mode: int, where: Location) -> None:
    if os.access(path, mode):
        return
    if not os.path.lexists(path):
        reason, advice = "there is no such file", "check the path"
    else:
        verb = "write" if os.access(path, os.R_OK) else "read"
        reason = f"you may not {verb} it"
        advice = f"have its permissions changed: {path} and the directories above it"
    raise NotFoundError(f"{where}: cannot use {path}", evidence=reason, advice=advice)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain for people who have a disk or a kernel, and no XML.

The one module of the model that looks at a file: the first bytes of each disk, for its format. What
has no known magic is raw. A raw disk that the guest overwrites with another format's header would
be read as that format at the next start, and a qcow2 header can name any file of the host as its
backing file; so a format that is *said* is never second-guessed, and the word to say is "raw".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sessionvirt.errors import NotFoundError, UsageError

from .check import check_domain
from .devices import (
    CharType,
    Console,
    Disk,
    DiskBus,
    DiskFormat,
    Rng,
)
from .domain import Boot, BootDevice, Cpu, CpuMode, Domain, Features, Os
from .hostdev import Hostdev, HostPlace
from .interface import DirectMode, Interface, InterfaceType, NicModel, Vlan, VlanTag
from .nic import NicDriver

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .addresses import PciAddress
    from .bandwidth import Bandwidth

__all__ = ["QuickDisk", "QuickNetwork", "disk_format", "quick_domain"]

_MIB: Final = 1 << 20
#: Offset and bytes of formats that are not raw. Only the first can be run here.
_MAGIC: Final = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)


@dataclass(frozen=True)
class QuickDisk:
    """One disk.

    :param format: None: by the file's first bytes.
    """

    path: Path
    format: DiskFormat | None = None


@dataclass(frozen=True)
class QuickNetwork:
    """One interface: a managed network, a bridge, one of the host's, or (none) user mode.

    :param queues: pairs of queues; not for user mode.
    :param vlan: on the bridge.
    :param device: the host's interface that it shares.
    :param mode: how; with ``device``.
    :param isolated: apart from others there that are so; on a network or bridge.
    :param bandwidth: how much it receives and sends in a second; not for user mode, nor ``device``.
    """

    network: str | None = None
    bridge: str | None = None
    queues: int = 1
    vlan: int | None = None
    device: str | None = None
    mode: DirectMode = DirectMode.BRIDGE
    isolated: bool = False
    bandwidth: Bandwidth | None = None


def disk_format(path: Path) -> DiskFormat:
    """The format that a file's first bytes tell.

    :raise NotFoundError: it cannot be read.
    :raise UsageError: a format that is neither qcow2 nor raw.
    """
    try:
        with path.open("rb") as file:
            head = file.read(128)
    except OSError as error:
        raise NotFoundError(
            f"the disk {path} cannot be read",
            evidence=error.strerror or str(error),
            advice="Check the path and its permissions.",
        ) from error
    found = next((name for at, magic, name in _MAGIC if head.startswith(magic, at)), "raw")
    if found not in tuple(DiskFormat):
        raise UsageError(
            f"the disk {path} is in the format {found}",
            advice=f"Convert it: qemu-img convert -O qcow2 {path} {path.stem}.qcow2",
        )
    return DiskFormat(found)


def quick_domain(
    disks: Sequence[QuickDisk] = (),
    *,
    name: str | None = None,
    memory_mib: int = 1024,
    vcpus: int = 1,
    networks: Sequence[QuickNetwork] = (QuickNetwork(),),
    pci: Sequence[PciAddress] = (),
    kernel: Path | None = None,
    initrd: Path | None = None,
    append: str | None = None,
    console: CharType = CharType.PTY,
) -> Domain:
    """A small Linux machine: virtio throughout, a serial console, no graphics, the host's CPU.

    :param name: by default the first disk's, or the kernel's, without its ending.
    :param networks: by default one in user mode.
    :param pci: the host's devices that become the guest's, each taken from its driver for so long.
    :raise UsageError: nothing to boot from, or a format that cannot be run.
    :raise NotFoundError: a disk cannot be read.
    :raise DefinitionError: values that no machine can have.
    """
    if not disks and kernel is None:
        raise UsageError("nothing to boot from", advice="Give a disk image, or --kernel.")
    domain = Domain(
        name=name or _name(disks[0].path if disks else kernel),
        memory=memory_mib * _MIB,
        vcpus=vcpus,
        os=Os(
            kernel=_path(kernel),
            initrd=_path(initrd),
            cmdline=append,
            boot=(Boot(device=BootDevice.DISK),) if disks else (),
        ),
        features=Features(acpi=True, apic=True),
        cpu=Cpu(mode=CpuMode.HOST_PASSTHROUGH),
        disks=tuple(_disk(disk, index) for index, disk in enumerate(disks)),
        interfaces=tuple(_interface(network) for network in networks),
        hostdevs=tuple(_hostdev(address) for address in pci),
        consoles=(Console(type=console),),
        rngs=(Rng(path="/dev/urandom"),),
    )
    check_domain(domain)
    return domain


def _disk(disk: QuickDisk, index: int) -> Disk:
    if index >= 26:
        raise UsageError("more than 26 disks", advice="Describe this machine in XML.")
    return Disk(
        format=disk.format or disk_format(disk.path),
        file=_path(disk.path),
        target=f"vd{chr(ord('a') + index)}",
        bus=DiskBus.VIRTIO,
    )


def _interface(network: QuickNetwork) -> Interface:
    if network.network is not None:
        kind = InterfaceType.NETWORK
    elif network.bridge is not None:
        kind = InterfaceType.BRIDGE
    elif network.device is not None:
        kind = InterfaceType.DIRECT
    else:
        kind = InterfaceType.USER
    return Interface(
        type=kind,
        network=network.network,
        bridge=network.bridge,
        device=network.device,
        mode=network.mode if kind is InterfaceType.DIRECT else None,
        model=NicModel.VIRTIO,
        driver=NicDriver(queues=network.queues) if network.queues > 1 else None,
        vlan=Vlan(tags=(VlanTag(id=network.vlan),)) if network.vlan is not None else None,
        isolated=network.isolated,
        bandwidth=network.bandwidth,
    )


def _hostdev(address: PciAddress) -> Hostdev:
    place = HostPlace(
        domain=address.domain, bus=address.bus, slot=address.slot, function=address.function
    )
    return Hostdev(managed=True, source=place)


def _name(path: Path | None) -> str:
    stem = path.name.partition(".")[0] if path is not None else ""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-")[:64] or "guest"


def _path(path: Path | None) -> str | None:
    """Absolute: the process that starts QEMU may stand elsewhere."""
    return str(path.absolute()) if path is not None else None

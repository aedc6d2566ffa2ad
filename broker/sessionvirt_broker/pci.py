# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's PCI functions, as sysfs has them (Documentation/ABI/testing/sysfs-bus-pci).

Invariants: the facts of one function are read through one descriptor of its directory, so they are
never those of two devices that had the same address. What cannot be read is the value that permits
least: a function that is not known to be a bridge is an endpoint, one without a vendor is not told
at all, and :meth:`PciBus.group_size` counts it all the same. Nothing is cached: each call is the
present.

Only what the kernel remembers is read. ``config`` would wake a function that sleeps in D3cold, and
says 0xff where a guest has hung its device; ``driver_override``, ``uevent`` and ``sriov_numvfs``
wait for the device's lock, which a driver has that binds or does not let go (``patience.py``).

Never writes, loads or binds anything, and never follows a path: addresses are matched first.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

from . import sysfs

PciAddress = NewType("PciAddress", str)

# fullmatch with explicit ASCII classes, as in wire.py. A bus has 32 devices of 8 functions.
#: What the kernel names one ("%04x:%02x:%02x.%d", pci_setup_device()), and nothing else that means
#: the same: domains behind Intel's VMD begin at 10000, Hyper-V's may be anything.
_NAMED = re.compile(r"(?:[0-9a-f]{4}|[1-9a-f][0-9a-f]{4,7}):[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_GROUP = re.compile(r"[0-9]{1,10}")
#: Which only functions have that have a bus behind them (pci_bridge_attrs in pci-sysfs.c).
_BRIDGE = "secondary_bus_number"
#: Where VFIO would go without an IOMMU: the group's name (vfio_noiommu_group_alloc()).
_NOIOMMU = "vfio-noiommu"


def is_address(text: str) -> bool:
    """Whether a caller may ask for a function by this."""
    return _NAMED.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Function:
    """One function, as the kernel told it a moment ago.

    :param driver: what is bound to it; empty: nothing.
    :param group: the IOMMU group's number; empty: no IOMMU has it.
    :param endpoint: false: a bridge.
    :param resets: the kernel's reset methods; "unknown" alone where it can reset and does not
        say how (before 5.15).
    :param rom: it has an expansion ROM.
    :param boot_vga: the firmware used it as the display.
    :param physfn: the physical function that it is a virtual one of; empty: it is none.
    :param numvfs: how many virtual functions it has now.
    :param path: its directory below /sys/devices.
    """

    address: PciAddress
    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    class_code: int
    driver: str
    group: str
    endpoint: bool
    resets: tuple[str, ...]
    rom: bool
    boot_vga: bool
    physfn: str
    numvfs: int
    path: Path

    @property
    def ids(self) -> str:
        """Like 8086:10d3."""
        return f"{self.vendor:04x}:{self.device:04x}"

    @property
    def subsystem(self) -> str:
        """Likewise, of the board; empty where it has none."""
        if not self.subsystem_vendor and not self.subsystem_device:
            return ""
        return f"{self.subsystem_vendor:04x}:{self.subsystem_device:04x}"

    @property
    def identity(self) -> str:
        """What stays while it is the same device: another text at this address is another device.

        The same text is no proof: two boards of one model have the same, for nothing here is a
        serial number.
        """
        words = (self.ids, self.subsystem, f"{self.class_code:06x}", self.physfn)
        return "/".join(words)


class PciBus:
    """The functions of a host.

    :param sys: /sys, or a tree like it.
    """

    def __init__(self, sys: Path) -> None:
        self._sys = os.path.realpath(sys)

    def functions(self) -> dict[PciAddress, Function]:
        """All of them, by address; those that vanish meanwhile left out."""
        return {found.address: found for found in self._of("bus/pci/devices")}

    def function(self, address: str) -> Function | None:
        """The one at this address, or None."""
        if not _NAMED.fullmatch(address):
            return None
        path = sysfs.link(f"{self._sys}/bus/pci/devices", address)
        return _read(path, PciAddress(address)) if path else None

    def group(self, number: str) -> tuple[Function, ...]:
        """The functions of an IOMMU group, by address; bridges, too. Empty: there is no such group.

        Members of another bus are left out. The kernel refuses a group whose other members are with
        a driver of the host (iommu_device_claim_dma_owner()).
        """
        if not _GROUP.fullmatch(number):
            return ()
        return tuple(self._of(f"kernel/iommu_groups/{number}/devices"))

    def group_size(self, number: str) -> int:
        """How many PCI functions the group has, whether they can be looked at or not."""
        if not _GROUP.fullmatch(number):
            return 0
        try:
            names = sysfs.members(self._sys, f"kernel/iommu_groups/{number}/devices")
        except OSError:
            return -1
        return sum(_NAMED.fullmatch(name) is not None for name in names)

    def group_faults(self, number: str) -> tuple[str, ...]:
        """Why this group isolates nothing; empty: it does, as far as :func:`isolation_faults`."""
        if not _GROUP.fullmatch(number):
            return ("no IOMMU isolates it",)
        if sysfs.text(f"{self._sys}/kernel/iommu_groups/{number}/name") == _NOIOMMU:
            return (f"its group {number} is one of VFIO's no-IOMMU mode, which isolates nothing",)
        return ()

    def _of(self, where: str) -> list[Function]:
        try:
            names = sysfs.members(self._sys, where)
        except OSError:
            return []
        addresses = [PciAddress(name) for name in names if _NAMED.fullmatch(name)]
        # Longer domains last: 10000 is after ffff.
        addresses.sort(key=lambda address: (len(address), address))
        found = [_read(names[address], address) for address in addresses]
        return [function for function in found if function is not None]


def isolation_faults(sys: Path, proc: Path) -> tuple[str, ...]:
    """Why no group of this host isolates as it says, in sentences; empty: nothing is known.

    The parameters of a module that is not loaded cannot be seen: ask again when it is.
    """
    modules, faults = f"{os.path.realpath(sys)}/module", []
    if _is_set(f"{modules}/vfio/parameters/enable_unsafe_noiommu_mode"):
        faults.append("VFIO's no-IOMMU mode is enabled (vfio.enable_unsafe_noiommu_mode)")
    if _is_set(f"{modules}/vfio_iommu_type1/parameters/allow_unsafe_interrupts"):
        faults.append(
            "a guest could send the host any interrupt (vfio_iommu_type1.allow_unsafe_interrupts)"
        )
    try:
        options = sysfs.whole(f"{proc}/cmdline")
    except OSError:
        faults.append("the kernel's command line cannot be read")
    else:
        # A patch that many kernels for gamers carry; it splits groups that the hardware does not.
        if b"pcie_acs_override" in options:
            faults.append("the kernel was told to ignore missing isolation (pcie_acs_override)")
    return tuple(faults)


def _is_set(parameter: str) -> bool:
    """A module's boolean. One that is there and says neither is taken for set."""
    return os.path.lexists(parameter) and sysfs.text(parameter) != "N"


def _read(path: str, address: PciAddress) -> Function | None:
    """The facts below ``path``; None where it has gone."""
    try:
        at = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        names = frozenset(os.listdir(at))
        function = _facts(at, names, Path(path), address)
        # The directory of a device that has gone stays open, and empty: what was read is not all.
        os.stat("vendor", dir_fd=at, follow_symlinks=False)
    except OSError:
        return None
    finally:
        os.close(at)
    return function if function.vendor else None


def _facts(at: int, names: frozenset[str], path: Path, address: PciAddress) -> Function:
    group = _target(at, names, "iommu_group")
    physfn = _target(at, names, "physfn")
    return Function(
        address=address,
        vendor=sysfs.number("vendor", at=at) & 0xFFFF,
        device=sysfs.number("device", at=at) & 0xFFFF,
        subsystem_vendor=sysfs.number("subsystem_vendor", at=at) & 0xFFFF,
        subsystem_device=sysfs.number("subsystem_device", at=at) & 0xFFFF,
        class_code=sysfs.number("class", at=at) & 0xFFFFFF,
        driver=_target(at, names, "driver"),
        group=group if _GROUP.fullmatch(group) else "",
        endpoint=_BRIDGE not in names,
        resets=_resets(at, names),
        rom="rom" in names,
        boot_vga="boot_vga" in names and sysfs.text("boot_vga", at=at) != "0",
        physfn=physfn if _NAMED.fullmatch(physfn) else "",
        numvfs=sum(name.startswith("virtfn") for name in names),
        path=path,
    )


def _resets(at: int, names: frozenset[str]) -> tuple[str, ...]:
    if "reset_method" in names:
        return tuple(sysfs.text("reset_method", at=at).split())
    return ("unknown",) if "reset" in names else ()


def _target(at: int, names: frozenset[str], name: str) -> str:
    """The last name of what a link leads to; empty where there is none."""
    if name not in names:
        return ""
    try:
        return os.path.basename(os.readlink(name, dir_fd=at))
    except OSError:
        return ""

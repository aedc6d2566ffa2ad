# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host's /sys and /proc as files: PCI functions, and what is below them.

Directories, attributes and links are where the kernel has them, and the links are relative, as the
kernel's are. A test builds the host it is about::

    host = FakeSysfs(tmp_path)
    disk = host.function("0000:03:00.0", class_code=0x010802, driver="nvme", group=7)
    sda = host.block("sda", disk / "ata1", "8:0")
    host.mount("8:0", "/", "ext4", "/dev/sda")

What such a tree cannot show is what the kernel does: locks, races, a write that changes something.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FakeSysfs"]


class FakeSysfs:
    """The two trees, ``sys`` and ``proc``, below *root*."""

    def __init__(self, root: Path) -> None:
        self.sys, self.proc = root / "sys", root / "proc"
        self.devices, self.virtual = self.sys / "devices", self.sys / "devices/virtual"
        (self.proc / "self").mkdir(parents=True)
        (self.sys / "bus/pci/devices").mkdir(parents=True)
        (self.proc / "self/mountinfo").touch()
        (self.proc / "cmdline").write_text("BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet\n")
        (self.proc / "swaps").write_text("Filename\tType\tSize\tUsed\tPriority\n")
        self._mounts = 20

    def function(
        self,
        address: str,
        *,
        vendor: int = 0x8086,
        device: int = 0x10D3,
        subsystem: tuple[int, int] = (0x8086, 0xA01F),
        class_code: int = 0x020000,
        driver: str = "",
        group: int | None = None,
        header: int = 0,
        resets: str | None = "flr pm bus",
        below: Path | None = None,
        files: dict[str, str] | None = None,
    ) -> Path:
        """A PCI function; *below* is the directory of the bridge that it is behind.

        :param files: further attributes, or other contents of those that every function has.
        """
        root = self.devices / f"pci{address.rsplit(':', 1)[0]}"
        path = (below or root) / address
        path.mkdir(parents=True)
        attributes = {
            "vendor": f"{vendor:#06x}\n",
            "device": f"{device:#06x}\n",
            "subsystem_vendor": f"{subsystem[0]:#06x}\n",
            "subsystem_device": f"{subsystem[1]:#06x}\n",
            "class": f"{class_code:#08x}\n",
            "driver_override": "(null)\n",
        }
        if header & 0x7F:
            attributes["secondary_bus_number"] = "1\n"
        if resets is not None:
            attributes |= {"reset_method": f"{resets}\n", "reset": ""}
        self.write(path, attributes | (files or {}))
        config = bytearray(256)
        config[0:4] = vendor.to_bytes(2, "little") + device.to_bytes(2, "little")
        config[0x0E] = header
        (path / "config").write_bytes(config)
        self.link(self.sys / "bus/pci/devices" / address, path)
        if driver:
            self.bind(path, driver)
        if group is not None:
            self.group(group, path)
        return path

    def bind(self, function: Path, driver: str) -> None:
        """Give it a driver."""
        where = self.sys / "bus/pci/drivers" / driver
        where.mkdir(parents=True, exist_ok=True)
        self.link(function / "driver", where)

    def group(self, number: int, *functions: Path, name: str = "") -> None:
        """An IOMMU group; its devices are added to what is in it."""
        where = self.sys / "kernel/iommu_groups" / str(number)
        (where / "devices").mkdir(parents=True, exist_ok=True)
        for function in functions:
            self.link(where / "devices" / function.name, function)
            self.link(function / "iommu_group", where)
        if name:
            (where / "name").write_text(f"{name}\n")

    def virtual_functions(self, physical: Path, *virtual: Path) -> None:
        """Make the one the physical function of the others."""
        (physical / "sriov_numvfs").write_text(f"{len(virtual)}\n")
        for number, one in enumerate(virtual):
            self.link(physical / f"virtfn{number}", one)
            self.link(one / "physfn", physical)

    def member(
        self, cls: str, name: str, parent: Path, files: dict[str, str] | None = None
    ) -> Path:
        """A device of a class: ``parent/cls/name``, and the link in ``/sys/class/cls``."""
        path = parent / cls / name
        path.mkdir(parents=True)
        self.write(path, files or {})
        self.link(self.sys / "class" / cls / name, path)
        return path

    def block(self, name: str, parent: Path | None, numbers: str) -> Path:
        """A disk below *parent*, or one of the kernel's own making (dm-0, md127, loop0).

        A namespace of NVMe multipath: *parent* is what :meth:`subsystem` returned.
        """
        where = self.virtual / "block" if parent is None else parent
        path = where / name if parent is None or "nvme" in parent.name else where / "block" / name
        return self._block(path, numbers, slaves=True)

    def partition(self, disk: Path, name: str, numbers: str) -> Path:
        """A partition of a disk."""
        return self._block(disk / name, numbers, slaves=False)

    def _block(self, path: Path, numbers: str, *, slaves: bool) -> Path:
        (path / "holders").mkdir(parents=True)
        if slaves:
            (path / "slaves").mkdir()
        (path / "dev").write_text(f"{numbers}\n")
        self.link(self.sys / "class/block" / path.name, path)
        self.link(self.sys / "dev/block" / numbers, path)
        return path

    def subsystem(self, name: str, *controllers: Path) -> Path:
        """An NVMe subsystem, whose namespaces are reached by several controllers."""
        path = self.virtual / "nvme-subsystem" / name
        path.mkdir(parents=True)
        self.link(self.sys / "class/nvme-subsystem" / name, path)
        for controller in controllers:
            self.link(path / controller.name, controller)
        return path

    def holds(self, holder: Path, *slaves: Path) -> None:
        """*holder* (a dm or md device) is made of *slaves*."""
        for slave in slaves:
            self.link(holder / "slaves" / slave.name, slave)
            self.link(slave / "holders" / holder.name, holder)

    def mapped(self, name: str, numbers: str, label: str, *slaves: Path) -> Path:
        """A dm device with its name, made of *slaves*."""
        path = self.block(name, None, numbers)
        self.write(path / "dm", {"name": f"{label}\n"})
        self.holds(path, *slaves)
        return path

    def mount(
        self, numbers: str, where: str, kind: str, source: str, *, options: str = "rw"
    ) -> None:
        """One line of mountinfo; the texts as they are in it, escapes included."""
        self._mounts += 1
        line = f"{self._mounts} 1 {numbers} / {where} rw shared:1 - {kind} {source} {options}\n"
        with (self.proc / "self/mountinfo").open("a") as file:
            file.write(line)

    def swap(self, source: str, kind: str = "partition") -> None:
        """One line of /proc/swaps."""
        with (self.proc / "swaps").open("a") as file:
            file.write(f"{source}\t{kind}\t\t975868\t\t0\t\t-2\n")

    def interface(
        self, name: str, parent: Path | None, ifindex: int, *, master: Path | None = None
    ) -> Path:
        """A network interface below *parent*, or a virtual one, perhaps a port of *master*."""
        path = self.member("net", name, parent or self.virtual, {"ifindex": f"{ifindex}\n"})
        if master is not None:
            self.link(path / "master", master)
            self.link(path / f"upper_{master.name}", master)
        return path

    @staticmethod
    def link(where: Path, target: Path) -> None:
        """A relative link, as sysfs has them."""
        where.parent.mkdir(parents=True, exist_ok=True)
        where.symlink_to(os.path.relpath(target, where.parent))

    @staticmethod
    def write(directory: Path, files: dict[str, str]) -> None:
        """Attributes of a directory; names may have directories in them."""
        for name, contents in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(contents)

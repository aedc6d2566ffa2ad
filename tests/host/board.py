# SPDX-License-Identifier: LGPL-2.1-or-later
"""The test host's hardware, as arguments of QEMU.

What lies where, as ``sessionvirt devices`` should see it (names are QEMU's ids; every root port has
an IOMMU group of its own, and so has what is behind it):

=============================  ==================================================================
``nic0``, ``nic1``             e1000e, each behind a root port of its own: free to assign
00:1f.0, 00:1f.2, 00:1f.3      the chipset's three functions in one group: a dragged-along case
``nvme0``                      an NVMe disk
``rootdisk``                   the controller of ``/``: never to be given away
``legacy0``, ``legacy1``       two e1000 behind a PCIe-to-PCI bridge: one group
``usb``, ``stick``             a USB controller with a mass storage on it
``spare``                      a second disk, empty, for LVM and dm-crypt
``igb0``                       a NIC with SR-IOV
=============================  ==================================================================

nic0 and nic1 are on one wire, igb0 and legacy0 and legacy1 on another; no wire leads out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from host import channel

if TYPE_CHECKING:
    from pathlib import Path

    from host.build import Built
    from host.emulator import Emulator

__all__ = ["CPUS", "MEMORY_MIB", "Files", "argv"]

CPUS = 2
MEMORY_MIB = 3072
#: Everything that QEMU emulates but AMD's virtualization: a KVM upon it is fast in one moment and
#: not in the next, so that guests would now be KVM's, now TCG's.
EMULATED_CPU = "max,svm=off"

#: Behind a root port each: id, device, further properties.
EXPRESS = (
    ("nic0", "e1000e", "netdev=wire0,mac=52:54:00:00:01:00"),
    ("nic1", "e1000e", "netdev=wire1,mac=52:54:00:00:01:01"),
    ("nvme0", "nvme", "drive=nvmedisk,serial=testhost-nvme"),
    ("rootdisk", "virtio-blk-pci", "drive=root,serial=testhost-root,bootindex=1"),
    ("pcibridge", "pcie-pci-bridge", ""),
    ("usb", "qemu-xhci", ""),
    ("spare", "virtio-blk-pci", "drive=sparedisk,serial=testhost-spare"),
    ("igb0", "igb", "netdev=wire2,mac=52:54:00:00:02:00"),
    ("serial", "virtio-serial-pci", ""),
)
#: Those that a test may pull out. The other ports have no hot-plug, which saves the kernel time.
PULLED_OUT = ("nic0", "nic1", "nvme0", "igb0")
#: Not behind a root port; in this order, because a bus must be there before what is on it.
OTHERS = (
    "e1000,id=legacy0,bus=pcibridge,addr=1,netdev=wire3,mac=52:54:00:00:03:00",
    "e1000,id=legacy1,bus=pcibridge,addr=2,netdev=wire4,mac=52:54:00:00:03:01",
    "usb-storage,id=stick,bus=usb.0,drive=stickdisk,serial=testhost-stick",
    *(
        f"virtserialport,bus=serial.0,chardev=channel{number},name={channel.port_name(number)}"
        for number in range(channel.PORTS)
    ),
)
#: The wire that each netdev is on.
WIRES = (0, 0, 1, 1, 1)

#: Disks beside the root disk, sparse, made anew for every machine: name and size.
DISKS = (("nvmedisk", "256M"), ("sparedisk", "512M"), ("stickdisk", "64M"))

KERNEL_LINE = (
    "root=/dev/vda rw console=tty0 console=ttyS0,115200 intel_iommu=on panic=-1 mitigations=off"
    " systemd.show_status=true systemd.log_color=0 tsc=reliable no_timer_check loglevel=4"
)


@dataclass(frozen=True)
class Files:
    """What one machine has of its own, below its directory."""

    directory: Path

    def channel(self, number: int) -> Path:
        return self.directory / f"channel{number}"

    @property
    def monitor(self) -> Path:
        return self.directory / "monitor"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def errors(self) -> Path:
        return self.directory / "qemu.log"

    @property
    def pid(self) -> Path:
        return self.directory / "qemu.pid"

    def disk(self, name: str) -> Path:
        return self.directory / f"{name}.qcow2"


def argv(built: Built, emulator: Emulator, files: Files, *, kvm: bool) -> list[str]:
    """The whole command line."""
    acceleration = "kvm" if kvm else f"tcg,thread={'multi' if built.x2apic else 'single'}"
    words = [*emulator.command, "-name", "sessionvirt-testhost", "-nodefaults", "-no-user-config"]
    words += ["-machine", "q35,kernel-irqchip=split", "-accel", acceleration]
    words += ["-cpu", "host" if kvm else EMULATED_CPU, "-smp", str(CPUS), "-m", str(MEMORY_MIB)]
    # eim: the kernel reaches its local APICs by MSR then, not by memory. By memory QEMU 10.0, where
    # it has a thread for each processor that it emulates, loses a write now and then while a device
    # comes or goes ("vtd_mem_write: MMIO over range: addr=0x380"): a timer is never set.
    words += ["-device", "intel-iommu,intremap=on,eim=on,caching-mode=on"]
    words += ["-kernel", str(built.kernel), "-append", KERNEL_LINE]
    if built.initrd is not None:
        words += ["-initrd", str(built.initrd)]
    # A screen and a keyboard, for sessions on virtual terminals.
    words += ["-device", "VGA,id=screen", "-display", "none"]
    words += ["-serial", f"file:{files.console}"]
    for number in range(channel.PORTS):
        socket = f"socket,id=channel{number},path={files.channel(number)},server=on,wait=off"
        words += ["-chardev", socket]
    words += ["-qmp", f"unix:{files.monitor},server=on,wait=off", "-pidfile", str(files.pid)]
    words += [
        "-object",
        "rng-random,id=rng,filename=/dev/urandom",
        "-device",
        "virtio-rng-pci,rng=rng",
    ]
    for name in ("root", *(name for name, _ in DISKS)):
        # Nothing of a test host outlives it, so nothing of it need reach the disk.
        drive = f"if=none,id={name},file={files.disk(name)},format=qcow2,cache=unsafe,discard=unmap"
        words += ["-drive", drive]
    for number, wire in enumerate(WIRES):
        words += ["-netdev", f"hubport,id=wire{number},hubid={wire}"]
    for number, (name, device, properties) in enumerate(EXPRESS):
        port = f"pcie-root-port,id=port{number},chassis={number + 1},slot={number + 1}"
        if name not in PULLED_OUT:
            port += ",hotplug=off"
        words += ["-device", port]
        words += [
            "-device",
            f"{device},id={name},bus=port{number}" + (f",{properties}" if properties else ""),
        ]
    for device in OTHERS:
        words += ["-device", device]
    return words

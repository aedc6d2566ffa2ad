# SPDX-License-Identifier: LGPL-2.1-or-later
"""The golden domains, and the runtime facts that their command lines are built with.

Descriptors are numbers here that belong to nobody; tests/qemu/test_golden_start.py has real ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sessionvirt.model.addresses import MacAddress
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.needs import NeedKind, needs
from sessionvirt.qemu.capabilities import Capabilities
from sessionvirt.qemu.wiring import Accelerator, PasstWiring, TapWiring, UserWiring, Wiring

if TYPE_CHECKING:
    from sessionvirt.model.domain import Domain
    from sessionvirt.qemu.wiring import InterfaceWiring
    from sessionvirt.xmlmap import Parsed

DIRECTORY: Final = Path(__file__).parent
CASES: Final = tuple(sorted(path.stem for path in DIRECTORY.glob("*.xml")))
QMP_FD: Final = 3
FIRST_FD: Final = 20

#: What of a real binary the golden domains use.
BINARY: Final = Capabilities(
    binary="/usr/bin/qemu-system-x86_64",
    version=(7, 2, 22),
    machines={
        "q35": "pc-q35-7.2",
        "pc-q35-7.2": "pc-q35-7.2",
        "pc": "pc-i440fx-7.2",
        "pc-i440fx-7.2": "pc-i440fx-7.2",
        "microvm": "microvm",
    },
    default_machine="pc-i440fx-7.2",
    devices=frozenset(
        (
            *("VGA", "e1000", "e1000e", "ich9-ahci", "ide-cd", "ide-hd", "isa-serial"),
            *("pcie-root-port", "qemu-xhci", "rtl8139", "usb-kbd", "usb-mouse", "usb-tablet"),
            "vfio-pci",
            *("virtconsole", "virtio-balloon-pci", "virtio-blk-pci", "virtio-keyboard-pci"),
            *("virtio-net-pci", "virtio-rng-pci", "virtio-serial-pci", "virtio-vga"),
        )
    ),
    objects=frozenset({"rng-random"}),
    netdevs=frozenset({"stream", "tap", "user"}),
    cpu_models=frozenset({"Nehalem", "host", "max", "qemu64"}),
)


def parsed(case: str) -> Parsed[Domain]:
    """A golden domain."""
    return parse_domain((DIRECTORY / f"{case}.xml").read_bytes(), file=f"{case}.xml")


def wiring(domain: Domain) -> Wiring:
    """TAPs with a vhost descriptor each, passt for the domain of that name, KVM for those."""
    interfaces: list[InterfaceWiring] = []
    fd = FIRST_FD
    for need in needs(domain):
        mac = need.mac or MacAddress(f"52:54:00:00:00:{need.interface:02x}")
        if need.kind is NeedKind.TAP:
            fds = tuple(range(fd, fd + need.queues))
            vhost = tuple(range(fd + need.queues, fd + 2 * need.queues))
            interfaces.append(TapWiring(fds, mac, 1500, vhost))
            fd += 2 * need.queues
        elif domain.name == "passt":
            interfaces.append(PasstWiring(fd, mac))
            fd += 1
        else:
            interfaces.append(UserWiring(mac, need.ports))
    kvm = domain.name.startswith("kvm")
    return Wiring(QMP_FD, Accelerator.KVM if kvm else Accelerator.TCG, tuple(interfaces))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What fields mean together: the contradictions that a document can have.

Each is a DefinitionError that names the second of the two places and says what to write. A single
value's range is the business of its converter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeVar

from .bandwidth import check_bandwidth
from .devices import (
    Cache,
    CharType,
    DiskBus,
    DiskDevice,
    DiskFormat,
    DiskIo,
)
from .filterref import check_filterref
from .interface import DirectMode, Interface, InterfaceType, LinkState, NicModel, host_devices
from .nic import NicBackend

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sessionvirt.xmltree import Location

    from .devices import Console, Disk, Serial
    from .domain import Domain
    from .hostdev import Hostdev
    from .interface import HostPci, Vlan
    from .portforward import PortForward

__all__ = ["check_domain", "check_hostdev", "check_interface"]

V = TypeVar("V")

MAX_NAME_BYTES: Final = 255
#: One, and as many others as its request to the broker can name.
MAX_HOSTDEVS: Final = 33
_VLANS: Final = range(1, 4095)
#: What the broker gives a TAP for.
_TAPS: Final = (InterfaceType.NETWORK, InterfaceType.BRIDGE)
#: NUL, and what Python makes of bytes that are not UTF-8.
_UNSPEAKABLE: Final = re.compile("[\0\ud800-\udfff]")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


#: net.ipv4.ip_unprivileged_port_start, as it comes.
_FIRST_OF_USERS = 1024


def check_domain(domain: Domain) -> None:
    """Refuse a domain that contradicts itself. Costs microseconds; may be called again.

    :raise DefinitionError: naming file, line, path and what to write instead.
    """
    _name(domain)
    _memory_and_cpus(domain)
    _texts(domain)
    for disk in domain.disks:
        _disk(disk)
    sata = [disk for disk in domain.disks if disk.effective_bus is DiskBus.SATA]
    _differ("SATA port", ((disk.index, disk.at("target/@dev")) for disk in sata), "another target")
    _differ("target", ((disk.target, disk.at("target/@dev")) for disk in domain.disks), "vda")
    for interface in domain.interfaces:
        check_interface(interface)
    macs = ((nic.mac, nic.at("mac/@address")) for nic in domain.interfaces if nic.mac is not None)
    _differ("MAC address", macs, "one that is not used yet, or leave <mac> out")
    _hostdevs(domain)
    _boot(domain)
    _characters(domain)
    _graphics(domain)


def _name(domain: Domain) -> None:
    where, name = domain.at("name"), domain.name
    if not name.strip():
        where.refuse("the name is empty", "Write a name such as <name>guest</name>.")
    if "/" in name or _UNPRINTABLE.search(name):
        where.refuse(
            f"the name {name[:80]!a} has a slash, a line break or another control character",
            "Use printable characters without '/'.",
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        where.refuse(
            f"the name has {len(name.encode())} bytes", f"Use at most {MAX_NAME_BYTES} bytes."
        )


def _memory_and_cpus(domain: Domain) -> None:
    memory, current = domain.memory, domain.current_memory
    if not memory:
        domain.at("memory").refuse(
            "a machine needs memory", "Write for example <memory unit='MiB'>1024</memory>."
        )
    if current is not None and current > memory:
        domain.at("currentMemory").refuse(
            f"{current} bytes are more than <memory> has ({memory})",
            "Write at most what <memory> says, or leave <currentMemory> out.",
        )
    if domain.current_vcpus is not None and domain.current_vcpus > domain.vcpus:
        domain.at("vcpu/@current").refuse(
            f"{domain.current_vcpus} is more than the {domain.vcpus} that <vcpu> says",
            f"Write a number from 1 to {domain.vcpus}.",
        )
    topology = domain.cpu.topology if domain.cpu is not None else None
    if topology is not None and topology.vcpus != domain.vcpus:
        topology.where.refuse(
            f"sockets x dies x cores x threads is {topology.vcpus}, <vcpu> is {domain.vcpus}",
            f"Write <vcpu>{topology.vcpus}</vcpu>, or change the topology.",
        )


def _texts(domain: Domain) -> None:
    """What becomes an argument of a process or a path is text without a NUL."""
    system = domain.os
    if system is not None and system.kernel is None:
        for field, path in ((system.initrd, "initrd"), (system.cmdline, "cmdline")):
            if field is not None:
                system.at(path).refuse(
                    "is for a kernel, and there is none", "Add <kernel>, or leave it out."
                )
    texts: list[tuple[str | None, Location]] = [(domain.emulator, domain.at("devices/emulator"))]
    if system is not None:
        texts += [(system.kernel, system.at("kernel")), (system.initrd, system.at("initrd"))]
    texts += [(disk.file, disk.at("source/@file")) for disk in domain.disks]
    ports: tuple[Serial | Console, ...] = (*domain.serials, *domain.consoles)
    texts += [(port.path, port.at("source/@path")) for port in ports]
    for text, where in texts:
        _path(text, where)
    free = [(arg.value, arg.where) for arg in domain.qemu_arguments]
    free += [(variable.value, variable.where) for variable in domain.qemu_environment]
    if system is not None and system.cmdline is not None:
        free.append((system.cmdline, system.at("cmdline")))
    for text, where in free:
        if _UNSPEAKABLE.search(text):
            where.refuse("has a NUL, or is not UTF-8", "Remove what is not text.")


def _path(text: str | None, where: Location) -> None:
    if text is not None and (not text or _UNSPEAKABLE.search(text)):
        where.refuse(
            "is not a path, or not one in UTF-8",
            "Write a file's path, or leave the element out.",
        )


def _disk(disk: Disk) -> None:
    bus = disk.effective_bus
    if disk.device is DiskDevice.CDROM and bus is DiskBus.VIRTIO:
        disk.at("target/@bus").refuse(
            "a CD-ROM drive cannot be on the virtio bus",
            "Write <target dev='sda' bus='sata'/>, or device='disk' with <readonly/>.",
        )
    if disk.device is DiskDevice.DISK and bus is DiskBus.SATA and disk.readonly:
        disk.at("readonly").refuse(
            "a SATA disk cannot be read-only",
            "Write bus='virtio' for the disk, or device='cdrom'.",
        )
    if disk.device is DiskDevice.DISK and disk.file is None:
        disk.where.refuse(
            "a disk without a source", "Write <source file='/path/to/image'/>, or device='cdrom'."
        )
    if disk.io is DiskIo.NATIVE and disk.cache not in (Cache.NONE, Cache.DIRECTSYNC):
        disk.at("driver/@io").refuse(
            "io='native' goes past the host's page cache, and this cache mode goes through it",
            "Add cache='none' (or 'directsync'), or write io='io_uring' or 'threads'.",
        )
    if disk.shareable and disk.format is not DiskFormat.RAW:
        disk.at("shareable").refuse(
            f"two machines cannot write one {disk.format} image",
            "Use a raw image, or leave <shareable/> out.",
        )


def check_interface(nic: Interface) -> None:
    """Refuse an interface that contradicts itself, whatever else the machine has.

    :raise DefinitionError: as of :func:`check_domain`.
    """
    wanted = {
        InterfaceType.NETWORK: ("network", nic.network),
        InterfaceType.BRIDGE: ("bridge", nic.bridge),
        InterfaceType.DIRECT: ("dev", nic.device),
    }
    for kind, (attribute, value) in wanted.items():
        if nic.type is kind and value is None:
            nic.at(f"source/@{attribute}").refuse(
                f"type='{kind}' needs it",
                f"Write <source {attribute}='...'/>, or type='user' for a network of its own.",
            )
        if nic.type is not kind and value is not None and kind is not InterfaceType.BRIDGE:
            nic.at(f"source/@{attribute}").refuse(
                f"does not go with type='{nic.type}'", f"Write type='{kind}', or leave it out."
            )
    if nic.type not in (InterfaceType.NETWORK, InterfaceType.BRIDGE) and nic.bridge is not None:
        nic.at("source/@bridge").refuse(
            f"does not go with type='{nic.type}'", "Write type='bridge', or leave it out."
        )
    if nic.mode is not None:
        _mode(nic)
    _path(nic.rom_file, nic.at("rom/@file"))
    if nic.is_hostdev:
        _host_interface(nic)
    else:
        _emulated_interface(nic)
    if nic.vlan is not None:
        _vlan(nic, nic.vlan)
    if nic.isolated and nic.type not in _TAPS:
        nic.at("port/@isolated").refuse(
            f"does not go with type='{nic.type}'",
            "Write type='network' or type='bridge', or leave <port> out.",
        )
    if nic.bandwidth is not None:
        check_bandwidth(nic.bandwidth)
        if nic.type not in _TAPS and any(nic.bandwidth.rates):
            nic.at("bandwidth").refuse(
                f"the traffic of an interface with type='{nic.type}' is not limited here",
                "Write type='network' or type='bridge', or leave <bandwidth> out.",
            )
    check_filterref(nic)
    for forward in nic.port_forwards:
        _port_forward(nic, forward)


def _port_forward(nic: Interface, forward: PortForward) -> None:
    if nic.type not in (InterfaceType.NETWORK, InterfaceType.USER):
        forward.where.refuse(
            f"does not go with type='{nic.type}': the guest is on the LAN itself",
            "Write type='network', or leave it out: the guest is reached by its own address.",
        )
    for ports in forward.rows():
        if nic.type is InterfaceType.USER and ports.host < _FIRST_OF_USERS:
            forward.where.refuse(
                f"port {ports.host} is root's, and a user-mode network has no root",
                f"Write a port from {_FIRST_OF_USERS} on, or type='network'.",
            )


def _mode(nic: Interface) -> None:
    if nic.type is not InterfaceType.DIRECT:
        nic.at("source/@mode").refuse(
            f"does not go with type='{nic.type}'", "Write type='direct', or leave it out."
        )
    if nic.mode is DirectMode.PASSTHROUGH:
        nic.at("source/@mode").refuse(
            "it would take the interface from the host",
            "Write mode='bridge', or type='hostdev' for a virtual function of the card.",
        )


def _emulated_interface(nic: Interface) -> None:
    hostdev = "Write type='hostdev' for a function of a card of the host's, or leave it out."
    for said, path in (
        (nic.managed, "@managed"),
        (nic.source is not None, "source/address"),
    ):
        if said:
            nic.at(path).refuse(f"does not go with type='{nic.type}'", hostdev)
    _driver(nic)


def _driver(nic: Interface) -> None:
    if nic.queues > 1 and (nic.model is not NicModel.VIRTIO or nic.type is InterfaceType.USER):
        nic.at("driver/@queues").refuse(
            "only a virtio interface on a network, bridge or device can have several queues",
            "Add <model type='virtio'/>, or leave queues out.",
        )
    driver = nic.driver
    if driver is None:
        return
    if driver.name is NicBackend.VFIO:
        nic.at("driver/@name").refuse(
            f"does not go with type='{nic.type}'", "Write type='hostdev', or leave it out."
        )
    if nic.type is InterfaceType.USER and driver.name is NicBackend.VHOST:
        nic.at("driver/@name").refuse(
            "the kernel moves no packets of a user-mode network", "Leave name='vhost' out."
        )
    # name='qemu' says what any other card does anyway.
    if nic.model is not NicModel.VIRTIO and (
        driver.name is NicBackend.VHOST or any(v is not None for v in driver.properties().values())
    ):
        nic.at("driver").refuse(
            "says how a virtio interface works, and this is none",
            "Add <model type='virtio'/>, or remove <driver>.",
        )


def _host_interface(nic: Interface) -> None:
    """What only an emulated card has; a model says nothing, and libvirt writes one."""
    for said, path in (
        (nic.queues > 1, "driver/@queues"),
        (nic.mtu is not None, "mtu/@size"),
        (nic.link is LinkState.DOWN, "link/@state"),
        (nic.driver is not None and nic.driver.is_of_a_card, "driver"),
    ):
        if said:
            nic.at(path).refuse(
                "a device of the host has it by its own driver in the guest", "Leave it out."
            )


def _vlan(nic: Interface, vlan: Vlan) -> None:
    if nic.type not in (InterfaceType.BRIDGE, InterfaceType.HOSTDEV):
        nic.at("vlan").refuse(
            f"does not go with type='{nic.type}'", "Write type='bridge', or leave <vlan> out."
        )
    if vlan.trunk or len(vlan.tags) != 1:
        nic.at("vlan").refuse(
            "an interface has one VLAN, and no trunk of several",
            "Write <vlan><tag id='42'/></vlan>, and an <interface> for each further one.",
        )
    if nic.vlan_id not in _VLANS:
        vlan.tags[0].at("@id").refuse(
            f"there is no VLAN {nic.vlan_id}", "Write a number from 1 to 4094, or no <vlan>."
        )


def _hostdevs(domain: Domain) -> None:
    devices = host_devices(domain)
    for device in devices:
        check_hostdev(device)
    places = ((device.host, device.at("source/address")) for device in devices)
    _differ("host's PCI device", places, "another device's address, or remove the element")
    if len(devices) > MAX_HOSTDEVS:
        devices[MAX_HOSTDEVS].where.refuse(
            f"a machine can have {MAX_HOSTDEVS} host devices", "Remove some."
        )


def check_hostdev(hostdev: HostPci) -> None:
    """Refuse a host device that is none, whatever else the machine has.

    :raise DefinitionError: as of :func:`check_domain`.
    """
    if isinstance(hostdev, Interface):
        check_interface(hostdev)
        if not hostdev.is_hostdev:
            hostdev.where.refuse(
                f"type='{hostdev.type}' is no device of the host", "Write type='hostdev'."
            )
    else:
        _path(hostdev.rom_file, hostdev.at("rom/@file"))
    example = "<address domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>"
    if hostdev.source is None:
        hostdev.at("source/address").refuse(
            f"type='{hostdev.type}' needs it", f"Write <source>{example}</source>."
        )
    try:
        _ = hostdev.source.pci
    except ValueError as error:
        hostdev.source.where.refuse(
            f"{error} on the host", f"Write what 'sessionvirt devices' or lspci lists: {example}."
        )


def _boot(domain: Domain) -> None:
    devices: tuple[Disk | Interface | Hostdev, ...]
    devices = (*domain.disks, *domain.interfaces, *domain.hostdevs)
    orders = [(d.boot_order, d.at("boot/@order")) for d in devices if d.boot_order is not None]
    _differ("boot order", orders, "a number of its own")
    if domain.os is not None and domain.os.boot and orders:
        orders[0][1].refuse(
            "boot order is said twice, here and by <boot dev=...> in <os>",
            "Keep one of the two ways.",
        )
    if domain.os is not None:
        listed = ((boot.device, boot.where) for boot in domain.os.boot)
        _differ("boot device", listed, "each once")


def _characters(domain: Domain) -> None:
    ports: tuple[Serial | Console, ...] = (*domain.serials, *domain.consoles)
    for port in ports:
        if port.type is CharType.FILE and port.path is None:
            port.at("source/@path").refuse(
                "type='file' needs it", "Write <source path='/path/to/log'/>."
            )
    ours = [p for p in domain.serials if p.type is CharType.STDIO]
    extra = [c for c in extra_consoles(domain) if c.type is CharType.STDIO]
    for second in [*ours, *extra][1:]:
        second.where.refuse(
            "only one device can be on the terminal", "Write type='pty' for this one."
        )
    _differ(
        "port",
        ((s.port, s.at("target/@port")) for s in domain.serials if s.port is not None),
        "a number of its own",
    )


def extra_consoles(domain: Domain) -> tuple[Console, ...]:
    """The consoles that are devices of their own: all but those that are another name of the first
    serial port. Without any serial port the first serial console makes it, as in libvirt."""
    from .devices import ConsoleTarget

    serial = [c for c in domain.consoles if c.target is ConsoleTarget.SERIAL]
    alias = serial[:1] if domain.serials else []
    for second in serial[1:]:
        second.where.refuse(
            "only the first console can be the serial port",
            "Write <target type='virtio'/>, or use <serial>.",
        )
    return tuple(console for console in domain.consoles if console not in alias)


def _graphics(domain: Domain) -> None:
    graphics = domain.graphics
    if graphics is None:
        return
    if graphics.port is not None and 0 <= graphics.port < 5900 and not graphics.autoport:
        graphics.at("@port").refuse(
            f"QEMU's VNC ports begin at 5900, {graphics.port} is below", "Write port='-1'."
        )
    address = graphics.listen
    for text in (address, *(listen.address for listen in graphics.listens)):
        if text is not None and not re.fullmatch(r"[0-9a-fA-F.:]{1,45}", text):
            graphics.where.refuse(
                f"{text[:60]!a} is not an IP address", "Write listen='127.0.0.1'."
            )


def _differ(what: str, values: Iterable[tuple[V, Location]], instead: str) -> None:
    seen: dict[V, Location] = {}
    for value, where in values:
        if value in seen:
            first = f" (first: {seen[value]})"
            where.refuse(f"the {what} '{value}' is used twice{first}", f"Write {instead}.")
        seen[value] = where

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``<domain>``: one virtual machine, and the way in from XML and out to it.

:func:`parse_domain` is the door: what it returns has been validated (:mod:`.check`). The document
is libvirt's, unchanged; what is not understood is listed and given back.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sessionvirt import xmlmap
from sessionvirt.xmlmap import Element, Parsed, attr, child, children, flag, kept, mapped, size
from sessionvirt.xmlvalues import Choice, Integer, Pattern, Text, Uuid, YesNo

from .devices import (
    CONTROLLERS,
    Balloon,
    Console,
    Controller,
    Disk,
    Graphics,
    Input,
    Rng,
    Serial,
    Video,
)
from .hostdev import HOSTDEVS, Hostdev
from .interface import Interface

__all__ = ["Domain", "dump_domain", "parse_domain"]

#: A QEMU CPU model or feature, or a machine type; nothing that an option parser would take apart.
_WORD: Final = Pattern(r"[A-Za-z0-9_.+-]{1,64}", "letters, digits and _ . + -, at most 64")


class DomainType(StrEnum):
    KVM = "kvm"
    QEMU = "qemu"


class CpuMode(StrEnum):
    HOST_PASSTHROUGH = "host-passthrough"
    HOST_MODEL = "host-model"
    MAXIMUM = "maximum"
    CUSTOM = "custom"


class FeaturePolicy(StrEnum):
    FORCE = "force"
    REQUIRE = "require"
    OPTIONAL = "optional"
    DISABLE = "disable"
    FORBID = "forbid"


class BootDevice(StrEnum):
    DISK = "hd"
    CDROM = "cdrom"
    NETWORK = "network"


class ClockOffset(StrEnum):
    UTC = "utc"
    LOCALTIME = "localtime"


class TickPolicy(StrEnum):
    DELAY = "delay"
    CATCHUP = "catchup"
    DISCARD = "discard"


class OnPoweroff(StrEnum):
    DESTROY = "destroy"
    PRESERVE = "preserve"


class OnReboot(StrEnum):
    RESTART = "restart"
    DESTROY = "destroy"


class OnCrash(StrEnum):
    """Without a panic device no crash is seen, so none of these can do anything yet."""

    DESTROY = "destroy"
    RESTART = "restart"
    PRESERVE = "preserve"
    RENAME_RESTART = "rename-restart"
    COREDUMP_DESTROY = "coredump-destroy"
    COREDUMP_RESTART = "coredump-restart"


@mapped
class Boot(Element):
    """``<boot dev=.../>`` inside ``<os>``."""

    device: BootDevice = attr("@dev", Choice(BootDevice), required=True)


@mapped
class Os(Element):
    """``<os>``: the machine and what it boots.

    :param kernel: a file; with it ``initrd`` and ``cmdline``.
    :param menu_timeout: milliseconds.
    """

    type: str = attr("type", Pattern("hvm", "'hvm'"), default="hvm", always=True)
    arch: str | None = attr("type/@arch", _WORD)
    machine: str | None = attr("type/@machine", _WORD)
    kernel: str | None = attr("kernel", Text)
    initrd: str | None = attr("initrd", Text)
    cmdline: str | None = attr("cmdline", Text)
    boot: tuple[Boot, ...] = children("boot", Boot)
    menu: bool | None = attr("bootmenu/@enable", YesNo)
    menu_timeout: int | None = attr("bootmenu/@timeout", Integer(0, 65535))


@mapped
class Features(Element):
    """``<features>``. As in libvirt, a machine without ``<acpi/>`` has none."""

    acpi: bool = flag("acpi")
    apic: bool = flag("apic")
    pae: bool = flag("pae")


@mapped
class CpuFeature(Element):
    """``<feature>`` inside ``<cpu>``."""

    name: str = attr("@name", _WORD, required=True)
    policy: FeaturePolicy = attr("@policy", Choice(FeaturePolicy), default=FeaturePolicy.REQUIRE)


@mapped
class Topology(Element):
    """``<topology>``; the product is the number of vcpus."""

    sockets: int = attr("@sockets", Integer(1, 4096), required=True)
    dies: int = attr("@dies", Integer(1, 4096), default=1)
    cores: int = attr("@cores", Integer(1, 4096), required=True)
    threads: int = attr("@threads", Integer(1, 4096), required=True)

    @property
    def vcpus(self) -> int:
        return self.sockets * self.dies * self.cores * self.threads


@mapped
class Cpu(Element):
    """``<cpu>``. ``match``, ``check``, ``migratable`` and ``fallback`` describe migration."""

    mode: CpuMode = attr("@mode", Choice(CpuMode), default=CpuMode.CUSTOM)
    match: None = kept("@match")
    check: None = kept("@check")
    migratable: None = kept("@migratable")
    model: str | None = attr("model", _WORD)
    fallback: None = kept("model/@fallback")
    topology: Topology | None = child("topology", Topology)
    features: tuple[CpuFeature, ...] = children("feature", CpuFeature)


@mapped
class Timer(Element):
    """``<timer>`` inside ``<clock>``."""

    name: str = attr("@name", Text, required=True)
    present: bool | None = attr("@present", YesNo)
    tickpolicy: TickPolicy | None = attr("@tickpolicy", Choice(TickPolicy))


@mapped
class Clock(Element):
    """``<clock>``."""

    offset: ClockOffset = attr("@offset", Choice(ClockOffset), default=ClockOffset.UTC)
    timers: tuple[Timer, ...] = children(
        "timer", Timer, only={"name": {"rtc", "pit", "hpet", "kvmclock"}}
    )


@mapped
class QemuArgument(Element):
    """``<qemu:arg>``: given to QEMU as it is, at the end."""

    value: str = attr("@value", Text, required=True)


@mapped
class QemuVariable(Element):
    """``<qemu:env>``: set in QEMU's environment."""

    name: str = attr(
        "@name", Pattern(r"[A-Za-z_][A-Za-z0-9_]*", "letters, digits and _"), required=True
    )
    value: str = attr("@value", Text, default="")


@mapped
class Domain(Element):
    """``<domain>``.

    :param memory: bytes at boot, and the most there can be.
    :param current_memory: bytes that the balloon leaves the guest; None: all.
    :param vcpus: the most there can be; ``current_vcpus`` of them run at boot.
    """

    type: DomainType = attr("@type", Choice(DomainType), default=DomainType.KVM, always=True)
    id: None = kept("@id")
    name: str = attr("name", Text, required=True)
    uuid: str | None = attr("uuid", Uuid)
    title: str | None = attr("title", Text)
    description: str | None = attr("description", Text)
    metadata: None = kept("metadata")
    memory: int | None = size("memory")
    current_memory: int | None = size("currentMemory")
    vcpus: int = attr("vcpu", Integer(1, 4096), default=1)
    current_vcpus: int | None = attr("vcpu/@current", Integer(1, 4096))
    placement: None = kept("vcpu/@placement")
    os: Os | None = child("os", Os)
    features: Features | None = child("features", Features)
    cpu: Cpu | None = child("cpu", Cpu)
    clock: Clock | None = child("clock", Clock)
    on_poweroff: OnPoweroff = attr("on_poweroff", Choice(OnPoweroff), default=OnPoweroff.DESTROY)
    on_reboot: OnReboot = attr("on_reboot", Choice(OnReboot), default=OnReboot.RESTART)
    on_crash: OnCrash = attr("on_crash", Choice(OnCrash), default=OnCrash.DESTROY)
    emulator: str | None = attr("devices/emulator", Text)
    disks: tuple[Disk, ...] = children("devices/disk", Disk)
    controllers: tuple[Controller, ...] = children(
        "devices/controller", Controller, only=CONTROLLERS
    )
    interfaces: tuple[Interface, ...] = children("devices/interface", Interface)
    hostdevs: tuple[Hostdev, ...] = children("devices/hostdev", Hostdev, only=HOSTDEVS)
    serials: tuple[Serial, ...] = children("devices/serial", Serial)
    consoles: tuple[Console, ...] = children("devices/console", Console)
    inputs: tuple[Input, ...] = children("devices/input", Input)
    graphics: Graphics | None = child("devices/graphics", Graphics, only={"type": {"vnc"}})
    video: Video | None = child("devices/video", Video)
    rngs: tuple[Rng, ...] = children("devices/rng", Rng)
    balloon: Balloon | None = child("devices/memballoon", Balloon)
    qemu_arguments: tuple[QemuArgument, ...] = children("qemu:commandline/qemu:arg", QemuArgument)
    qemu_environment: tuple[QemuVariable, ...] = children("qemu:commandline/qemu:env", QemuVariable)


def parse_domain(
    document: bytes | str, *, file: str = "<xml>", strict: bool = False
) -> Parsed[Domain]:
    """Read and validate a domain description.

    :param file: what messages call it.
    :param strict: refuse what is not understood, instead of listing it.
    :raise DefinitionError: naming file, line, path and what to write instead.
    """
    from .check import check_domain

    parsed = xmlmap.parse(document, Domain, "domain", file=file, strict=strict)
    check_domain(parsed.value)
    return parsed


def dump_domain(domain: Domain) -> str:
    """The domain as XML, with everything unknown that it was read with, in its place.

    :raise DefinitionError: a value has a character that XML cannot carry.
    """
    return xmlmap.dump(domain, "domain")

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain as QEMU's command line: pure, so that the same input gives the same bytes.

QEMU gets nothing that is not written here: no default devices, no configuration files. It starts
paused (``-S``), without the right to start programs, or change user, with QMP on a
socket it inherits. Nothing here opens, reads or starts anything.

Machine types: q35, which is also what a document without one gets (libvirt takes QEMU's default,
``pc``), and pc (i440fx).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sessionvirt.model.check import check_domain
from sessionvirt.model.devices import BalloonModel
from sessionvirt.model.domain import (
    ClockOffset,
    CpuMode,
    FeaturePolicy,
    Features,
    OnPoweroff,
    OnReboot,
    Os,
    TickPolicy,
)
from sessionvirt.model.interface import LinkState

from .board import Board, interface_id
from .command_consoles import console_arguments
from .command_devices import (
    balloon_arguments,
    display_arguments,
    input_arguments,
    rng_arguments,
)
from .command_disks import disk_arguments
from .command_hostdevs import hostdev_arguments
from .command_interfaces import interface_arguments
from .option import joined, structured
from .wiring import Accelerator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sessionvirt.model.domain import Domain

    from .capabilities import Capabilities
    from .pci import Place
    from .wiring import Wiring

__all__ = ["MONITOR", "Command", "build", "preparations"]

#: The character device that carries QMP.
MONITOR: Final = "monitor"

_MIB: Final = 1 << 20
_DEFAULT_MACHINE: Final = "q35"
_ARCHITECTURES: Final = ("x86_64", "i686")


@dataclass(frozen=True)
class Command:
    """What to execute.

    :param argv: the program first.
    :param environment: variables to set on top of the caller's.
    :param free: where a device can be plugged in while the machine runs.
    """

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    free: tuple[Place, ...] = ()


def build(domain: Domain, capabilities: Capabilities, wiring: Wiring) -> Command:
    """The command that starts a domain.

    :param wiring: with one entry for each of the domain's emulated interfaces.
    :raise DefinitionError: the domain contradicts itself, or asks for what this binary lacks.
    :raise ValueError: the wiring is not this domain's.
    """
    check_domain(domain)
    board = Board(domain, capabilities, wiring, _machine_type(domain, capabilities))
    devices = [
        *interface_arguments(board),
        *hostdev_arguments(board),
        *disk_arguments(board),
        *console_arguments(board),
        *input_arguments(board),
        *rng_arguments(board),
        *balloon_arguments(board),
        *display_arguments(board),
    ]
    ports: list[str] = []
    for port in board.pci.ports():
        board.require("device", "pcie-root-port", capabilities.devices, domain.where)
        ports += ["-device", structured(port)]
    argv = (
        capabilities.binary,
        *_process(domain, wiring),
        *_machine(board),
        *_boot(domain),
        *ports,
        *devices,
        *(argument.value for argument in domain.qemu_arguments),
    )
    environment = tuple((v.name, v.value) for v in domain.qemu_environment)
    return Command(argv, environment, board.pci.free())


def preparations(domain: Domain) -> tuple[tuple[str, Mapping[str, object]], ...]:
    """What the command line cannot say: QMP commands with arguments, for before the guest runs."""
    commands: list[tuple[str, Mapping[str, object]]] = []
    for index, nic in enumerate(domain.interfaces):
        if nic.link is LinkState.DOWN:
            commands.append(("set_link", {"name": interface_id(index), "up": False}))
    no_balloon = domain.balloon is not None and domain.balloon.model is BalloonModel.NONE
    current = domain.current_memory
    if current is not None and current != domain.memory and not no_balloon:
        commands.append(("balloon", {"value": current}))
    return tuple(commands)


def _process(domain: Domain, wiring: Wiring) -> list[str]:
    """What QEMU is as a process: its name, its limits, its monitor."""
    deny = "deny"
    return [
        *("-name", joined(guest=domain.name, debug_threads=True)),
        *("-nodefaults", "-no-user-config", "-S"),
        *("-msg", joined(timestamp=True)),
        "-sandbox",
        joined("on", obsolete=deny, elevateprivileges=deny, spawn=deny, resourcecontrol=deny),
        *("-chardev", joined("socket", id=MONITOR, fd=wiring.qmp_fd)),
        *("-mon", joined(chardev=MONITOR, mode="control")),
    ]


def _machine_type(domain: Domain, capabilities: Capabilities) -> str:
    """The canonical name.

    :raise DefinitionError: not a q35 or pc, or not known to this binary.
    """
    system = domain.os or Os()
    if system.arch not in (None, *_ARCHITECTURES):
        system.at("type/@arch").refuse(
            f"machines of the architecture {system.arch} cannot be described yet",
            f"Write arch='{_ARCHITECTURES[0]}'.",
        )
    wanted = system.machine or _DEFAULT_MACHINE
    name = capabilities.machines.get(wanted)
    if name is None:
        system.at("type/@machine").refuse(
            f"{capabilities.binary} has no machine type '{wanted}'",
            f"Write machine='{_DEFAULT_MACHINE}'.",
        )
    if not name.startswith(("pc-q35-", "pc-i440fx-")):
        system.at("type/@machine").refuse(
            f"machines of the type {wanted} cannot be described yet",
            f"Write machine='{_DEFAULT_MACHINE}' or machine='pc'.",
        )
    return name


def _machine(board: Board) -> list[str]:
    """Board, accelerator, CPUs, memory, clock."""
    domain = board.domain
    timers = {timer.name: timer for timer in (domain.clock.timers if domain.clock else ())}
    features = domain.features or Features()
    hpet = timers["hpet"].present if "hpet" in timers else None
    options = joined(
        _machine_type(domain, board.capabilities),
        usb=False,
        dump_guest_core=False,
        acpi=None if features.acpi else False,
        hpet=hpet,
    )
    kvm = board.wiring.accelerator is Accelerator.KVM
    arguments = ["-machine", options, "-accel", "kvm" if kvm else joined("tcg", thread="multi")]
    arguments += _cpu(board, kvm=kvm)
    mebibytes = -(-(domain.memory or 0) // _MIB)  # whole ones, as libvirt rounds for x86
    arguments += ["-m", joined(size=f"{mebibytes}M")]
    if domain.uuid is not None:
        arguments += ["-uuid", domain.uuid]
    offset = domain.clock.offset if domain.clock is not None else ClockOffset.UTC
    rtc = timers.get("rtc")
    slew = rtc is not None and rtc.tickpolicy is TickPolicy.CATCHUP
    arguments += ["-rtc", joined(base=offset, driftfix="slew" if slew else None)]
    pit = timers.get("pit")
    if kvm and pit is not None and pit.tickpolicy in (TickPolicy.DELAY, TickPolicy.DISCARD):
        arguments += ["-global", f"kvm-pit.lost_tick_policy={pit.tickpolicy}"]
    return arguments


def _cpu(board: Board, *, kvm: bool) -> list[str]:
    domain = board.domain
    model = _cpu_model(board, kvm=kvm)
    extra = [f"{name}={'on' if on else 'off'}" for name, on in _cpu_features(domain, kvm=kvm)]
    arguments: list[str] = []
    if model is not None:
        arguments += ["-cpu", ",".join([model, *extra])]
    elif extra:
        arguments += ["-cpu", ",".join(["qemu64", *extra])]
    topology = domain.cpu.topology if domain.cpu is not None else None
    running = domain.current_vcpus if domain.current_vcpus is not None else domain.vcpus
    # Without a topology, one socket for each CPU, as libvirt does it.
    smp = joined(
        cpus=running,
        maxcpus=domain.vcpus,
        sockets=topology.sockets if topology is not None else domain.vcpus,
        dies=topology.dies if topology is not None and topology.dies > 1 else None,
        cores=topology.cores if topology is not None else 1,
        threads=topology.threads if topology is not None else 1,
    )
    return [*arguments, "-smp", smp]


def _cpu_model(board: Board, *, kvm: bool) -> str | None:
    """None: QEMU's default. Without KVM no host can be passed through; ``max`` comes nearest."""
    cpu = board.domain.cpu
    if cpu is None:
        return None
    match cpu.mode:
        case CpuMode.HOST_PASSTHROUGH | CpuMode.HOST_MODEL:
            return "host" if kvm else "max"
        case CpuMode.MAXIMUM:
            return "max"
        case CpuMode.CUSTOM:
            known = board.capabilities.cpu_models
            if cpu.model is None and cpu.features:
                cpu.features[0].where.refuse(
                    "a feature of which CPU model?", "Add <model>, or mode='host-passthrough'."
                )
            if cpu.model is not None and known:
                board.require("CPU model", cpu.model, known, cpu.at("model"))
            return cpu.model


def _cpu_features(domain: Domain, *, kvm: bool) -> list[tuple[str, bool]]:
    off = (FeaturePolicy.DISABLE, FeaturePolicy.FORBID)
    features = domain.cpu.features if domain.cpu is not None else ()
    found = [(feature.name, feature.policy not in off) for feature in features]
    for timer in domain.clock.timers if domain.clock is not None else ():
        if timer.name == "kvmclock" and timer.present is not None and kvm:
            found.append(("kvmclock", timer.present))
    return found


def _boot(domain: Domain) -> list[str]:
    """What is started first, and what ends the machine."""
    system = domain.os or Os()
    timeout = system.menu_timeout if system.menu else None
    arguments = ["-boot", joined(menu=system.menu, splash_time=timeout, strict=True)]
    if domain.on_reboot is OnReboot.DESTROY:
        arguments += ["-action", joined(reboot="shutdown")]
    if domain.on_poweroff is OnPoweroff.PRESERVE:
        arguments += ["-action", joined(shutdown="pause")]
    for option, value in (
        ("-kernel", system.kernel),
        ("-initrd", system.initrd),
        ("-append", system.cmdline),
    ):
        if value is not None:
            arguments += [option, value]
    return arguments

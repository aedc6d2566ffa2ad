# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which kinds of resource there are, and every step that a journal may hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .bandwidth import BandwidthKind, LimitTap
from .devices import Devices
from .dnsmasq import HostEntry, NetworkFiles, RunDnsmasq
from .filters import FilterFrames, FilterKind
from .forwarding import BridgeForward, Forward
from .hostdev import PciKind
from .macvtap import CreateMacvtap, DirectKind, EgressTable, FilterMacvtap, OpenMacvtap
from .network import Bridge, FirewallTables, NetworkFilter
from .pcinames import PciNames
from .publish import PublishKind
from .publishsteps import PublishPorts, RouteLocalnet, TurnAround
from .tap import TapKind
from .tapsteps import AttachTap, CreateTap, FilterTap
from .variants import Variants
from .vf import SetFunction
from .vfiodrivers import Drivers
from .vfiosteps import (
    AssignDevice,
    GiveGroup,
    KeepGroup,
    OpenDevice,
    OverrideDriver,
    RebindDevice,
)
from .vhost import OpenVhost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .kind import ResourceKind
    from .networks import Networks
    from .steps import Step

STEPS: Mapping[str, type[Step]] = {
    step.NAME: step
    for step in (
        AssignDevice,
        AttachTap,
        Bridge,
        BridgeForward,
        CreateMacvtap,
        CreateTap,
        EgressTable,
        FilterFrames,
        FilterMacvtap,
        FilterTap,
        FirewallTables,
        Forward,
        GiveGroup,
        HostEntry,
        KeepGroup,
        LimitTap,
        NetworkFiles,
        NetworkFilter,
        OpenDevice,
        OpenMacvtap,
        OpenVhost,
        OverrideDriver,
        PublishPorts,
        RebindDevice,
        RouteLocalnet,
        RunDnsmasq,
        SetFunction,
        TurnAround,
    )
}


@dataclass(frozen=True, slots=True)
class Kinds:
    """Every kind by the contract's word; and devices and networks, which can be listed, too."""

    all: Mapping[str, ResourceKind]
    devices: Devices
    networks: Networks


def resource_kinds(machine_id: str, aliases: Path, *, replaceable: bool = False) -> Kinds:
    """The kinds of this host.

    :param aliases: the kernel's modules.alias.
    :param replaceable: as of :class:`PciKind`.
    """
    sys, proc = Path("/sys"), Path("/proc")
    names = PciNames(Path("/run/udev/data"), Path("/usr/share/misc/pci.ids"))
    drivers = Drivers(Variants(aliases))
    pci = PciKind(sys, proc, names, drivers, replaceable=replaceable)
    tap = TapKind(machine_id, sys / "class/net")
    direct = DirectKind(machine_id, sys / "class/net", tap.lan_macs)
    kinds: tuple[ResourceKind, ...] = (
        *(tap, direct, pci),
        *(BandwidthKind(), FilterKind(tap.networks), PublishKind(tap.networks)),
    )
    devices = Devices(sys, pci, names, drivers)
    return Kinds({kind.name: kind for kind in kinds}, devices, tap.networks)

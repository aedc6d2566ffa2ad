# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which kinds of resource there are, and every step that a journal may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .dnsmasq import HostEntry, NetworkFiles, RunDnsmasq
from .forwarding import Forward
from .network import Bridge, BridgeForward, FirewallTables, NetworkFilter
from .tap import AttachTap, CreateTap, FilterTap, TapKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .kind import ResourceKind
    from .steps import Step

STEPS: Mapping[str, type[Step]] = {
    step.NAME: step
    for step in (
        AttachTap,
        Bridge,
        BridgeForward,
        CreateTap,
        FilterTap,
        FirewallTables,
        Forward,
        HostEntry,
        NetworkFiles,
        NetworkFilter,
        RunDnsmasq,
    )
}


def resource_kinds(machine_id: str, sys_class_net: Path) -> Mapping[str, ResourceKind]:
    """Every kind by the contract's word."""
    kinds: tuple[ResourceKind, ...] = (TapKind(machine_id, sys_class_net),)
    return {kind.name: kind for kind in kinds}

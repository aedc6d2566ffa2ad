# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ListDevices answers: every PCI function of the host, and whether it could be given.

The verdicts are those that a request would meet (``hostdev.py``), but for polkit's and the
caller's limits. Facts; the session side words them. No side effect: nothing is loaded or opened.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from .pci import PciBus
from .vfio import is_vfio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .config import Configuration, PciPolicy
    from .host import Host
    from .hostdev import PciKind
    from .pci import Function
    from .pcinames import PciNames
    from .vfiodrivers import Drivers

__all__ = ["Devices"]


class Devices:
    """The list. Worker thread."""

    def __init__(self, sys: Path, kind: PciKind, names: PciNames, drivers: Drivers) -> None:
        self._bus = PciBus(sys)
        self._kind = kind
        self._names = names
        self._drivers = drivers

    def rows(
        self, configuration: Configuration, host: Host, holders: Mapping[str, str]
    ) -> list[dict[str, object]]:
        """One for each function, by address.

        :param holders: address to the VM that has it, as the caller may know it.
        """
        functions = list(self._bus.functions().values())
        policy, use, faults = configuration.pci, self._kind.use(host), self._kind.faults()
        uses: dict[str, tuple[str, ...]] = {
            one.address: _uses(one, use.of(one), policy) for one in functions
        }
        for one in functions:
            if is_vfio(one.driver) and one.address not in holders:
                uses[one.address] += (f"another program has it by {one.driver}",)
        groups: dict[str, list[Function]] = defaultdict(list)
        for one in functions:
            groups[one.group].append(one)
        isolated = {
            group: policy.weak_isolation or not (faults or self._bus.group_faults(group))
            for group in groups
        }
        names = self._names.names(functions)
        return [
            {
                "address": one.address,
                "name": names[one.address],
                "ids": one.ids,
                "subsystem": one.subsystem,
                "class": f"{one.class_code:06x}",
                "driver": one.driver,
                "variant": self._drivers.variant(one),
                "group": one.group,
                "endpoint": one.endpoint,
                "resets": one.resets,
                "rom": one.rom,
                "uses": uses[one.address],
                "holder": holders.get(one.address, ""),
                "verdict": _verdict(
                    one, groups[one.group], uses, holders, isolated=isolated[one.group]
                ),
            }
            for one in functions
        ]


def _uses(one: Function, found: Sequence[str], policy: PciPolicy) -> tuple[str, ...]:
    if one.address in policy.deny:
        return ("broker.toml keeps it for the host",)
    return () if one.address in policy.allow else tuple(found)


def _verdict(
    one: Function,
    group: Sequence[Function],
    uses: Mapping[str, Sequence[str]],
    holders: Mapping[str, str],
    *,
    isolated: bool,
) -> str:
    if not one.endpoint:
        return "bridge"
    if not one.group:
        return "no-iommu"
    endpoints = [member for member in group if member.endpoint]
    if any(member.address in holders for member in endpoints):
        return "held"
    taken = any(uses[member.address] for member in endpoints)
    if taken or not isolated:
        return "refused"
    return "free" if len(endpoints) == 1 else "group"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt devices``: the host's PCI devices, and whether a machine can have them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from sessionvirt.broker_client import BrokerClient
from sessionvirt.host.cpu import vendor
from sessionvirt.model.addresses import PciAddress

from . import status
from .devicewords import assignable, class_words, groups, iommu_advice, notes, reset_words
from .hurry import in_time
from .output import paint, print_json, say, visible

if TYPE_CHECKING:
    import argparse

    from sessionvirt.broker_data import DeviceInfo

    from .devicewords import Group

__all__ = ["main"]

_COLOURS: Final = {"free": "green", "group": "green", "held": "yellow", "refused": "red"}


def main(args: argparse.Namespace) -> int:
    """Print the list."""
    return asyncio.run(_main(args))


async def _main(args: argparse.Namespace) -> int:
    if args.names:
        _print_names(await in_time(_ask()))
        return status.OK
    found = groups(await _ask())
    advice = iommu_advice(vendor()) if any(one.verdict == "no-iommu" for one in found) else ""
    if args.json:
        print_json({"groups": [_plain(group) for group in found], "advice": advice})
    elif found:
        _print(found)
        if advice:
            print(f"{paint('what to do:', 'bold')} {advice}")
    else:
        say("this host has no PCI devices")
    return status.OK


async def _ask() -> tuple[DeviceInfo, ...]:
    async with await BrokerClient.connect() as client:
        return await client.devices()


def _plain(group: Group) -> dict[str, object]:
    """The keys of a device are the contract's."""
    rows = [asdict(device) for device in group.devices]
    for row in rows:
        row["class"] = row.pop("class_code")
    return {
        "group": group.number,
        "verdict": group.verdict,
        "explanation": group.explanation,
        "devices": rows,
    }


def _print(found: tuple[Group, ...]) -> None:
    """Each group's verdict, and its functions below it in columns that all groups share."""
    rows = {device.address: _row(device) for group in found for device in group.devices}
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    for group in found:
        head = f"group {group.number}: " if group.number else ""
        words = paint(visible(group.explanation), _COLOURS.get(group.verdict, "bold"))
        print(f"{paint(head, 'bold')}{words}" if head else words)
        for device in group.devices:
            cells = zip(rows[device.address], widths, strict=True)
            print("  " + "  ".join(cell.ljust(width) for cell, width in cells).rstrip())
            for note in notes(device):
                print(f"    {visible(note)}")


def _row(device: DeviceInfo) -> tuple[str, ...]:
    driver = f"driver {device.driver}" if device.driver else "no driver"
    if device.variant:
        driver += f" (VFIO: {device.variant})"
    kind = class_words(device.class_code)
    cells = (device.address, device.name, kind, driver, reset_words(device))
    return tuple(visible(cell) for cell in cells)


def _print_names(devices: tuple[DeviceInfo, ...]) -> None:
    """Print the addresses of what can be given to a machine, one a line, and nothing else."""
    for device in devices:
        try:
            address = PciAddress.parse(device.address)
        except ValueError:
            continue
        if assignable(device):
            print(address)

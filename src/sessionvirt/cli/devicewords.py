# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's PCI devices in words: by isolation group, with one verdict each.

A group is what the IOMMU can keep apart from the rest, so it is given away as a whole. The broker
says what is so for each function; what that means for the group, and what to do where there is no
IOMMU, is worded here. Nothing here talks to the broker or writes anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sessionvirt.host.cpu import CpuVendor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sessionvirt.broker_data import DeviceInfo

__all__ = ["Group", "assignable", "class_words", "groups", "iommu_advice", "notes", "reset_words"]

#: Verdicts of a function from the one that decides for its group to the one that says least.
_WEIGHT: Final = ("held", "refused", "group", "free", "no-iommu", "bridge")

#: By base class and subclass, then by base class (PCI Code and ID Assignment Specification).
_CLASSES: Final = {
    "0106": "SATA controller",
    "0108": "NVMe",
    "01": "storage",
    "0200": "Ethernet",
    "0280": "network",
    "02": "network",
    "03": "display",
    "0403": "audio",
    "04": "multimedia",
    "05": "memory",
    "0600": "host bridge",
    "0601": "ISA bridge",
    "0604": "PCI bridge",
    "06": "bridge",
    "07": "serial",
    "0c03": "USB controller",
    "0c05": "SMBus",
    "0d": "wireless",
    "10": "encryption",
    "12": "accelerator",
}

_FIRMWARE: Final = {
    CpuVendor.INTEL: "enable VT-d in the firmware's setup, and boot the kernel with intel_iommu=on",
    CpuVendor.AMD: "enable the IOMMU (AMD-Vi) in the firmware's setup",
    CpuVendor.ARM: "the firmware has to describe and enable the SMMU",
    CpuVendor.OTHER: "enable the IOMMU in the firmware's setup",
}


@dataclass(frozen=True)
class Group:
    """The functions that can only be given away together.

    :param number: of the IOMMU group; empty: those that no IOMMU has.
    :param verdict: the contract's word that decides.
    :param explanation: for people.
    """

    number: str
    verdict: str
    explanation: str
    devices: tuple[DeviceInfo, ...]


def groups(devices: Iterable[DeviceInfo]) -> tuple[Group, ...]:
    """Sort functions into their groups, in the order of first appearance; the group-less last."""
    found: dict[str, list[DeviceInfo]] = {}
    for device in devices:
        found.setdefault(device.group, []).append(device)
    if "" in found:
        found[""] = found.pop("")
    return tuple(_group(number, tuple(members)) for number, members in found.items())


def _group(number: str, devices: tuple[DeviceInfo, ...]) -> Group:
    verdicts = {device.verdict for device in devices}
    # A word of a newer broker's decides before all that are known, and is shown as it is.
    unknown = sorted(verdicts.difference(_WEIGHT))
    verdict = unknown[0] if unknown else next(word for word in _WEIGHT if word in verdicts)
    return Group(number, verdict, _explanation(verdict, devices), devices)


def _explanation(verdict: str, devices: tuple[DeviceInfo, ...]) -> str:
    match verdict:
        case "free":
            return "free to assign"
        case "group":
            endpoints = [device.address for device in devices if device.endpoint]
            others = len(endpoints) - 1
            along = f"takes {others} {'other' if others == 1 else 'others'} along"
            return f"{along}: {', '.join(endpoints)} go together (--with-group)"
        case "held":
            return f"held by {_holder(devices)}"
        case "refused":
            uses = [f"{device.address}: {use}" for device in devices for use in device.uses]
            if not uses:
                return "refused: it cannot be isolated from other devices"
            return f"refused: {uses[0]}" + (f" (and {len(uses) - 1} more)" if uses[1:] else "")
        case "no-iommu":
            return "no IOMMU: none of these can be given to a machine"
        case "bridge":
            return "bridges only, nothing to assign"
    return verdict


def _holder(devices: tuple[DeviceInfo, ...]) -> str:
    holders = {device.holder for device in devices} - {""}
    if not holders:
        return "a machine that has just ended"
    return ", ".join("another user's machine" if h == "-" else h for h in sorted(holders))


def class_words(code: str) -> str:
    """Say what kind of device a class code means; the code where it is not known."""
    return _CLASSES.get(code[:4]) or _CLASSES.get(code[:2]) or f"class {code}"


def reset_words(device: DeviceInfo) -> str:
    """Say how it is reset between its users."""
    if device.resets:
        return f"reset {', '.join(device.resets)}"
    return "no reset" if device.endpoint else ""


def notes(device: DeviceInfo) -> list[str]:
    """What else there is to say of one function, a line each; not what its group's verdict says."""
    found = [f"in use: {use}" for use in device.uses]
    if device.holder and device.verdict != "held":
        found.append(f"held by {_holder((device,))}")
    if device.endpoint and not device.resets:
        found.append("warning: it cannot be reset; what a guest left may stay in it")
    return found


def assignable(device: DeviceInfo) -> bool:
    """Whether it can be given to a machine now."""
    return device.endpoint and device.verdict in ("free", "group")


def iommu_advice(vendor: CpuVendor) -> str:
    """Say what to do where there is no IOMMU."""
    return f"{_FIRMWARE[vendor]}; a virtual machine gets one from its host, or has none"

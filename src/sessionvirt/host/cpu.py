# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who made the processor: what its IOMMU is called, and where it is turned on, goes by that."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = ["CpuVendor", "vendor"]

_CPUINFO: Final = "/proc/cpuinfo"


class CpuVendor(StrEnum):
    """The makers between whom it makes a difference."""

    INTEL = "intel"
    AMD = "amd"
    ARM = "arm"
    OTHER = "other"


#: What begins a line, and what is said there. Hygon's are AMD's by another name; a processor for
#: Arm says a number instead of a maker, who may be anybody.
_SIGNS: Final = (
    ("vendor_id", "GenuineIntel", CpuVendor.INTEL),
    ("vendor_id", "AuthenticAMD", CpuVendor.AMD),
    ("vendor_id", "HygonGenuine", CpuVendor.AMD),
    ("CPU implementer", "", CpuVendor.ARM),
)


def vendor(path: str = _CPUINFO) -> CpuVendor:
    """Read it of the first processor; OTHER where nothing tells."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            head = file.read(4096)
    except OSError:
        return CpuVendor.OTHER
    for line in head.splitlines():
        key, _, value = line.partition(":")
        for name, text, found in _SIGNS:
            if key.strip() == name and text in value:
                return found
    return CpuVendor.OTHER

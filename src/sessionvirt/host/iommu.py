# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether this host has an IOMMU that is on: without one no device can be given to a machine.

Anybody may read it; the broker looks for itself. Source: Linux'
Documentation/ABI/testing/sysfs-kernel-iommu_groups.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["group_count"]

_GROUPS: Final = "/sys/kernel/iommu_groups"


def group_count(path: str = _GROUPS) -> int:
    """Count the IOMMU groups; 0 where the kernel has none, or there is no sysfs."""
    try:
        return sum(name.isdecimal() for name in os.listdir(path))
    except OSError:
        return 0

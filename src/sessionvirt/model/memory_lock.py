# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much memory QEMU must be able to lock (``RLIMIT_MEMLOCK``) for a domain.

VFIO maps all of the guest's memory for the device when QEMU makes the device, and what a device may
write to stays in RAM: the kernel charges it to QEMU's limit, and refuses what exceeds it. So the
limit has to be up before QEMU starts.

The formula is libvirt's (qemuDomainGetMemLockLimitBytes): the memory and 1 GiB, which is for what
is mapped beside it, the BARs of the devices: IOMMUFD counts them. libvirt multiplies the memory by
the number of devices only where the guest has an IOMMU of its own, because then each device has an
address space of its own; without one they share the guest's. The model here has no such IOMMU.

The amount is a bound and takes nothing: what is not mapped is not locked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .interface import host_devices

if TYPE_CHECKING:
    from .domain import Domain

__all__ = ["lock_limit"]

_MIB: Final = 1 << 20
#: For the BARs of all devices.
_BESIDES: Final = 1 << 30


def lock_limit(domain: Domain, *, more: bool = False) -> int:
    """Return the bytes that QEMU has to be able to lock; 0: no device of the domain needs it.

    :param more: it gets a device that is not in the domain.
    """
    if not more and not host_devices(domain):
        return 0
    # As the command line rounds it up.
    return -(-(domain.memory or 0) // _MIB) * _MIB + _BESIDES

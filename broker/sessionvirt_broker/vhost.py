# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors of /dev/vhost-net, by which the host's kernel moves a guest's frames by itself.

Most hosts have the node for root and a group (0660), so the broker opens it for whoever it gives a
TAP. One has no effect until its holder makes it their own (VHOST_SET_OWNER, drivers/vhost/vhost.c):
the kernel works in *their* memory and for their account, and sends by a TAP or packet socket whose
descriptor *they* have (get_socket() in drivers/vhost/net.c). The broker never calls that.

The node is there before the module is (kmod makes it at boot): the kernel loads vhost_net by itself
when it is opened, and asks nothing of the opener for that. Where there is none, or the module is
forbidden, the TAP is given without.

A descriptor outlives its lease, for it is the caller's, and costs the kernel some 120 KiB that no
cgroup pays for (struct vhost_net has two queues of 1024 vectors each, vhost_dev_alloc_iovecs() adds
as much and more, neither with GFP_KERNEL_ACCOUNT). So not leases are counted but the descriptors
that are open on the whole host, which the module's use count is. A kernel that has no count of it
(built in) gets none from here.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from .steps import Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .host import Host

log = logging.getLogger(__name__)

DEVICE = Path("/dev/vhost-net")
#: How many descriptors of it are open: each holds the module.
USES = Path("/sys/module/vhost_net/refcnt")

#: What says that this host has none: no node, no module, or not for us.
_ABSENT = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM})


@dataclass(frozen=True, slots=True)
class OpenVhost(Step):
    """One descriptor for each queue of a TAP, behind its own in :attr:`Host.fds`; or none.

    :param most: how many may be open on the host, with these.
    :param given: 1 when they are there.
    """

    NAME: ClassVar[str] = "tap-vhost"

    ifname: str
    queues: int
    most: int
    given: int = 0

    def describe(self) -> str:
        return f"open {DEVICE} for {self.ifname}, if this host has it"

    def describe_undo(self) -> str:
        return "nothing: it ends with who has it"

    def execute(self, host: Host) -> Self:
        descriptors = open_each(self.queues, self.most)
        host.fds[self.ifname] += descriptors
        return replace(self, given=int(bool(descriptors)))

    def undo(self, host: Host) -> None:
        pass  # the descriptors are closed with the TAP's


def open_each(queues: int, most: int, device: Path = DEVICE, uses: Path = USES) -> list[int]:
    """One descriptor for each queue; none where the host has not so many.

    :return: close-on-exec; the caller owns them.
    :raise OSError: the host has it, and it cannot be opened.
    """
    descriptors: list[int] = []
    try:
        for _ in range(queues):
            # PRIVILEGE: CAP_DAC_OVERRIDE; the node is root's and a group's.
            descriptors.append(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        # After the first is open, or there might be no module yet.
        if int(uses.read_text(encoding="ascii")) <= most:
            return descriptors
        log.warning("vhost_descriptors: %d are open on this host; one is given a TAP without", most)
    except OSError as error:
        if error.errno not in _ABSENT:
            _close(descriptors)
            raise
    _close(descriptors)
    return []


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def has_vhost(steps: Sequence[Step]) -> bool:
    """Whether descriptors of /dev/vhost-net came along."""
    return any(isinstance(step, OpenVhost) and step.given for step in steps)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is only known at run time and stands on QEMU's command line: descriptors and the like.

Numbers, not ownership: whoever opened a descriptor keeps it, and passes :attr:`Wiring.passed_fds`
to the child under the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sessionvirt.model.addresses import MacAddress
    from sessionvirt.model.portforward import Ports

__all__ = [
    "Accelerator", "HostdevWiring", "InterfaceWiring", "PasstWiring", "TapWiring", "UserWiring",
    "Wiring",
]  # fmt: skip


class Accelerator(Enum):
    """What runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class TapWiring:
    """A TAP device.

    :param fds: one for each queue.
    :param mac: the only address that the network lets through.
    :param mtu: of the network, in bytes.
    :param vhost_fds: of /dev/vhost-net, one for each queue, or none.
    """

    fds: tuple[int, ...]
    mac: MacAddress
    mtu: int
    vhost_fds: tuple[int, ...] = ()

    @property
    def passed_fds(self) -> tuple[int, ...]:
        """Every descriptor that QEMU must have."""
        return (*self.fds, *self.vhost_fds)


@dataclass(frozen=True)
class PasstWiring:
    """A connected stream socket with passt at its other end."""

    fd: int
    mac: MacAddress

    @property
    def passed_fds(self) -> tuple[int, ...]:
        """As of a TAP."""
        return (self.fd,)


@dataclass(frozen=True)
class UserWiring:
    """QEMU's own user-mode network (slirp).

    :param ports: of the host that lead to the guest.
    """

    mac: MacAddress
    ports: tuple[Ports, ...] = ()

    @property
    def passed_fds(self) -> tuple[int, ...]:
        """As of a TAP: none."""
        return ()


InterfaceWiring = TapWiring | PasstWiring | UserWiring


@dataclass(frozen=True)
class HostdevWiring:
    """All host devices as descriptors.

    :param iommufd: the address space that they have in common, which is the guest's: so its memory
        is locked once, and those of one isolation group can be together.
    :param devices: one for each host device, in order.
    """

    iommufd: int
    devices: tuple[int, ...]


@dataclass(frozen=True)
class Wiring:
    """One start's runtime facts.

    :param qmp_fd: a connected stream socket; QEMU speaks QMP on it.
    :param interfaces: one for each of the domain's emulated interfaces, in order.
    :param hostdevs: None: QEMU opens the nodes of the host devices' groups.
    """

    qmp_fd: int
    accelerator: Accelerator
    interfaces: tuple[InterfaceWiring, ...] = ()
    hostdevs: HostdevWiring | None = None

    @property
    def passed_fds(self) -> tuple[int, ...]:
        """Every descriptor that the child must inherit."""
        fds = [self.qmp_fd]
        for wiring in self.interfaces:
            fds += wiring.passed_fds
        if self.hostdevs is not None:
            fds += [self.hostdevs.iommufd, *self.hostdevs.devices]
        return tuple(fds)

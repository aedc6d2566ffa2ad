# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a domain needs from outside QEMU before it can start, in words of no driver."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from .devices import InterfaceType, NicModel
from .nic import NicBackend

if TYPE_CHECKING:
    from .addresses import MacAddress, PciAddress
    from .devices import Interface
    from .domain import Domain

__all__ = ["Need", "NeedKind", "PciNeed", "interface_need", "needs", "pci_needs"]


class NeedKind(StrEnum):
    """``TAP``: a TAP device on a network or bridge, which takes privilege. ``USER``: a user-mode
    network, which takes none."""

    TAP = "tap"
    USER = "user"


@dataclass(frozen=True)
class Need:
    """One interface's.

    :param interface: its index in the domain.
    :param network: a managed network's name; else None.
    :param bridge: a bridge's name; else None. For a TAP exactly one of the two is there.
    :param mac: the address the document asks for; None: any.
    :param mtu: bytes; None: the network's.
    :param vhost: True: the host's kernel has to move its packets; False: it must not, or the model
        knows no such thing; None: it may.
    :param name: what people call the TAP; None: nothing of their own.
    """

    kind: NeedKind
    interface: int
    network: str | None = None
    bridge: str | None = None
    mac: MacAddress | None = None
    queues: int = 1
    mtu: int | None = None
    vhost: bool | None = False
    name: str | None = None


def needs(domain: Domain) -> tuple[Need, ...]:
    """One need for each interface, in order; the wiring of the start answers them in the same."""
    return tuple(interface_need(nic, index) for index, nic in enumerate(domain.interfaces))


def interface_need(nic: Interface, index: int) -> Need:
    """One interface's.

    :param index: what is counted as of the domain's, where it comes later.
    """
    if nic.type is InterfaceType.USER:
        return Need(NeedKind.USER, index, mac=nic.mac, mtu=nic.mtu)
    backend = nic.driver.name if nic.driver is not None else None
    vhost = None if backend is None else backend is NicBackend.VHOST
    return Need(
        NeedKind.TAP,
        index,
        network=nic.network if nic.type is InterfaceType.NETWORK else None,
        bridge=nic.bridge if nic.type is InterfaceType.BRIDGE else None,
        mac=nic.mac,
        queues=nic.queues,
        mtu=nic.mtu,
        vhost=vhost if nic.model is NicModel.VIRTIO else False,
        name=nic.name,
    )


@dataclass(frozen=True)
class PciNeed:
    """One host device's.

    :param hostdev: its index in the domain.
    :param address: where the host has it.
    :param also: the domain's other host devices: where one of them shares the isolation group, it
        goes along anyway.
    :param managed: take it from its driver, and give it back.
    """

    hostdev: int
    address: PciAddress
    also: tuple[PciAddress, ...]
    managed: bool


def pci_needs(domain: Domain) -> tuple[PciNeed, ...]:
    """One need for each host device, in order."""
    hosts = [hostdev.host for hostdev in domain.hostdevs]
    return tuple(
        PciNeed(index, hosts[index], (*hosts[:index], *hosts[index + 1 :]), hostdev.managed)
        for index, hostdev in enumerate(domain.hostdevs)
    )

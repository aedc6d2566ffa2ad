# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a domain needs from outside QEMU before it can start, in words of no driver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from .bandwidth import Bandwidth
from .filter import NO_FILTER, GuestFilter
from .filterref import guest_filter
from .interface import DirectMode, Interface, InterfaceType, NicModel, host_devices
from .nic import NicBackend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .addresses import MacAddress, PciAddress
    from .bandwidth import BandwidthRate
    from .domain import Domain
    from .interface import HostPci
    from .portforward import Ports

__all__ = [
    "Need", "NeedKind", "PciNeed", "interface_need", "needs", "pci_need", "pci_needs",
]  # fmt: skip


class NeedKind(StrEnum):
    """``TAP``: a TAP device on a network or bridge, or a macvtap, which takes privilege. ``USER``:
    a user-mode network, which takes none."""

    TAP = "tap"
    USER = "user"


@dataclass(frozen=True)
class Need:
    """One interface's.

    :param interface: its index in the domain.
    :param network: a managed network's name; else None.
    :param bridge: a bridge's name; else None.
    :param device: the name of an interface of the host's that it shares; else None. For a TAP
        exactly one of the three is there.
    :param mode: how it shares that.
    :param vlan: of the bridge; None: its default one.
    :param mac: the address the document asks for; None: any.
    :param mtu: bytes; None: the network's.
    :param vhost: True: the host's kernel has to move its packets; False: it must not, or the model
        knows no such thing; None: it may.
    :param name: what people call the TAP; None: nothing of their own.
    :param isolated: the TAP is apart from others there that are so.
    :param inbound: how much the guest receives in a second; None: as much as comes. Likewise
        ``outbound``.
    :param filter: what the guest may not.
    :param ports: of the host that lead to the guest.
    """

    kind: NeedKind
    interface: int
    network: str | None = None
    bridge: str | None = None
    device: str | None = None
    mode: str | None = None
    vlan: int | None = None
    mac: MacAddress | None = None
    queues: int = 1
    mtu: int | None = None
    vhost: bool | None = False
    name: str | None = None
    isolated: bool = False
    inbound: BandwidthRate | None = None
    outbound: BandwidthRate | None = None
    filter: GuestFilter = NO_FILTER
    ports: tuple[Ports, ...] = ()


def needs(domain: Domain) -> tuple[Need, ...]:
    """One need for each emulated interface, in order; the wiring answers them in the same."""
    numbered = enumerate(domain.interfaces)
    return tuple(interface_need(nic, index) for index, nic in numbered if not nic.is_hostdev)


def interface_need(nic: Interface, index: int) -> Need:
    """One interface's.

    :param index: what is counted as of the domain's, where it comes later.
    """
    ports = tuple(row for forward in nic.port_forwards for row in forward.rows())
    if nic.type is InterfaceType.USER:
        return Need(NeedKind.USER, index, mac=nic.mac, mtu=nic.mtu, ports=ports)
    backend = nic.driver.name if nic.driver is not None else None
    vhost = None if backend is None else backend is NicBackend.VHOST
    limits = nic.bandwidth or Bandwidth()
    inbound, outbound = (
        rate if rate is not None and rate.average else None
        for rate in (limits.inbound, limits.outbound)
    )
    return Need(
        NeedKind.TAP,
        index,
        network=nic.network if nic.type is InterfaceType.NETWORK else None,
        bridge=nic.bridge if nic.type is InterfaceType.BRIDGE else None,
        device=nic.device,
        mode=(nic.mode or DirectMode.VEPA).value if nic.device is not None else None,
        vlan=nic.vlan_id,
        mac=nic.mac,
        queues=nic.queues,
        mtu=nic.mtu,
        vhost=vhost if nic.model is NicModel.VIRTIO else False,
        name=nic.name,
        isolated=nic.isolated,
        inbound=inbound,
        outbound=outbound,
        filter=guest_filter(nic),
        ports=ports,
    )


@dataclass(frozen=True)
class PciNeed:
    """One host device's.

    :param address: where the host has it.
    :param also: the domain's other host devices: where one of them shares the isolation group, it
        goes along anyway.
    :param managed: take it from its driver, and give it back.
    :param driver: the VFIO driver that it is to have; None: the one for it.
    :param mac: the address that its card is told; None: it keeps the one it has.
    :param vlan: likewise.
    """

    address: PciAddress
    also: tuple[PciAddress, ...]
    managed: bool
    driver: str | None = None
    mac: MacAddress | None = None
    vlan: int | None = None


def pci_needs(domain: Domain) -> tuple[PciNeed, ...]:
    """One need for each host device, in order."""
    devices = host_devices(domain)
    return tuple(
        pci_need(device, [one.host for one in devices if one is not device]) for device in devices
    )


def pci_need(device: HostPci, others: Sequence[PciAddress]) -> PciNeed:
    """The need of one of them.

    :param others: which may go along.
    """
    need = PciNeed(device.host, tuple(others), device.managed)
    if isinstance(device, Interface):
        return replace(need, mac=device.mac, vlan=device.vlan_id)
    return replace(need, driver=device.driver_model)

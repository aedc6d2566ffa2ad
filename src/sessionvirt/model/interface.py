# SPDX-License-Identifier: LGPL-2.1-or-later
"""``<interface>``: a network card of the guest, emulated or a function of a card of the host's.

``type='hostdev'`` is the second: a device of the host like those of ``<hostdev>``
(:mod:`.hostdev`), with a MAC address and a VLAN, which the host's card is told. All others have a
backend.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from sessionvirt.xmlmap import Element, attr, child, children, mapped
from sessionvirt.xmlvalues import Choice, Converter, Integer, OnOff, Pattern, Text, YesNo

from .addresses import parse_mac
from .bandwidth import Bandwidth
from .devices import ORDER, Device
from .filterref import FilterRef
from .hostdev import Hostdev, HostPlace
from .nic import NicDriver
from .portforward import PortForward

if TYPE_CHECKING:
    from .addresses import MacAddress, PciAddress
    from .domain import Domain

__all__ = [
    "DirectMode", "HostPci", "Interface", "InterfaceType", "LinkState", "NicModel", "Vlan",
    "VlanTag", "host_devices",
]  # fmt: skip

Mac: Final[Converter[MacAddress]] = Converter(
    parse_mac, str, "a unicast address such as 52:54:00:12:34:56"
)
_NAME: Final = Pattern(r"[A-Za-z0-9_.+:-]{1,64}", "letters, digits and _ . + : -, at most 64")


class InterfaceType(StrEnum):
    NETWORK = "network"
    BRIDGE = "bridge"
    DIRECT = "direct"
    USER = "user"
    HOSTDEV = "hostdev"


class DirectMode(StrEnum):
    """How guests see each other that share an interface of the host's. The check refuses
    ``passthrough``, which would take it from the host."""

    BRIDGE = "bridge"
    PRIVATE = "private"
    VEPA = "vepa"
    PASSTHROUGH = "passthrough"


class NicModel(StrEnum):
    VIRTIO = "virtio"
    E1000 = "e1000"
    E1000E = "e1000e"
    RTL8139 = "rtl8139"


class LinkState(StrEnum):
    UP = "up"
    DOWN = "down"


@mapped
class VlanTag(Element):
    """``<tag>`` inside ``<vlan>``; the frames of the guest have none."""

    id: int = attr("@id", Integer(0, 4095), required=True)
    native: str | None = attr(
        "@nativeMode", Pattern("untagged", "'untagged': frames with a tag are not possible")
    )


@mapped
class Vlan(Element):
    """``<vlan>``. The host's card or bridge adds and removes one tag; the check refuses a trunk."""

    trunk: bool | None = attr("@trunk", YesNo)
    tags: tuple[VlanTag, ...] = children("tag", VlanTag)


@mapped
class Interface(Device):
    """``<interface>``.

    :param device: the host's interface, with the type direct, and so is ``mode``: where silent, it
        is vepa, as libvirt has it.
    :param mac: with the type hostdev: where silent, the card gives it what it has.
    :param mtu: bytes.
    :param managed: as of a host device, with the type hostdev, and so is ``source``.
    :param vlan: where silent, with the type hostdev, what an administrator has set; on a bridge,
        its default one.
    :param rom_bar: as of a host device, with every type, and so is ``rom_file``.
    :param isolated: nothing passes between it and other interfaces there that are so.
    :param port_forwards: of the host, with the type network.
    :param target: what people call the TAP, whose first name is the broker's.
    """

    type: InterfaceType = attr("@type", Choice(InterfaceType), required=True)
    network: str | None = attr("source/@network", _NAME)
    bridge: str | None = attr(
        "source/@bridge", Pattern(r"[^/\s:]{1,15}", "a bridge's name, at most 15")
    )
    device: str | None = attr(
        "source/@dev", Pattern(r"[^/\s:]{1,15}", "an interface's name, at most 15")
    )
    mode: DirectMode | None = attr("source/@mode", Choice(DirectMode))
    managed: bool = attr("@managed", YesNo, default=False)
    source: HostPlace | None = child("source/address", HostPlace)
    vlan: Vlan | None = child("vlan", Vlan)
    bandwidth: Bandwidth | None = child("bandwidth", Bandwidth)
    isolated: bool = attr("port/@isolated", YesNo, default=False)
    mac: MacAddress | None = attr("mac/@address", Mac)
    model: NicModel | None = attr("model/@type", Choice(NicModel))
    driver: NicDriver | None = child("driver", NicDriver)
    mtu: int | None = attr("mtu/@size", Integer(68, 65535))
    link: LinkState = attr("link/@state", Choice(LinkState), default=LinkState.UP)
    rom_bar: bool | None = attr("rom/@bar", OnOff)
    rom_file: str | None = attr("rom/@file", Text)
    boot_order: int | None = attr("boot/@order", ORDER)
    filterref: FilterRef | None = child("filterref", FilterRef)
    target: str | None = attr(
        "target/@dev",
        Pattern(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", "letters, digits and _ . -, at most 15"),
    )

    port_forwards: tuple[PortForward, ...] = children("portForward", PortForward)

    @property
    def queues(self) -> int:
        """Pairs of queues: 1 where the document is silent."""
        return self.driver.queues or 1 if self.driver is not None else 1

    @property
    def name(self) -> str | None:
        """The target, where a person chose it: libvirt fills in one that begins so, and ignores it
        when it reads one (VIR_NET_GENERATED_VNET_PREFIX and its like, src/util/virnetdev.h)."""
        generated = self.target is not None and re.match("vnet|vif|macvtap|macvlan", self.target)
        return None if generated else self.target

    @property
    def is_hostdev(self) -> bool:
        """Whether it is a device of the host."""
        return self.type is InterfaceType.HOSTDEV

    @property
    def host(self) -> PciAddress:
        """As of a host device."""
        if self.source is None:
            raise ValueError("a host device without an address")
        return self.source.pci

    @property
    def vlan_id(self) -> int | None:
        """The VLAN's number.

        :raise ValueError: it has not exactly one; one of a domain that was checked has.
        """
        if self.vlan is None:
            return None
        (tag,) = self.vlan.tags
        return tag.id


#: A PCI device of the host, by either element. Both have the fields that it takes.
HostPci: TypeAlias = Hostdev | Interface


def host_devices(domain: Domain) -> tuple[HostPci, ...]:
    """A domain's devices of the host, in the order of their ids: an interface moves no hostdev."""
    return (*domain.hostdevs, *(nic for nic in domain.interfaces if nic.is_hostdev))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``<hostdev>``: a PCI device of the host that becomes the guest's own.

Of libvirt's kinds this is the one that a VM here can have: ``mode='subsystem' type='pci'``. The
others (usb, scsi, mdev) are elements that are not understood, like any unknown one.

Two addresses are in it, and both are written alike: ``source/address`` is where the *host* has the
device, ``address`` where the guest will find it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sessionvirt.xmlmap import Element, attr, child, mapped
from sessionvirt.xmlvalues import OnOff, Pattern, Text, YesNo

from .addresses import PciAddress
from .devices import HEX, ORDER, Device

if TYPE_CHECKING:
    from sessionvirt.xmlfields import Only

__all__ = ["HOSTDEVS", "HostPlace", "Hostdev"]


@mapped
class HostPlace(Element):
    """``<address>`` inside ``<source>``. Bus and slot have no default, which would be a device."""

    type: str | None = attr("@type", Pattern("pci", "'pci'"))
    domain: int = attr("@domain", HEX, default=0, always=True)
    bus: int = attr("@bus", HEX, required=True)
    slot: int = attr("@slot", HEX, required=True)
    function: int = attr("@function", HEX, default=0, always=True)

    @property
    def pci(self) -> PciAddress:
        """The address as a value.

        :raise ValueError: no function has it; a domain that was checked has no such place.
        """
        return PciAddress(self.domain, self.bus, self.slot, self.function)


@mapped
class Hostdev(Device):
    """``<hostdev mode='subsystem' type='pci'>``.

    :param managed: the device is taken from its driver for the guest, and given back to it; else a
        VFIO driver has it already, and keeps it. ``no`` where silent, as in libvirt.
    :param driver_model: the VFIO driver to have it bound to: ``vfio-pci``, or the one that the
        host's kernel has for this model. Where silent, the latter if there is one.
    :param source: where the host has it. A document without it is refused by the check.
    :param rom_bar: whether the guest sees the expansion ROM; QEMU's default where silent.
    :param rom_file: shown to the guest as the expansion ROM.
    """

    mode: str = attr("@mode", Pattern("subsystem", "'subsystem'"), default="subsystem", always=True)
    type: str = attr("@type", Pattern("pci", "'pci'"), default="pci", always=True)
    managed: bool = attr("@managed", YesNo, default=False, always=True)
    driver: str | None = attr("driver/@name", Pattern("vfio", "'vfio', or leave it out"))
    driver_model: str | None = attr(
        "driver/@model", Pattern("[A-Za-z0-9][A-Za-z0-9_-]{0,54}", "the name of a VFIO driver")
    )
    source: HostPlace | None = child("source/address", HostPlace)
    rom_bar: bool | None = attr("rom/@bar", OnOff)
    rom_file: str | None = attr("rom/@file", Text)
    boot_order: int | None = attr("boot/@order", ORDER)

    @property
    def host(self) -> PciAddress:
        """Where the host has it.

        :raise ValueError: nobody says; a domain that was checked has an address in each.
        """
        if self.source is None:
            raise ValueError("a host device without an address")
        return self.source.pci


#: For ``only=`` where the list of host devices is declared.
HOSTDEVS: Final[Only] = {"type": {"pci"}}

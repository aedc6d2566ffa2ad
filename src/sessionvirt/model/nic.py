# SPDX-License-Identifier: LGPL-2.1-or-later
"""``<driver>`` inside ``<interface>``: how a virtio card works, whatever it is connected to.

Names, values and meanings are those of libvirt's formatdomain.rst, "Setting NIC driver-specific
options". Each is a property of QEMU's ``virtio-net-pci`` or of its backend, and means nothing to a
card of another model.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from sessionvirt.xmlmap import Element, attr, child, mapped
from sessionvirt.xmlvalues import Choice, Converter, Integer, OnOff

__all__ = ["MAX_QUEUES", "GuestOffloads", "HostOffloads", "NicBackend", "NicDriver", "TxMode"]

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of one TAP: MAX_TAP_QUEUES in the kernel's drivers/net/tun.c.
MAX_QUEUES: Final = 256
#: virtio_net_device_realize() in QEMU's hw/net/virtio-net.c takes these, and no other.
_RING_SIZES: Final = (256, 512, 1024)


class NicBackend(StrEnum):
    """Who moves the frames: the host's kernel, or QEMU."""

    VHOST = "vhost"
    QEMU = "qemu"
    #: Neither: a device of the host's is its own.
    VFIO = "vfio"


class TxMode(StrEnum):
    """When QEMU looks at what the guest sends: at once, or after a moment of collecting."""

    IOTHREAD = "iothread"
    TIMER = "timer"


def _ring_size(text: str) -> int:
    sizes = {str(size): size for size in _RING_SIZES}
    if text not in sizes:
        raise ValueError(f"{text[:20]!a} is no size of a ring")
    return sizes[text]


_RingSize: Final[Converter[int]] = Converter(_ring_size, str, "256, 512 or 1024")


@mapped
class HostOffloads(Element):
    """``<host>``: what the guest may leave to the host, for what it sends; and for ``mrg_rxbuf``,
    how it gets what is longer than a buffer."""

    csum: bool | None = attr("@csum", OnOff)
    gso: bool | None = attr("@gso", OnOff)
    tso4: bool | None = attr("@tso4", OnOff)
    tso6: bool | None = attr("@tso6", OnOff)
    ecn: bool | None = attr("@ecn", OnOff)
    ufo: bool | None = attr("@ufo", OnOff)
    mrg_rxbuf: bool | None = attr("@mrg_rxbuf", OnOff)

    def properties(self) -> Iterator[tuple[str, bool | None]]:
        """By QEMU's names."""
        yield from (("csum", self.csum), ("gso", self.gso), ("host_tso4", self.tso4))
        yield from (("host_tso6", self.tso6), ("host_ecn", self.ecn), ("host_ufo", self.ufo))
        yield "mrg_rxbuf", self.mrg_rxbuf


@mapped
class GuestOffloads(Element):
    """``<guest>``: what the guest takes unfinished of what it receives."""

    csum: bool | None = attr("@csum", OnOff)
    tso4: bool | None = attr("@tso4", OnOff)
    tso6: bool | None = attr("@tso6", OnOff)
    ecn: bool | None = attr("@ecn", OnOff)
    ufo: bool | None = attr("@ufo", OnOff)

    def properties(self) -> Iterator[tuple[str, bool | None]]:
        """By QEMU's names."""
        yield from (("guest_csum", self.csum), ("guest_tso4", self.tso4))
        yield from (("guest_tso6", self.tso6), ("guest_ecn", self.ecn), ("guest_ufo", self.ufo))


@mapped
class NicDriver(Element):
    """``<driver>``.

    :param name: None: vhost where the guest runs under KVM and the host has it, else QEMU.
    :param queues: pairs of a queue each way; each is an fd of its own.
    :param tx_queue_size: QEMU has 256 for a TAP whatever is written.
    """

    name: NicBackend | None = attr("@name", Choice(NicBackend))
    txmode: TxMode | None = attr("@txmode", Choice(TxMode))
    ioeventfd: bool | None = attr("@ioeventfd", OnOff)
    event_idx: bool | None = attr("@event_idx", OnOff)
    queues: int | None = attr("@queues", Integer(1, MAX_QUEUES))
    rx_queue_size: int | None = attr("@rx_queue_size", _RingSize)
    tx_queue_size: int | None = attr("@tx_queue_size", _RingSize)
    host: HostOffloads | None = child("host", HostOffloads)
    guest: GuestOffloads | None = child("guest", GuestOffloads)

    @property
    def is_of_a_card(self) -> bool:
        """Whether it says what only an emulated card has."""
        said = any(value is not None for value in self.properties().values())
        return said or self.name not in (None, NicBackend.VFIO)

    def properties(self) -> dict[str, object]:
        """Those of ``virtio-net-pci``, by QEMU's names and in libvirt's order; without the queues,
        which the wiring has."""
        tx = {None: None, TxMode.IOTHREAD: "bh", TxMode.TIMER: "timer"}[self.txmode]
        host = self.host.properties() if self.host is not None else ()
        guest = self.guest.properties() if self.guest is not None else ()
        return {
            "tx": tx,
            "ioeventfd": self.ioeventfd,
            "event_idx": self.event_idx,
            **dict(host),
            **dict(guest),
            "rx_queue_size": self.rx_queue_size,
            "tx_queue_size": self.tx_queue_size,
        }

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The elements below ``<devices>``, one class each.

A None is the document's silence; what QEMU then gets is decided where its command line is built, by
libvirt's defaults. Names, units and meanings are those of libvirt's formatdomain.rst.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from sessionvirt.xmlmap import Element, attr, child, children, flag, kept, mapped
from sessionvirt.xmlvalues import Choice, Converter, Integer, OnOff, Pattern, Text, YesNo

_SERIAL: Final = Pattern(
    r"[A-Za-z0-9_.+ -]{1,20}", "letters, digits, blanks and _ . + -, at most 20"
)
#: A place in the boot order.
ORDER: Final = Integer(1, 1 << 30)


def _hexadecimal(text: str) -> int:
    """PCI addresses are written in C's notation: 0x1f, or 31."""
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,8}|0|[1-9][0-9]{0,8}", text):
        raise ValueError(f"{text[:20]!a} is not a number")
    return int(text, 0)


def _byte(text: str) -> int:
    number = _hexadecimal(text)
    if number > 0xFF:
        raise ValueError(f"{number:#x} is out of range")
    return number


#: A part of a PCI address; what of it there can be is checked where it is used.
HEX: Final = Converter(_hexadecimal, hex, "a number such as 0x03")
_BYTE: Final = Converter(_byte, hex, "a number from 0x00 to 0xff")


class DiskType(StrEnum):
    FILE = "file"


class DiskDevice(StrEnum):
    DISK = "disk"
    CDROM = "cdrom"


class DiskBus(StrEnum):
    VIRTIO = "virtio"
    SATA = "sata"


class DiskFormat(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


class Cache(StrEnum):
    DEFAULT = "default"
    NONE = "none"
    WRITETHROUGH = "writethrough"
    WRITEBACK = "writeback"
    DIRECTSYNC = "directsync"
    UNSAFE = "unsafe"


class DiskIo(StrEnum):
    NATIVE = "native"
    THREADS = "threads"
    IO_URING = "io_uring"


class Discard(StrEnum):
    UNMAP = "unmap"
    IGNORE = "ignore"


class CharType(StrEnum):
    PTY = "pty"
    STDIO = "stdio"
    FILE = "file"


class ConsoleTarget(StrEnum):
    SERIAL = "serial"
    VIRTIO = "virtio"


class BalloonModel(StrEnum):
    VIRTIO = "virtio"
    NONE = "none"


class VideoModel(StrEnum):
    VGA = "vga"
    VIRTIO = "virtio"
    NONE = "none"


class InputType(StrEnum):
    TABLET = "tablet"
    MOUSE = "mouse"
    KEYBOARD = "keyboard"


class InputBus(StrEnum):
    USB = "usb"
    VIRTIO = "virtio"
    PS2 = "ps2"


class ControllerType(StrEnum):
    USB = "usb"
    PCI = "pci"
    SATA = "sata"
    VIRTIO_SERIAL = "virtio-serial"


class ControllerModel(StrEnum):
    QEMU_XHCI = "qemu-xhci"
    NONE = "none"
    PCI_ROOT = "pci-root"
    PCIE_ROOT = "pcie-root"
    PCIE_ROOT_PORT = "pcie-root-port"


@mapped
class PciPlace(Element):
    """``<address type='pci'>``: where the guest finds the device; bus is a controller's index."""

    type: str = attr("@type", Text, default="pci", always=True)
    domain: int = attr("@domain", HEX, default=0)
    bus: int = attr("@bus", HEX, default=0)
    slot: int = attr("@slot", HEX, default=0)
    function: int = attr("@function", HEX, default=0)
    multifunction: bool | None = attr("@multifunction", OnOff)


@mapped
class Device(Element):
    """What every device may have."""

    alias: None = kept("alias")
    address: PciPlace | None = child("address", PciPlace, only={"type": {"pci"}})


@mapped
class Disk(Device):
    """``<disk>``. A cdrom may be without a source: an empty drive."""

    type: DiskType = attr("@type", Choice(DiskType), default=DiskType.FILE, always=True)
    device: DiskDevice = attr("@device", Choice(DiskDevice), default=DiskDevice.DISK, always=True)
    driver: str | None = attr("driver/@name", Pattern("qemu", "'qemu'"))
    format: DiskFormat = attr(
        "driver/@type", Choice(DiskFormat), default=DiskFormat.RAW, always=True
    )
    cache: Cache = attr("driver/@cache", Choice(Cache), default=Cache.DEFAULT)
    io: DiskIo | None = attr("driver/@io", Choice(DiskIo))
    discard: Discard | None = attr("driver/@discard", Choice(Discard))
    file: str | None = attr("source/@file", Text)
    target: str = attr(
        "target/@dev", Pattern(r"(vd|sd|hd)[a-z]{1,2}", "vda, sda, ..."), required=True
    )
    bus: DiskBus | None = attr("target/@bus", Choice(DiskBus))
    readonly: bool = flag("readonly")
    shareable: bool = flag("shareable")
    boot_order: int | None = attr("boot/@order", ORDER)
    serial: str | None = attr("serial", _SERIAL)

    @property
    def effective_bus(self) -> DiskBus:
        """By the target's name where the document is silent. libvirt would take SCSI for ``sd``;
        both machine types here have SATA, and the guest names the disk sd either way."""
        if self.bus is not None:
            return self.bus
        return DiskBus.VIRTIO if self.target.startswith("vd") else DiskBus.SATA

    @property
    def index(self) -> int:
        """0 for vda, 25 for vdz, 26 for vdaa."""
        number = 0
        for letter in self.target[2:]:
            number = number * 26 + ord(letter) - ord("a") + 1
        return number - 1


@mapped
class Serial(Device):
    """``<serial>``: an ISA serial port."""

    type: CharType = attr("@type", Choice(CharType), required=True)
    path: str | None = attr("source/@path", Text)
    append: bool | None = attr("source/@append", OnOff)
    port: int | None = attr("target/@port", Integer(0, 3))
    target: str | None = attr("target/@type", Pattern("isa-serial", "'isa-serial'"))
    target_model: str | None = attr("target/model/@name", Pattern("isa-serial", "'isa-serial'"))


@mapped
class Console(Device):
    """``<console>``. The first with a serial target is the first serial port by another name."""

    type: CharType = attr("@type", Choice(CharType), required=True)
    path: str | None = attr("source/@path", Text)
    append: bool | None = attr("source/@append", OnOff)
    target: ConsoleTarget = attr(
        "target/@type", Choice(ConsoleTarget), default=ConsoleTarget.SERIAL
    )
    port: int | None = attr("target/@port", Integer(0, 255))


@mapped
class Rng(Device):
    """``<rng>``: random numbers of the host.

    :param rate_bytes: at most this many bytes each period.
    :param rate_period: milliseconds; 1000 where silent.
    """

    model: str = attr("@model", Pattern("virtio", "'virtio'"), default="virtio", always=True)
    backend: str = attr(
        "backend/@model", Pattern("random", "'random'"), default="random", always=True
    )
    path: str | None = attr(
        "backend", Pattern("/dev/(random|urandom|hwrng)", "'/dev/urandom' or '/dev/random'")
    )
    rate_bytes: int | None = attr("rate/@bytes", Integer(1, 1 << 31))
    rate_period: int | None = attr("rate/@period", Integer(1, 1 << 31))


@mapped
class Balloon(Device):
    """``<memballoon>``. Where a document has none, there is a virtio one, as in libvirt."""

    model: BalloonModel = attr("@model", Choice(BalloonModel), required=True)
    autodeflate: bool | None = attr("@autodeflate", OnOff)
    free_page_reporting: bool | None = attr("@freePageReporting", OnOff)


@mapped
class Listen(Element):
    """``<listen>`` inside ``<graphics>``."""

    type: str = attr("@type", Text, required=True)
    address: str | None = attr("@address", Text)
    socket: str | None = attr("@socket", Text)


@mapped
class Graphics(Element):
    """``<graphics type='vnc'>``.

    :param port: a TCP port, 5900 and up; -1: QEMU takes a free one.
    :param listen: an IP address; 127.0.0.1 where silent.
    :param socket: a Unix socket's path, instead of both.
    """

    type: str = attr("@type", Text, required=True)
    port: int | None = attr("@port", Integer(-1, 65535))
    autoport: bool | None = attr("@autoport", YesNo)
    listen: str | None = attr("@listen", Text)
    socket: str | None = attr("@socket", Text)
    listens: tuple[Listen, ...] = children(
        "listen", Listen, only={"type": {"address", "socket", "none"}}
    )


@mapped
class Video(Device):
    """``<video>``.

    :param vram: KiB.
    """

    model: VideoModel | None = attr("model/@type", Choice(VideoModel), lenient=True)
    vram: int | None = attr("model/@vram", Integer(1024, 1 << 20))
    heads: int | None = attr("model/@heads", Integer(1, 16))
    primary: bool | None = attr("model/@primary", YesNo)


@mapped
class Input(Device):
    """``<input>``. PS/2 keyboard and mouse are there whether named or not."""

    type: InputType = attr("@type", Choice(InputType), required=True)
    bus: InputBus = attr("@bus", Choice(InputBus), default=InputBus.USB)


@mapped
class Controller(Device):
    """``<controller>``. They come by themselves where needed; named ones fix addresses.

    :param ports: of a USB controller.
    """

    type: ControllerType = attr("@type", Choice(ControllerType), required=True)
    index: int | None = attr("@index", Integer(0, 255))
    model: ControllerModel | None = attr("@model", Choice(ControllerModel), lenient=True)
    ports: int | None = attr("@ports", Integer(1, 15))
    chassis: int | None = attr("target/@chassis", Integer(1, 255))
    port: int | None = attr("target/@port", _BYTE)
    hardware: None = kept("model")


#: For ``only=`` where the list of controllers is declared.
CONTROLLERS: Final = {"type": {member.value for member in ControllerType}}

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Display, inputs, USB, random numbers and balloon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sessionvirt.model.devices import (
    BalloonModel,
    ControllerModel,
    ControllerType,
    InputBus,
    InputType,
    Rng,
    VideoModel,
)

from .option import joined, structured

if TYPE_CHECKING:
    from sessionvirt.model.devices import Graphics
    from sessionvirt.xmltree import Location

    from .board import Board

__all__ = ["balloon_arguments", "display_arguments", "input_arguments", "rng_arguments"]

_USB: Final = "usb0"
_FIRST_PORT: Final = 5900
#: With a port that QEMU chooses, how many it may try.
_TRIES: Final = 1000
_INPUT: Final = {
    (InputBus.USB, InputType.TABLET): "usb-tablet",
    (InputBus.USB, InputType.MOUSE): "usb-mouse",
    (InputBus.USB, InputType.KEYBOARD): "usb-kbd",
    (InputBus.VIRTIO, InputType.TABLET): "virtio-tablet-pci",
    (InputBus.VIRTIO, InputType.MOUSE): "virtio-mouse-pci",
    (InputBus.VIRTIO, InputType.KEYBOARD): "virtio-keyboard-pci",
}


def display_arguments(board: Board) -> list[str]:
    """VNC, and the display adapter: VGA where graphics are there and none is named."""
    arguments = ["-display", "none"]
    graphics, video = board.domain.graphics, board.domain.video
    if graphics is not None:
        arguments += ["-vnc", _vnc(graphics)]
    if video is None and graphics is None:
        return arguments
    model = video.model if video is not None else None
    if model is VideoModel.NONE:
        return arguments
    where = video.where if video is not None else board.domain.at("devices/graphics")
    properties = board.pci.place_display(video)
    if model is VideoModel.VIRTIO:
        properties["max_outputs"] = video.heads if video is not None else None
        return arguments + board.device("virtio-vga", "video0", where, properties)
    if video is not None and video.vram is not None:
        properties["vgamem_mb"] = _power_of_two(video.vram // 1024)
    return arguments + board.device("VGA", "video0", where, properties)


def _power_of_two(number: int) -> int:
    """The next one up: what VGA memory can be."""
    return 1 << max(number - 1, 0).bit_length()


def _vnc(graphics: Graphics) -> str:
    socket = graphics.socket
    address = graphics.listen
    for listen in graphics.listens:
        socket = socket or listen.socket
        address = address or listen.address
    if socket is not None:
        return joined("unix:" + socket.replace(",", ",,"))
    host = address or "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    if graphics.autoport or graphics.port in (None, -1):
        return joined(f"{host}:0", to=_TRIES)
    assert graphics.port is not None
    return joined(f"{host}:{graphics.port - _FIRST_PORT}")


def input_arguments(board: Board) -> list[str]:
    """Tablets, mice, keyboards, and the USB controller where one is named or needed."""
    inputs = [device for device in board.domain.inputs if device.bus is not InputBus.PS2]
    controller = board.controller(ControllerType.USB)
    on_usb = [device for device in inputs if device.bus is InputBus.USB]
    off = controller is not None and controller.model is ControllerModel.NONE
    if off and on_usb:
        on_usb[0].where.refuse(
            "there is no USB controller", "Write bus='virtio', or leave out model='none'."
        )
    arguments: list[str] = []
    if (controller is not None or on_usb) and not off:
        where = (controller or on_usb[0]).where
        ports = controller.ports if controller is not None else None
        properties = board.pci.place(controller) | {"p2": ports, "p3": ports}
        arguments += board.device("qemu-xhci", _USB, where, properties)
    for index, device in enumerate(inputs):
        usb = device.bus is InputBus.USB
        place = {"bus": f"{_USB}.0"} if usb else board.pci.place(device)
        driver = _INPUT[device.bus, device.type]
        arguments += board.device(driver, f"input{index}", device.where, place)
    return arguments


def rng_arguments(board: Board) -> list[str]:
    """Sources of random numbers, each with its object."""
    arguments: list[str] = []
    for index, rng in enumerate(board.domain.rngs):
        source = f"random{index}"
        board.require("object", "rng-random", board.capabilities.objects, rng.where)
        values = {"qom-type": "rng-random", "id": source, "filename": rng.path or "/dev/urandom"}
        arguments += ["-object", structured(values)]
        properties = {"rng": source} | _rate(rng) | board.pci.place(rng)
        arguments += board.device("virtio-rng-pci", f"rng{index}", rng.where, properties)
    return arguments


def _rate(rng: Rng) -> dict[str, object]:
    if rng.rate_bytes is None:
        return {}
    return {"max-bytes": rng.rate_bytes, "period": rng.rate_period or 1000}


def balloon_arguments(board: Board) -> list[str]:
    """The balloon; there without being named, as in libvirt."""
    balloon = board.domain.balloon
    if balloon is not None and balloon.model is BalloonModel.NONE:
        return []
    where: Location = board.domain.at("devices/memballoon")
    properties = board.pci.place(balloon)
    if balloon is not None:
        properties |= {
            "deflate-on-oom": balloon.autodeflate,
            "free-page-reporting": balloon.free_page_reporting,
        }
    return board.device("virtio-balloon-pci", "balloon0", where, properties)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interfaces: a ``-netdev`` on inherited descriptors, and a device each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sessionvirt.model.interface import NicModel

from .board import interface_id
from .command_hostdevs import rom_properties
from .option import structured
from .wiring import PasstWiring, TapWiring, UserWiring

if TYPE_CHECKING:
    from sessionvirt.model.interface import Interface

    from .board import Board
    from .wiring import InterfaceWiring

__all__ = ["interface_arguments"]

_DRIVER: Final = {
    NicModel.VIRTIO: "virtio-net-pci",
    NicModel.E1000: "e1000",
    NicModel.E1000E: "e1000e",
    NicModel.RTL8139: "rtl8139",
}
#: libvirt's order where the document names no model: by how many old guests have a driver.
_DEFAULTS: Final = (NicModel.RTL8139, NicModel.E1000, NicModel.VIRTIO)
_LEGACY: Final = (NicModel.RTL8139, NicModel.E1000)
_ETHERNET_MTU: Final = 1500


def interface_arguments(board: Board) -> list[str]:
    """Every emulated interface, in order.

    :raise ValueError: the wiring is not this domain's.
    """
    emulated = [pair for pair in enumerate(board.domain.interfaces) if not pair[1].is_hostdev]
    arguments: list[str] = []
    for (index, nic), wiring in zip(emulated, board.wiring.interfaces, strict=True):
        if nic.mac is not None and nic.mac != wiring.mac:
            raise ValueError(f"interface {index} is {nic.mac}, its wiring {wiring.mac}")
        model = _model(board, nic)
        arguments += _backend(board, nic, f"host{interface_id(index)}", wiring, model)
        arguments += _device(board, nic, index, wiring, model)
    return arguments


def _model(board: Board, nic: Interface) -> NicModel:
    if nic.model is not None:
        return nic.model
    present = (model for model in _DEFAULTS if _DRIVER[model] in board.capabilities.devices)
    return next(present, NicModel.VIRTIO)


def _backend(
    board: Board, nic: Interface, name: str, wiring: InterfaceWiring, model: NicModel
) -> list[str]:
    values: dict[str, object]
    match wiring:
        case TapWiring():
            # One queue has words of its own: with "fds" QEMU takes even one as multiqueue.
            single = len(wiring.fds) == 1
            values = {"type": "tap", "id": name, "fd" if single else "fds": _list(wiring.fds)}
            if wiring.vhost_fds and model is NicModel.VIRTIO:
                word = "vhostfd" if single else "vhostfds"
                values |= {"vhost": True, word: _list(wiring.vhost_fds)}
        case PasstWiring():
            address = {"type": "fd", "str": str(wiring.fd)}
            values = {"type": "stream", "id": name, "server": False, "addr": address}
        case UserWiring():
            values = {"type": "user", "id": name}
    board.require("network backend", str(values["type"]), board.capabilities.netdevs, nic.where)
    return ["-netdev", structured(values)]


def _list(fds: tuple[int, ...]) -> str:
    return ":".join(str(fd) for fd in fds)


def _device(
    board: Board, nic: Interface, index: int, wiring: InterfaceWiring, model: NicModel
) -> list[str]:
    name = interface_id(index)
    properties: dict[str, object] = {"netdev": f"host{name}", "mac": wiring.mac}
    if model is NicModel.VIRTIO:
        properties["host_mtu"] = _mtu(nic, wiring)
        if isinstance(wiring, TapWiring) and len(wiring.fds) > 1:
            # A vector for each direction of each queue, one for control, one for changes.
            properties |= {"mq": True, "vectors": 2 * len(wiring.fds) + 2}
    properties |= rom_properties(nic)
    place = board.pci.place(nic, legacy=model in _LEGACY)
    return board.device(_DRIVER[model], name, nic.where, properties | place)


def _mtu(nic: Interface, wiring: InterfaceWiring) -> int | None:
    """What the guest is told; None: nothing, which means 1500."""
    offered = wiring.mtu if isinstance(wiring, TapWiring) else None
    if nic.mtu is not None and offered is not None and nic.mtu > offered:
        nic.at("mtu/@size").refuse(
            f"the network carries {offered} bytes, not {nic.mtu}",
            f"Write at most {offered}, or leave <mtu> out.",
        )
    mtu = nic.mtu if nic.mtu is not None else offered
    return mtu if mtu != _ETHERNET_MTU else None

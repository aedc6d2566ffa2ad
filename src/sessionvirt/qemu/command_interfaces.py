# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interfaces: a ``-netdev`` on inherited descriptors, and a device each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sessionvirt.model.interface import NicModel

from .board import interface_id
from .command_hostdevs import rom_properties
from .option import structured
from .wiring import PasstWiring, TapWiring, UserWiring

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sessionvirt.model.interface import Interface
    from sessionvirt.model.portforward import Ports

    from .board import Board
    from .pci import Place
    from .wiring import InterfaceWiring

__all__ = ["Plug", "backend_id", "interface_arguments", "interface_plug", "plug_model"]

_DRIVER: Final = {
    NicModel.VIRTIO: "virtio-net-pci",
    NicModel.E1000: "e1000",
    NicModel.E1000E: "e1000e",
    NicModel.RTL8139: "rtl8139",
}
#: libvirt's order where the document names no model: by how many old guests have a driver.
_DEFAULTS: Final = (NicModel.RTL8139, NicModel.E1000, NicModel.VIRTIO)
_EXPRESS: Final = (NicModel.E1000E, NicModel.VIRTIO)
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
        model, name = _model(board, nic), interface_id(index)
        backend = _backend(name, wiring, model)
        kind = str(backend["type"])
        board.require("network backend", kind, board.capabilities.netdevs, nic.where)
        properties = _properties(nic, name, wiring, model)
        place = board.pci.place(nic, legacy=model in _LEGACY)
        device = board.device(_DRIVER[model], name, nic.where, properties | place)
        arguments += ["-netdev", structured(backend), *device]
    return arguments


@dataclass(frozen=True)
class Plug:
    """An interface that comes while the machine runs.

    :param backend: the arguments of ``netdev_add``.
    :param device: of ``device_add``, after it.
    """

    backend: Mapping[str, object]
    device: Mapping[str, object]


def plug_model(nic: Interface, place: Place, drivers: frozenset[str]) -> NicModel:
    """The model of one that comes while the machine runs.

    At a root port of q35 there is no conventional PCI, so where the document names none, it is
    libvirt's order without that.

    :param drivers: what the QEMU that runs has.
    :raise DefinitionError: it cannot come there, or QEMU has it not.
    """
    at_port = place.number > 0
    if at_port and nic.model in _LEGACY:
        nic.at("model/@type").refuse(
            f"an {nic.model} is conventional PCI, and a root port takes none",
            "Write <model type='e1000e'/> or <model type='virtio'/>.",
        )
    order = _EXPRESS if at_port else _DEFAULTS
    model = nic.model or next((one for one in order if _DRIVER[one] in drivers), NicModel.VIRTIO)
    if _DRIVER[model] not in drivers:
        nic.where.refuse(
            f"the QEMU that runs has no device '{_DRIVER[model]}'",
            "Write another model, or install a QEMU that has it and start anew.",
        )
    return model


def interface_plug(
    nic: Interface,
    name: str,
    wiring: InterfaceWiring,
    model: NicModel,
    place: Place,
    given: Mapping[int, str],
) -> Plug:
    """The commands for one that comes while the machine runs.

    :param given: by which name QEMU was given each descriptor of the wiring.
    :raise DefinitionError: the network does not carry what it asks for.
    """
    device = {
        "driver": _DRIVER[model],
        "id": name,
        "bootindex": nic.boot_order,
        **_properties(nic, name, wiring, model),
        "bus": place.bus,
        "addr": place.addr,
    }
    present = {key: value for key, value in device.items() if value is not None}
    return Plug(_backend(name, wiring, model, given), present)


def backend_id(name: str) -> str:
    """The ``-netdev`` id of the interface with this ``-device`` id."""
    return f"host{name}"


def _model(board: Board, nic: Interface) -> NicModel:
    if nic.model is not None:
        return nic.model
    present = (model for model in _DEFAULTS if _DRIVER[model] in board.capabilities.devices)
    return next(present, NicModel.VIRTIO)


def _backend(
    name: str,
    wiring: InterfaceWiring,
    model: NicModel,
    given: Mapping[int, str] | None = None,
) -> dict[str, object]:
    def words(*fds: int) -> str:
        return ":".join(str(fd) if given is None else given[fd] for fd in fds)

    values: dict[str, object] = {"type": "tap", "id": backend_id(name)}
    match wiring:
        case TapWiring():
            # One queue has words of its own: with "fds" QEMU takes even one as multiqueue.
            single = len(wiring.fds) == 1
            values["fd" if single else "fds"] = words(*wiring.fds)
            if wiring.vhost_fds and model is NicModel.VIRTIO:
                word = "vhostfd" if single else "vhostfds"
                values |= {"vhost": True, word: words(*wiring.vhost_fds)}
        case PasstWiring():
            address = {"type": "fd", "str": words(wiring.fd)}
            values |= {"type": "stream", "server": False, "addr": address}
        case UserWiring():
            values["type"] = "user"
            if wiring.ports:
                values["hostfwd"] = [{"str": rule} for rule in _slirp(wiring.ports)]
    return values


def _slirp(ports: Iterable[Ports]) -> Iterator[str]:
    """slirp knows no rows of ports."""
    for one in ports:
        for number in range(one.count):
            host, guest = one.host + number, one.guest + number
            yield f"{one.protocol}:{one.address or ''}:{host}-:{guest}"


def _properties(
    nic: Interface, name: str, wiring: InterfaceWiring, model: NicModel
) -> dict[str, object]:
    properties: dict[str, object] = {"netdev": backend_id(name), "mac": wiring.mac}
    mtu = _mtu(nic, wiring)
    if model is NicModel.VIRTIO:
        properties["host_mtu"] = mtu
        if isinstance(wiring, TapWiring) and len(wiring.fds) > 1:
            # A vector for each direction of each queue, one for control, one for changes.
            properties |= {"mq": True, "vectors": 2 * len(wiring.fds) + 2}
        if nic.driver is not None:
            properties |= nic.driver.properties()
    return properties | rom_properties(nic)


def _mtu(nic: Interface, wiring: InterfaceWiring) -> int | None:
    """What the guest is told, if it can be; None: nothing, which means 1500."""
    offered = wiring.mtu if isinstance(wiring, TapWiring) else None
    if nic.mtu is not None and offered is not None and nic.mtu > offered:
        nic.at("mtu/@size").refuse(
            f"the network carries {offered} bytes, not {nic.mtu}",
            f"Write at most {offered}, or leave <mtu> out.",
        )
    mtu = nic.mtu if nic.mtu is not None else offered
    return mtu if mtu != _ETHERNET_MTU else None

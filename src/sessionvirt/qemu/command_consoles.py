# SPDX-License-Identifier: LGPL-2.1-or-later
"""Serial ports and virtio consoles, and which of them is *the* console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sessionvirt.model.check import extra_consoles
from sessionvirt.model.devices import CharType, ConsoleTarget, ControllerType

from .option import joined

if TYPE_CHECKING:
    from sessionvirt.model.devices import Console, Serial
    from sessionvirt.model.domain import Domain

    from .board import Board

__all__ = ["character_device", "console_arguments", "main_console"]

_CONTROLLER: Final = "virtio-serial0"


def character_device(name: str) -> str:
    """The ``-chardev`` id behind a serial port or console; its label in QMP's query-chardev."""
    return f"char-{name}"


def main_console(domain: Domain) -> tuple[str, CharType] | None:
    """The character device that a person means by "the console", and what it is on the host.

    The first ``<console>``; without one the first serial port; without either None.
    """
    ports = _ports(domain)
    if not ports:
        return None
    first = domain.consoles[0] if domain.consoles else None
    virtio = first is not None and first.target is ConsoleTarget.VIRTIO
    name, port = next(p for p in ports if p[0] == "console0") if virtio else ports[0]
    return character_device(name), port.type


def _ports(domain: Domain) -> list[tuple[str, Serial | Console]]:
    """Names and elements: ``serialN`` are ISA ports, ``consoleN`` virtio ones."""
    ports: list[tuple[str, Serial | Console]] = []
    taken = {serial.port for serial in domain.serials}
    free = iter(number for number in range(256) if number not in taken)
    for serial in domain.serials:
        number = serial.port if serial.port is not None else next(free)
        ports.append((f"serial{number}", serial))
    virtio = 0
    for console in extra_consoles(domain):
        if console.target is ConsoleTarget.SERIAL:
            ports.append(("serial0", console))
        else:
            ports.append((f"console{virtio}", console))
            virtio += 1
    return ports


def console_arguments(board: Board) -> list[str]:
    """Character devices, each before its guest side."""
    ports = _ports(board.domain)
    arguments: list[str] = []
    first = next((port for name, port in ports if name.startswith("console")), None)
    if first is not None:
        place = board.pci.place(board.controller(ControllerType.VIRTIO_SERIAL))
        arguments += board.device("virtio-serial-pci", _CONTROLLER, first.where, place)
    for name, port in ports:
        backend = character_device(name)
        arguments += ["-chardev", _backend(backend, port)]
        properties: dict[str, object] = {"chardev": backend}
        if name.startswith("serial"):
            properties["index"] = int(name.removeprefix("serial"))
            arguments += board.device("isa-serial", name, port.where, properties)
        else:
            properties["bus"] = f"{_CONTROLLER}.0"
            arguments += board.device("virtconsole", name, port.where, properties)
    return arguments


def _backend(name: str, port: Serial | Console) -> str:
    match port.type:
        case CharType.PTY:
            return joined("pty", id=name)
        case CharType.STDIO:
            # signal=off: ^C is a character for the guest, not the end of QEMU.
            return joined("stdio", id=name, signal=False)
        case CharType.FILE:
            return joined("file", id=name, path=port.path, append=bool(port.append))

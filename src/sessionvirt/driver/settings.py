# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a machine is run: what its user may choose, and what follows for its definition."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sessionvirt.model.devices import CharType, ConsoleTarget
from sessionvirt.model.domain import DomainType
from sessionvirt.model.filter import NO_FILTER, GuestFilter
from sessionvirt.qemu.wiring import Accelerator

if TYPE_CHECKING:
    from sessionvirt.host.kvm import Kvm
    from sessionvirt.model.domain import Domain

__all__ = ["Settings", "choose_accelerator", "on_stdio"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a machine is run; what of it is not in the definition.

    :param binary: QEMU; by default the definition's, or the one for its architecture.
    :param accelerator: by default KVM where guests really run under it.
    :param interactive: the broker may show a prompt.
    :param bus_address: of the system bus; by default the usual one.
    :param pci_with_group: with each device of the host, all others of its isolation group may go
        along; without it only those that the definition has, too.
    :param bound: QEMU dies with this process.
    :param own_group: QEMU is no member of our process group, so that a terminal's ^C is ours alone.
    :param console: a stream socket's descriptor that becomes the first console of type ``pty`` (and
        stdin and stdout of QEMU); it stays the caller's. By default QEMU makes pseudo terminals.
    :param lists: what the guest may not send and receive, by each interface that is the broker's;
        beside what a ``<filterref>`` forbids.
    """

    binary: str | None = None
    accelerator: Accelerator | None = None
    interactive: bool = True
    bus_address: str | None = None
    pci_with_group: bool = False
    bound: bool = True
    own_group: bool = False
    console: int | None = None
    lists: GuestFilter = NO_FILTER


def choose_accelerator(domain: Domain) -> tuple[Accelerator, Kvm | None]:
    """Decide what runs the guest: KVM where the definition wants it and it works.

    :return: and what was found out about KVM; None where nobody asked.
    """
    if domain.type is DomainType.QEMU:
        return Accelerator.TCG, None
    from sessionvirt.host.kvm import probe

    found = probe()
    return (Accelerator.KVM if found.usable else Accelerator.TCG), found


def on_stdio(domain: Domain) -> Domain:
    """Return the domain with its first console of type ``pty`` on QEMU's stdin and stdout instead.

    A serial port and the console that is its other name change together. Reading a pseudo terminal
    would lose what a guest says last: its buffer is gone when QEMU is.
    """
    serials, consoles = list(domain.serials), list(domain.consoles)
    first_is_serial = bool(consoles) and consoles[0].target is ConsoleTarget.SERIAL
    if serials:
        if serials[0].type is not CharType.PTY:
            return domain
        serials[0] = dataclasses.replace(serials[0], type=CharType.STDIO)
        if first_is_serial:
            consoles[0] = dataclasses.replace(consoles[0], type=CharType.STDIO)
    elif consoles and consoles[0].type is CharType.PTY:
        consoles[0] = dataclasses.replace(consoles[0], type=CharType.STDIO)
    return dataclasses.replace(domain, serials=tuple(serials), consoles=tuple(consoles))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The MAC address and the VLAN of a virtual function (SR-IOV), which its card's driver enforces.

They are set by rtnetlink through the interface of the physical function, the card, as ``ip link set
CARD vf N`` does; who has the function cannot change them. That is all there is between a guest and
the wire: no frame of it passes the host's filter. So with an address the card checks what is sent
(spoof check), and the function is not trusted to take another.

The order is libvirt's (virHostdevPreparePCIDevices() and virHostdevReAttachPCIDevices()) but for
one thing: set before the function leaves its driver, so that what a card cannot do costs nothing.
Put back when nobody has it open any more and before its driver finds it, which then comes up with
the address that it had. While the card's own interface is down its functions have no link, and it
is not ours to set up: that is refused. A card that is not ready for so long is asked again by the
clock, when its driver has the function already.

What this cannot put back: whether a function *had to* keep its address. The kernel tells the
address and not who chose it, so that a driver that drew one by lot has the same for good then,
until the card makes its functions anew.

A driver that takes a setting and does nothing is found out by reading back. Two functions of a card
do not get one address; that two cards are on one wire is not known here.
"""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from . import sysfs
from .addresses import DERIVED_PREFIX
from .errors import Busy, HostFailure, InvalidRequest, NotSupported, StateChanged
from .pci import PciBus
from .steps import Step
from .wire import mac

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from .host import Host
    from .netlink import Card, VirtualFunction
    from .pci import Function
    from .wire import Fields

__all__ = ["SetFunction", "VirtualFunctions", "Wanted"]

log = logging.getLogger(__name__)

#: The greatest VLAN (IEEE 802.1Q; VLAN_VID_MASK means none).
_VLANS = 4094
_8021Q = 0x8100
_IFF_UP = 1
#: A function that is being reset says so, and is ready soon: i40e by EAGAIN, ice by EBUSY.
_RESETS = frozenset({errno.EAGAIN, errno.EBUSY})
_PATIENCE_SECONDS = 2.0
_LOOK_AGAIN_SECONDS = 0.05

_WORDS = {
    "mac": "the MAC address",
    "vlan": "the VLAN",
    "spoofchk": "the spoof check",
    "trust": "the trust",
}

#: One thing to set, by the kernel's word; a VLAN with its priority.
Setting = tuple[str, str | int | tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request says of a function's network; empty and 0: it stays as it is."""

    mac: str
    vlan: int

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """The optional fields ``mac`` and ``vlan``.

        :raise InvalidRequest: names the field.
        """
        address = mac(fields) or ""
        if address.startswith(DERIVED_PREFIX):
            raise InvalidRequest(
                f"{fields.where}.mac: {DERIVED_PREFIX} is for addresses that the broker derives"
            )
        return cls(address, fields.count("vlan", default=0, limit=_VLANS))

    def __bool__(self) -> bool:
        return bool(self.mac or self.vlan)

    @property
    def phrase(self) -> str:
        """For a prompt; it holds nothing but numbers."""
        if not self:
            return ""
        where = f"VLAN {self.vlan} of the local network" if self.vlan else "the local network"
        return f", as a host of its own on {where}" + (f" ({self.mac})" if self.mac else "")

    @property
    def details(self) -> tuple[tuple[str, str], ...]:
        """For polkit's rules."""
        return (("mac", self.mac), ("vlan", str(self.vlan or ""))) if self else ()


@dataclass(frozen=True, slots=True)
class SetFunction(Step):
    """The settings of one function; a ``former_`` value that is not set is what it had anyway."""

    NAME: ClassVar[str] = "vf-set"

    address: str
    group: str
    identity: str
    physical: str
    card: str
    number: int
    mac: str
    vlan: int
    former_mac: str
    former_vlan: int
    former_qos: int
    former_spoofchk: int
    former_trust: int

    def describe(self) -> str:
        words = [f"the MAC address {self.mac} (spoof check)"] if self.mac else []
        words += [f"VLAN {self.vlan}"] if self.vlan else []
        where = f"{self.address}, virtual function {self.number} of {self.physical}"
        return f"give {' and '.join(words)} to {where}"

    def describe_undo(self) -> str:
        words = [f"the MAC address {self.former_mac}"] if self.mac else []
        words += [f"VLAN {self.former_vlan}" if self.former_vlan else "no VLAN"] * bool(self.vlan)
        return f"give {' and '.join(words)} to {self.address} again"

    def _changes(self) -> Iterator[tuple[Setting, Setting]]:
        """What is set, and what it was."""
        if self.mac:
            yield ("mac", self.mac), ("mac", self.former_mac)
        if self.vlan:
            yield ("vlan", (self.vlan, 0)), ("vlan", (self.former_vlan, self.former_qos))
        if self.mac:
            yield ("spoofchk", 1), ("spoofchk", self.former_spoofchk)
            if self.former_trust == 1:
                yield ("trust", 0), ("trust", 1)

    def execute(self, host: Host) -> Self:
        # One that is VFIO's already (managed='no') may be in use by somebody else's guest, which
        # would be taken off its network.
        host.vfio.keep_out(self.group)
        port = _port(self.physical, self.address, host)
        if port.number != self.number or not all(port.has(was) for _, was in self._changes()):
            raise StateChanged(f"{self.address} has other network settings than it had; ask again")
        changes = [change for change, _ in self._changes()]
        for change in changes:
            try:
                port.set(change, host)
            except OSError as error:
                self._not_ready(error)
                why = f"the driver of {self.physical} does not set {_WORDS[change[0]]}"
                raise NotSupported(f"{why} of {self.address}: {error.strerror}") from error
        now = _port(self.physical, self.address, host)
        for change in changes:
            if not now.has(change):
                why = f"the driver of {self.physical} took {_WORDS[change[0]]}"
                raise NotSupported(f"{why} of {self.address}, and did not set it")
        return self

    def undo(self, host: Host) -> None:
        vfio = host.vfio
        if not vfio.is_still(self.address, self.identity):
            return  # it went, as with its card; its settings are the card's
        vfio.keep_out(self.group)
        try:
            port = _port(self.physical, self.address, host)
        except NotSupported as error:
            # A class has a directory below the device for as long as the driver has made any, also
            # where they are in another network namespace.
            if (vfio.device(self.physical) / "net").is_dir():
                raise HostFailure(str(error)) from error
            log.warning("%s; what it was set to went with its driver", error)
            return
        formers = [former for _, former in self._changes() if not port.has(former)]
        for former in reversed(formers):
            try:
                port.set(former, host)
            except OSError as error:
                self._not_ready(error)
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                # It will not be taken later either: the device goes back without, and it is said.
        now = _port(self.physical, self.address, host) if formers else port
        for name, value in (former for former in formers if not now.has(former)):
            log.error("%s: %s cannot be put back to %s", self.address, _WORDS[name], value)

    def _not_ready(self, error: OSError) -> None:
        """:raise Busy: this was not refused, but too early."""
        if error.errno in _RESETS:
            raise Busy(f"{self.address} is being reset by its card") from error


@dataclass(frozen=True, slots=True)
class _Port:
    """A function as the interface of its card has it."""

    ifindex: int
    number: int
    card: Card
    is_up: bool

    @property
    def function(self) -> VirtualFunction:
        return self.card.functions[self.number]

    def has(self, setting: Setting) -> bool:
        name, value = setting
        now = self.function
        return value == ((now.vlan, now.qos) if name == "vlan" else getattr(now, name))

    def set(self, setting: Setting, host: Host) -> None:
        """:raise OSError: the driver refuses, also after a while."""
        name, value = setting
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                if isinstance(value, tuple):
                    host.links.set_function_vlan(self.ifindex, self.number, *value)
                else:
                    host.links.set_function(self.ifindex, self.number, name, value)
            except OSError as error:
                if error.errno not in _RESETS or time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_AGAIN_SECONDS)  # netlink tells nobody that it is ready
            else:
                return


def _port(physical: str, address: str, host: Host) -> _Port:
    """:raise NotSupported: no interface here is the one, or several could be."""
    found = PciBus(host.vfio.sys).function(physical)
    numbers = {} if found is None else _numbers(str(found.path))
    ports = []
    if found is not None and address in numbers:
        # Representors are below the card, too (switchdev); they have no functions.
        for name in sysfs.listed(f"{found.path}/net"):
            index = sysfs.text(f"{found.path}/net/{name}/ifindex")
            card = host.links.card(int(index)) if index.isdecimal() else None
            if card is not None and numbers[address] in card.functions:
                is_up = sysfs.number(f"{found.path}/net/{name}/flags") & _IFF_UP
                ports.append(_Port(int(index), numbers[address], card, bool(is_up)))
    if len(ports) != 1:
        fault = "several network interfaces" if ports else "no network interface here"
        raise NotSupported(
            f"the card {physical} of {address} has {fault} to set its MAC address and VLAN by"
        )
    return ports[0]


def _is_able(port: _Port, physical: str, address: str, wanted: Wanted) -> None:
    """:raise NotSupported: the card is not in a state to, or says too little."""
    now = port.function
    if not port.is_up:
        raise NotSupported(
            f"the network interface of {physical} is down, and so is {address}, a virtual function"
            " of it; an administrator can set it up"
        )
    if wanted.vlan and now.vlan and now.proto != _8021Q:
        raise NotSupported(f"{address} has a VLAN of 802.1ad, which could not be put back")
    if wanted.mac and now.spoofchk < 0:
        raise NotSupported(
            f"the driver of {physical} does not say whether it checks what {address} sends, so its"
            " MAC address would be a word only"
        )


def _numbers(path: str) -> dict[str, int]:
    """The virtual functions of a device: address to number."""
    names = [name for name in sysfs.listed(path) if name.startswith("virtfn")]
    found = {sysfs.link(path, name).rpartition("/")[2]: name[len("virtfn") :] for name in names}
    return {address: int(number) for address, number in found.items() if number.isdecimal()}


class VirtualFunctions:
    """Which function was given which address, and what would be set for a request.

    :param sys: /sys.
    """

    def __init__(self, sys: Path) -> None:
        self._bus = PciBus(sys)
        #: By function: its card and its address.
        self._macs: dict[str, tuple[str, str]] = {}

    def steps(
        self, function: Function, others: int, wanted: Wanted, host: Host
    ) -> tuple[SetFunction, ...]:
        """What would be done; nothing where nothing is wanted.

        :param others: how many endpoints its group has beside it.
        :raise NotSupported: the host cannot.
        :raise Busy: somebody else has the address.
        """
        if not wanted:
            return ()
        address = function.address
        physical = self._bus.function(function.physfn)
        if physical is None:
            raise NotSupported(f"{address} is no virtual function: it has no mac or vlan to set")
        if others:
            raise NotSupported(
                f"mac and vlan are for a virtual function that is alone in its group;"
                f" group {function.group} has {others} more beside {address}"
            )
        port = _port(physical.address, address, host)
        _is_able(port, physical.address, address, wanted)
        self._is_nobodys(wanted.mac, address, physical.address, port)
        now = port.function
        return (
            SetFunction(
                address=address,
                group=function.group,
                identity=function.identity,
                physical=physical.address,
                card=physical.identity,
                number=port.number,
                mac=wanted.mac,
                vlan=wanted.vlan,
                former_mac=now.mac,
                former_vlan=now.vlan,
                former_qos=now.qos,
                former_spoofchk=now.spoofchk,
                former_trust=now.trust,
            ),
        )

    def _is_nobodys(self, wanted: str, address: str, physical: str, port: _Port) -> None:
        functions = port.card.functions.items()
        taken = {port.card.mac, *(one.mac for number, one in functions if number != port.number)}
        # A guest that was trusted may show another address than the one that it was given.
        given = {
            mac for of, (card, mac) in self._macs.items() if card == physical and of != address
        }
        if wanted and wanted in taken | given:
            raise Busy(f"the MAC address {wanted} is in use on the card {physical}")

    def begun(self, steps: Sequence[Step]) -> None:
        """As of a kind."""
        for step in steps:
            if isinstance(step, SetFunction) and step.mac:
                self._macs[step.address] = (step.physical, step.mac)

    def ended(self, steps: Sequence[Step]) -> None:
        """Likewise."""
        for step in steps:
            if isinstance(step, SetFunction):
                self._macs.pop(step.address, None)

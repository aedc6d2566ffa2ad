# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices go to VFIO and come back: the steps.

An IOMMU group is taken as a whole, in this order::

    OverrideDriver   each endpoint: no other driver may take it from now on, also one that is loaded
                     later
    SetFunction      where a virtual function is to have a MAC address or a VLAN (``vf.py``)
    RebindDevice     each endpoint: away from its driver, bound to VFIO's, and seen to be
    GiveGroup        the group's node, for one uid; or
    KeepGroup        nobody's: each device goes as descriptors, which OpenDevice makes

and given back in reverse: all are away from VFIO before the first has its driver again. No undo
goes on before the group is closed (:meth:`.vfio.Vfio.keep_out`). AssignDevice tells which device of
the group it was that was asked for.

Nothing here asks whether a device may be given; ``hostdev.py`` does, before.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from . import acl
from .errors import Busy, HostFailure, StateChanged
from .patience import StuckError
from .steps import Step
from .vfio import DRIVER

if TYPE_CHECKING:
    from .host import Host

__all__ = [
    "AssignDevice", "GiveGroup", "KeepGroup", "OpenDevice", "OverrideDriver", "RebindDevice",
]  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OverrideDriver(Step):
    """No driver but VFIO's may take an endpoint; at the end its former one has it again."""

    NAME: ClassVar[str] = "vfio-override"

    address: str
    group: str
    identity: str
    driver: str
    former: str
    former_driver: str

    def describe(self) -> str:
        return f"let no driver but {self.driver} take {self.address} (driver_override)"

    def describe_undo(self) -> str:
        back = f", and give it back to {self.former_driver}" if self.former_driver else ""
        return f"set driver_override of {self.address} back to {self.former or 'nothing'}{back}"

    def execute(self, host: Host) -> Self:
        host.vfio.set_override(self.address, self.driver)
        return self

    def undo(self, host: Host) -> None:
        vfio = host.vfio
        if not vfio.is_still(self.address, self.identity):
            return  # pulled out; what came instead was never ours
        vfio.keep_out(self.group)
        if vfio.override(self.address) == self.driver:  # nobody has set another one meanwhile
            vfio.set_override(self.address, self.former)
        if self.former_driver and not vfio.driver(self.address):
            vfio.probe(self.address)
            if (now := vfio.driver(self.address)) != self.former_driver:
                had = f"{self.address} had {self.former_driver}"
                log.error("%s, has %s", had, now or "no driver")


@dataclass(frozen=True, slots=True)
class RebindDevice(Step):
    """An endpoint goes to VFIO's driver; verified, for a driver may refuse a device."""

    NAME: ClassVar[str] = "vfio-bind"

    address: str
    group: str
    identity: str
    driver: str
    former: str

    def describe(self) -> str:
        if self.former:
            return f"take {self.address} from {self.former} and bind it to {self.driver}"
        return f"bind {self.address}, which has no driver, to {self.driver}"

    def describe_undo(self) -> str:
        return f"take {self.address} from {self.driver}"

    def execute(self, host: Host) -> Self:
        vfio = host.vfio
        if vfio.driver(self.address) != self.former:
            raise StateChanged(f"{self.address} has another driver than it had; ask again")
        try:
            vfio.unbind(self.address)
        except StuckError as error:
            raise HostFailure(
                f"stuck: the driver {self.former} has not let go of {self.address};"
                " the host may need a reboot"
            ) from error
        vfio.probe(self.address)
        if vfio.driver(self.address) != self.driver:
            other = f", or ask for {DRIVER}" if self.driver != DRIVER else ""
            raise HostFailure(
                f"{self.driver} does not take {self.address}; see the kernel's log{other}"
            )
        return self

    def undo(self, host: Host) -> None:
        vfio = host.vfio
        if vfio.is_still(self.address, self.identity):
            vfio.keep_out(self.group)
            if vfio.driver(self.address) == self.driver:
                vfio.unbind(self.address)


@dataclass(frozen=True, slots=True)
class GiveGroup(Step):
    """The group's node, for one uid, by its access list."""

    NAME: ClassVar[str] = "vfio-give"

    group: str
    uid: int

    def describe(self) -> str:
        return f"let uid {self.uid} open /dev/vfio/{self.group}"

    def describe_undo(self) -> str:
        return "withdraw that, and wait until it is closed"

    def execute(self, host: Host) -> Self:
        host.vfio.wait_for_node(self.group)
        # Nobody may have it: not this uid by another way, nor a program of root's.
        host.vfio.keep_out(self.group)
        host.vfio.let_go()
        acl.allow(host.vfio.node(self.group), self.uid)
        return self

    def undo(self, host: Host) -> None:
        acl.withdraw(host.vfio.node(self.group), self.uid)
        host.vfio.keep_out(self.group)


@dataclass(frozen=True, slots=True)
class KeepGroup(Step):
    """A group of which devices are handed out as descriptors: nobody has it, before and after."""

    NAME: ClassVar[str] = "vfio-keep"

    group: str

    def describe(self) -> str:
        return f"see that nobody has /dev/vfio/{self.group} or a device of it open"

    def describe_undo(self) -> str:
        return "wait until everything of it is closed"

    def execute(self, host: Host) -> Self:
        host.vfio.wait_for_node(self.group)
        host.vfio.keep_out(self.group)
        host.vfio.let_go()
        return self

    def undo(self, host: Host) -> None:
        host.vfio.keep_out(self.group)


@dataclass(frozen=True, slots=True)
class OpenDevice(Step):
    """Two descriptors for the caller: an iommufd and the device; its group's node is nobody's."""

    NAME: ClassVar[str] = "vfio-open"

    address: str

    def describe(self) -> str:
        return f"open {self.address} in /dev/vfio/devices, and /dev/iommu, for the machine"

    def describe_undo(self) -> str:
        return "close them, where they were not handed over"

    def execute(self, host: Host) -> Self:
        if self.address in host.fds:
            raise Busy(f"{self.address} was asked for twice")
        # Theirs is the host, from the first on: what fails below closes them by the undo.
        descriptors = host.fds.setdefault(self.address, [])
        descriptors.append(host.vfio.open_iommufd())
        descriptors.append(host.vfio.open_device(self.address))
        return self

    def undo(self, host: Host) -> None:
        host.close_fds(self.address)


@dataclass(frozen=True, slots=True)
class AssignDevice(Step):
    """Which device it is that was asked for; what is done about it is its group's part."""

    NAME: ClassVar[str] = "pci-assign"

    address: str
    name: str
    group: str
    members: tuple[str, ...]
    identities: tuple[str, ...]
    driver: str
    former: str
    #: What ``vf.py`` has its card set; empty and 0: nothing.
    mac: str = ""
    vlan: int = 0

    def describe(self) -> str:
        return f"hand {self.address} ({self.name}) to the machine"

    def describe_undo(self) -> str:
        return "nothing: it ends with its group's part"

    def execute(self, host: Host) -> Self:
        return self

    def undo(self, host: Host) -> None:
        pass

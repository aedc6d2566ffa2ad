# SPDX-License-Identifier: LGPL-2.1-or-later
"""The resource kind ``pci``: a PCI device of the host, with all of its IOMMU group, through VFIO.

The group is the unit, because the IOMMU tells no more apart: who has one device of it can reach
the others by DMA. So every endpoint is looked at, and every one goes to VFIO or none; what is
critical for the host is refused whatever polkit or the caller says. Only root's broker.toml makes
exceptions.

A group is one lease's at a time, which may ask for its other devices later. What its members need
together is a shared part of the journal (``vfio-6``), so that two devices of a group that one
machine asks for are bound once, and go back with the last.

Each endpoint goes to the driver that the kernel has for its model, where there is one (a *variant*,
``variants.py``), and else to vfio-pci.

What is not decided here: whether anybody may have it (polkit), and what a guest does to a device
that it has had. Firmware that a guest wrote stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from .errors import (
    Busy,
    DeviceUnsafe,
    HostFailure,
    InvalidRequest,
    NotFound,
    NotSupported,
    Restarting,
    StateChanged,
)
from .hostuse import HostUse
from .kind import Offer, Owner, Plan, Request, Shared
from .limits import Share
from .pci import PciAddress, PciBus, is_address, isolation_faults
from .vf import SetFunction, VirtualFunctions, Wanted
from .vfio import DRIVER, is_vfio
from .vfiodrivers import is_driver_name, same
from .vfiosteps import (
    AssignDevice,
    GiveGroup,
    KeepGroup,
    OpenDevice,
    OverrideDriver,
    RebindDevice,
)
from .wire import shown, worded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .config import Configuration, PciPolicy
    from .host import Host
    from .kind import Adopted, Watched
    from .pci import Function
    from .pcinames import PciNames
    from .steps import Step
    from .vfiodrivers import Drivers
    from .wire import Fields

__all__ = ["SHARED_PREFIX", "PciKind"]

SHARED_PREFIX = "vfio-"
#: As /proc/devices has them: VFIO's groups, and its devices (CONFIG_VFIO_DEVICE_CDEV).
_GROUPS, _DEVICES = "vfio", "vfio-dev"
#: Of one device that is handed out as such: an iommufd and itself.
_FDS = 2
#: Addresses in one request.
_ALSO = 32
#: Names of others in a prompt; a group of forty would push the machine's name out of the window.
_NAMED = 4


@dataclass(frozen=True, slots=True)
class PciRequest(Request):
    """A validated ``pci``."""

    address: PciAddress
    with_group: bool
    also: frozenset[str]
    managed: bool
    fds: bool
    driver: str
    network: Wanted


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A device that can be given, with its group.

    :param drivers: the VFIO driver of each endpoint.
    :param held: the lease has the group already.
    """

    function: Function
    endpoints: tuple[Function, ...]
    overrides: tuple[str, ...]
    drivers: tuple[str, ...]
    held: bool

    @property
    def others(self) -> tuple[Function, ...]:
        """What goes along with it; what the lease has already does not."""
        if self.held:
            return ()
        return tuple(one for one in self.endpoints if one.address != self.function.address)

    @property
    def driver(self) -> str:
        return self.drivers[self.endpoints.index(self.function)]


class PciKind:
    """The kind, and which group is whose.

    :param sys: /sys.
    :param proc: /proc.
    :param replaceable: a service manager starts the next broker, which may open what modules that
        are loaded now bring along: systemd reads the names of character devices at the start.
    """

    name = "pci"
    fds_fact = "address"

    def __init__(
        self, sys: Path, proc: Path, names: PciNames, drivers: Drivers, *, replaceable: bool
    ) -> None:
        self._sys = sys
        self._proc = proc
        self._names = names
        self._drivers = drivers
        self._bus = PciBus(sys)
        self._functions = VirtualFunctions(sys)
        #: Which groups are somebody's, and whether as descriptors.
        self._held: dict[str, bool] = {}
        #: Which devices of theirs were asked for.
        self._given: set[str] = set()
        #: Which driver each device of those groups had.
        self._former: dict[str, str] = {}
        # The devices' name and /dev/iommu come with the groups' name: vfio needs iommufd.
        self._reachable = not replaceable or self._has(_GROUPS)

    def parse(self, fields: Fields, position: int, configuration: Configuration) -> PciRequest:
        address = fields.text("address")
        also = fields.texts("also", limit=_ALSO)
        if address is None or not is_address(address) or not all(map(is_address, also)):
            raise InvalidRequest(f"{fields.where}: address and also must look like 0000:03:00.0")
        request = PciRequest(
            position=position,
            address=PciAddress(address),
            with_group=fields.flag("with_group"),
            also=frozenset(also),
            managed=fields.flag("managed", default=True),
            fds=fields.flag("fds"),
            driver=fields.text("driver") or "",
            network=Wanted.read(fields),
        )
        if request.driver and not is_driver_name(request.driver):
            raise InvalidRequest(f"{fields.where}.driver: is no name of a driver")
        fields.finish()
        return request

    def is_ready(self, request: Request, host: Host) -> bool:
        ready = host.vfio.is_loaded() and self._reachable
        return ready and not self._to_load(cast("PciRequest", request), host)

    def prepare(self, request: Request, host: Host) -> None:
        if not host.vfio.is_loaded():
            host.vfio.load()
        for address, module in self._to_load(cast("PciRequest", request), host):
            host.vfio.load_variant(address, module)
        if not self._reachable:
            if not self._has(_GROUPS):
                raise NotSupported("this kernel's VFIO has no groups (CONFIG_VFIO_GROUP)")
            raise Restarting("the broker starts anew to reach VFIO devices; ask again")

    def survey(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Offer:
        pci = cast("PciRequest", request)
        found = self._candidate(pci, configuration.pci, owner, host)
        device, others = found.function, found.others
        names = self._names.names((device, *others[:_NAMED]))
        name = names[device.address]
        named = ", ".join(f"{names[one.address]} ({one.address})" for one in others[:_NAMED])
        if len(others) > _NAMED:
            named += f" and {len(others) - _NAMED} more"
        passed = self._passes(pci, host)
        plural = "device" if len(others) == 1 else "devices"
        along = f" and {len(others)} other {plural} of its isolation group: $(others)"
        settings = self._settings(found, pci, host)
        place = pci.network.phrase
        return Offer(
            # A rule that gives a function of a card has not said on which network, or as whom.
            action="pci-network" if pci.network else "pci-assign",
            sentence='Authentication is required to give "$(device)" ($(address))'
            + (along if others else "")
            + f' to the virtual machine "$(vm)"{place}.'
            " The host cannot use it until the machine ends.",
            details=(
                ("vm", shown(owner.vm)),
                ("uid", str(owner.uid)),
                ("address", device.address),
                ("device", worded(name)),
                ("ids", device.ids),
                ("group", device.group),
                ("members", " ".join(one.address for one in found.endpoints)),
                ("others", worded(named)),
                ("driver", found.driver),
                *pci.network.details,
            ),
            summary=f'the device "{worded(name)}" ({device.address}){place}'
            + (f" with {len(others)} other {plural}: {worded(named)}" if others else ""),
            share=Share(devices=1, fds=_FDS if passed else 0),
            facts=(
                passed,
                *((one.address, one.identity, one.driver) for one in found.endpoints),
                found.overrides,
                found.drivers,
                *((one.card, one.number) for one in settings),
            ),
            includes="pci-assign" if pci.network else "",
        )

    def plan(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Plan:
        pci = cast("PciRequest", request)
        found = self._candidate(pci, configuration.pci, owner, host)
        group, passed = found.function.group, self._passes(pci, host)
        settings = self._settings(found, pci, host)
        giving: Step = KeepGroup(group) if passed else GiveGroup(group, owner.uid)
        return Plan(
            shared=(
                Shared(
                    SHARED_PREFIX + group,
                    lambda: _group_steps(found, pci, settings, giving),
                    owner.uid,
                ),
            ),
            steps=(
                AssignDevice(
                    found.function.address,
                    self._names.name(found.function),
                    group,
                    tuple(one.address for one in found.endpoints),
                    tuple(one.identity for one in found.endpoints),
                    found.driver,
                    self._former.get(pci.address, found.function.driver),
                    pci.network.mac,
                    pci.network.vlan,
                ),
                *((OpenDevice(found.function.address),) if passed else ()),
            ),
        )

    def grant(self, steps: Sequence[Step]) -> dict[str, object]:
        given = _assigned(steps)
        if len(given.members) != len(given.identities) or given.address not in given.members:
            raise ValueError("a record that contradicts itself")
        return {
            "kind": self.name,
            "address": given.address,
            "name": given.name,
            "group": int(given.group),
            "members": given.members,
            "node": "" if _is_passed(steps) else f"/dev/vfio/{given.group}",
            "driver": given.driver,
            "former": given.former,
            "mac": given.mac,
            "vlan": given.vlan,
        }

    def share(self, steps: Sequence[Step]) -> Share:
        return Share(devices=1, fds=_FDS if _is_passed(steps) else 0)

    def watched(self, steps: Sequence[Step]) -> tuple[Watched, ...]:
        return _assigned(steps).members

    def begun(self, steps: Sequence[Step]) -> None:
        self._functions.begun(steps)
        for step in steps:
            if isinstance(step, GiveGroup | KeepGroup):
                self._held[step.group] = isinstance(step, KeepGroup)
            elif isinstance(step, RebindDevice):
                self._former[step.address] = step.former
            elif isinstance(step, AssignDevice):
                self._given.add(step.address)

    def ended(self, steps: Sequence[Step]) -> None:
        self._functions.ended(steps)
        for step in steps:
            if isinstance(step, GiveGroup | KeepGroup):
                self._held.pop(step.group, None)
            elif isinstance(step, RebindDevice):
                self._former.pop(step.address, None)
            elif isinstance(step, AssignDevice):
                self._given.discard(step.address)

    def adopt(self, steps: Sequence[Step], adopted: Adopted) -> None:
        self.begun(steps)

    def intact(self, steps: Sequence[Step], host: Host) -> str:
        given = _assigned(steps)
        for address, identity in zip(given.members, given.identities, strict=True):
            if _is_gone(address, identity, host):
                return f"{address} is gone"
            if not is_vfio(host.vfio.driver(address)):
                return f"{address} was taken from its VFIO driver"
        return ""

    def is_gone(self, steps: Sequence[Step], host: Host) -> bool:
        given = _assigned(steps)
        return _is_gone(given.address, given.identities[given.members.index(given.address)], host)

    # Section: whether it can be given

    def use(self, host: Host) -> HostUse:
        """What on the host uses which device, now."""
        links = host.links
        try:
            return HostUse.look(self._sys, self._proc, links.addresses(), links.default_routes())
        except (OSError, ValueError) as error:
            raise HostFailure("what the host uses its devices for cannot be found out") from error

    def faults(self) -> tuple[str, ...]:
        """Why no group of this host isolates."""
        return isolation_faults(self._sys, self._proc)

    def _candidate(
        self, pci: PciRequest, policy: PciPolicy, owner: Owner, host: Host
    ) -> _Candidate:
        """The device that a request names, with all of its group."""
        function = self._bus.function(pci.address)
        if function is None:
            raise NotFound(f"address: there is no PCI device {pci.address}")
        if not function.endpoint:
            raise NotSupported(f"{pci.address} is a bridge; what is behind it can be given")
        group = function.group
        if not group:
            raise NotSupported(
                f"no IOMMU isolates {pci.address}: it is off in the firmware or in the kernel"
            )
        mine = SHARED_PREFIX + group in owner.has
        if group in self._held and not mine:
            raise Busy(f"IOMMU group {group}, which {pci.address} belongs to, is in use")
        for fault in (*self._bus.group_faults(group), *self.faults()):
            if not policy.weak_isolation:
                raise DeviceUnsafe(f"{pci.address}: {fault}")
        if SHARED_PREFIX + group in host.stuck:
            raise Busy(
                f"IOMMU group {group}, which {pci.address} belongs to, is not given back yet"
            )
        members = self._bus.group(group)
        if len(members) != self._bus.group_size(group):
            raise StateChanged(f"IOMMU group {group} cannot be looked at whole; ask again")
        endpoints = tuple(one for one in members if one.endpoint)
        if function not in endpoints:
            raise StateChanged(f"{pci.address} left its IOMMU group a moment ago; ask again")
        if mine:
            return self._of_held(function, endpoints, pci, policy, host)
        self._may_go_along(pci, endpoints)
        use = self.use(host)
        for one in endpoints:
            self._is_free(one, pci, policy, use)
        drivers = tuple(self._driver(one, pci, host) for one in endpoints)
        overrides = self._overrides(endpoints, host, pci.managed)
        return _Candidate(function, endpoints, overrides, drivers, held=False)

    def _of_held(
        self,
        function: Function,
        endpoints: tuple[Function, ...],
        pci: PciRequest,
        policy: PciPolicy,
        host: Host,
    ) -> _Candidate:
        """A further device of a group that the lease has: bound already, and to be given as well.

        The others of the group went along with the first; this one is asked for by its own name.
        """
        address, group = function.address, function.group
        if address in self._given:
            raise Busy(f"the lease has {address} already")
        if address in policy.deny:
            raise DeviceUnsafe(f"{address}: broker.toml keeps it for the host")
        if self._held.get(group) is not self._passes(pci, host):
            raise InvalidRequest(f"fds: must be the same for every device of IOMMU group {group}")
        if not is_vfio(function.driver):
            raise StateChanged(f"{address} was taken from its VFIO driver; ask again")
        if pci.driver and not same(pci.driver, function.driver):
            raise InvalidRequest(
                f"driver: {address} went to {function.driver} with its IOMMU group {group}"
            )
        drivers = tuple(one.driver for one in endpoints)
        return _Candidate(function, endpoints, ("",) * len(endpoints), drivers, held=True)

    def _driver(self, one: Function, pci: PciRequest, host: Host) -> str:
        asked = pci.driver if one.address == pci.address else ""
        if not pci.managed:
            return self._drivers.bound(one, asked)
        return self._drivers.choose(one, asked, host.vfio, general=same(pci.driver, DRIVER))

    def _to_load(self, pci: PciRequest, host: Host) -> list[tuple[str, str]]:
        """The modules that its group wants, each with a device that it is for."""
        function = self._bus.function(pci.address)
        if function is None or not pci.managed or same(pci.driver, DRIVER):
            return []
        if function.group in self._held:
            return []
        members = (one for one in self._bus.group(function.group) if one.endpoint)
        return self._drivers.to_load(members, host.vfio)

    def _settings(self, found: _Candidate, pci: PciRequest, host: Host) -> tuple[SetFunction, ...]:
        if found.held and pci.network:  # its group's steps are done, without these
            raise Busy(f"{pci.address} is in use; its mac and vlan are set when it is given")
        return self._functions.steps(found.function, len(found.endpoints) - 1, pci.network, host)

    def _may_go_along(self, pci: PciRequest, endpoints: Sequence[Function]) -> None:
        unasked = {one.address for one in endpoints} - {pci.address} - pci.also
        if unasked and not pci.with_group:
            raise DeviceUnsafe(
                f"{pci.address} cannot be given alone: IOMMU group {endpoints[0].group} also has"
                f" {', '.join(sorted(unasked))}; ask for the whole group"
            )

    def _is_free(self, one: Function, pci: PciRequest, policy: PciPolicy, use: HostUse) -> None:
        if one.address in policy.deny:
            raise DeviceUnsafe(f"{one.address}: broker.toml keeps it for the host")
        if one.address not in policy.allow and (uses := use.of(one)):
            raise DeviceUnsafe(f"{one.address}: {'; '.join(uses)}")
        parent = self._bus.function(one.physfn)
        if parent and (parent.group in self._held or is_vfio(parent.driver)):
            raise Busy(f"{one.address} is a function of {one.physfn}, which is in use")
        if pci.managed and is_vfio(one.driver):
            raise Busy(f"{one.address} has the driver {one.driver} already: another program's")
        if not pci.managed and not is_vfio(one.driver):
            has = f"the driver {one.driver}" if one.driver else "no driver"
            raise DeviceUnsafe(f"{one.address} has {has}; managed='no' wants a VFIO driver")

    def _overrides(
        self,
        endpoints: Sequence[Function],
        host: Host,
        managed: bool,  # noqa: FBT001
    ) -> tuple[str, ...]:
        if not managed:
            return ("",) * len(endpoints)
        overrides = tuple(host.vfio.override(one.address) for one in endpoints)
        for one, override in zip(endpoints, overrides, strict=True):
            if is_vfio(override):
                raise Busy(f"{one.address} is kept for {override} (driver_override): another's")
        return overrides

    def _passes(self, pci: PciRequest, host: Host) -> bool:
        """Whether a device goes as descriptors: it was asked for so, and the kernel can."""
        return pci.fds and host.vfio.iommufd.exists() and self._has(_DEVICES)

    def _has(self, name: str) -> bool:
        """Whether the kernel has character devices of VFIO's, which systemd knows by this name."""
        text = (self._proc / "devices").read_text(encoding="ascii", errors="replace")
        return any(line.split()[1:] == [name] for line in text.splitlines())


def _group_steps(
    found: _Candidate, pci: PciRequest, settings: Sequence[Step], giving: Step
) -> tuple[Step, ...]:
    group = found.function.group
    if not pci.managed:
        return (*settings, giving)
    rows = list(zip(found.endpoints, found.overrides, found.drivers, strict=True))
    overriding = (
        OverrideDriver(o.address, group, o.identity, to, was, o.driver) for o, was, to in rows
    )
    binding = (RebindDevice(o.address, group, o.identity, to, o.driver) for o, _, to in rows)
    return (*overriding, *settings, *binding, giving)


def _is_gone(address: str, identity: str, host: Host) -> bool:
    """Not while it may be there: a guest can make its device one that does not answer."""
    try:
        return not host.vfio.is_still(address, identity)
    except HostFailure:
        return False


def _assigned(steps: Sequence[Step]) -> AssignDevice:
    return next(step for step in steps if isinstance(step, AssignDevice))


def _is_passed(steps: Sequence[Step]) -> bool:
    """Whether the device went to the caller as descriptors."""
    return any(isinstance(step, OpenDevice) for step in steps)

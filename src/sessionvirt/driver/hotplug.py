# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices of the host that come and go while a machine runs.

To come takes three steps: the broker gives the device to the machine's lease, it lets QEMU lock
memory (VFIO does when the device is made), QEMU makes the device. What fails undoes what was done
before it.

To go takes the guest: QEMU can only ask, and the guest may answer later or never. So it is the
event DEVICE_DELETED that gives a device back, whoever waits for it then: :meth:`HotPlug.detach`,
or nobody, where its patience had ended or the guest has thrown the device out by itself.

What this never does: know the machine's state, wait for a guest without a limit, keep a device
that QEMU has let go of.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from typing import TYPE_CHECKING, Final

from sessionvirt.errors import (
    BusyError,
    DeadlineError,
    NotFoundError,
    QemuError,
    SessionvirtError,
    StateError,
)
from sessionvirt.model.check import check_hostdev
from sessionvirt.model.interface import host_devices
from sessionvirt.model.memory_lock import lock_limit
from sessionvirt.model.needs import pci_need

from .grants import Grants

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sessionvirt.broker_data import Lease
    from sessionvirt.broker_requests import PciRequest
    from sessionvirt.model.addresses import PciAddress
    from sessionvirt.model.domain import Domain
    from sessionvirt.model.interface import HostPci
    from sessionvirt.qemu.pci import Place
    from sessionvirt.qemu.process import Child
    from sessionvirt.qemu.qmp import Event, Monitor

    from .grants import Connect, Grant


__all__ = ["HostDevice", "HotPlug"]

#: What QEMU says to a second device_del (qdev-monitor.c); the first is still good.
_UNDER_WAY: Final = "already in the process of unplug"


@dataclasses.dataclass(frozen=True)
class HostDevice:
    """A device of the host that a running machine has.

    :param id: QEMU's, by which :meth:`VirtualMachine.detach` knows it.
    :param host: where the host has it.
    :param grant: its name in the lease.
    """

    id: str
    host: PciAddress
    grant: str


class _Answer(enum.Enum):
    """What became of a device that was asked to go."""

    GONE = enum.auto()
    REFUSED = enum.auto()
    ENDED = enum.auto()


class _Plugged:
    """One device, from before QEMU has it until QEMU has it no more."""

    def __init__(
        self, device: HostDevice, hostdev: HostPci, grant: Grant, place: Place | None
    ) -> None:
        self.device = device
        self.hostdev = hostdev
        self.grant = grant
        #: None: one of the start, whose place is not given out again.
        self.place = place
        self.there = place is None
        self.answer: asyncio.Future[_Answer] | None = None
        self.returning: asyncio.Task[None] | None = None

    def say(self, answer: _Answer) -> None:
        """Tell whoever waits."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)


class HotPlug:
    """The devices of one run: their ids, their places, and who waits for them.

    :param lease: of the start; None: there was none.
    :param free: where a device can be plugged in.
    :param drivers: what QEMU has.
    :param with_group: as in ``Settings``.
    :param broker: connects to the broker.
    """

    def __init__(
        self,
        domain: Domain,
        monitor: Monitor,
        child: Child,
        lease: Lease | None,
        *,
        free: Sequence[Place],
        drivers: frozenset[str],
        with_group: bool,
        broker: Connect,
    ) -> None:
        from sessionvirt.qemu.board import hostdev_id

        self._domain = domain
        self._monitor = monitor
        self._grants = Grants(domain.name, monitor, child, lease, broker)
        self._free = list(free)
        self._drivers = drivers
        self._with_group = with_group
        self._name = hostdev_id
        #: Ids are never used again: an event may come late.
        self._next = len(host_devices(domain))
        self._plugged: dict[str, _Plugged] = {}
        self._turn = asyncio.Lock()
        if lease is not None:
            pairs = zip(host_devices(domain), lease.devices, strict=True)
            for index, (one, grant) in enumerate(pairs):
                device = HostDevice(hostdev_id(index), one.host, grant.id)
                held = self._grants.of_start(grant.id)
                self._plugged[device.id] = _Plugged(device, one, held, None)

    @property
    def devices(self) -> tuple[HostDevice, ...]:
        """Those that the machine has now."""
        return tuple(one.device for one in self._plugged.values() if one.there)

    # --- to come

    async def attach(self, hostdev: HostPci, *, interactive: bool) -> str:
        """Give the machine a device; returns its id. On failure nothing of it is left.

        :param interactive: the broker may show a prompt.
        :raise DefinitionError: the element is wrong, or the guest's address in it is not free.
        :raise BusyError: the machine has the device already, or no port is free.
        :raise QemuError: QEMU does not take it.
        :raise SessionvirtError: whatever the broker says.
        """
        from .rehearsal import rehearse_hostdev

        check_hostdev(hostdev)
        rehearse_hostdev(hostdev, self._drivers)
        async with self._turn:
            self._refuse_known(hostdev.host)
            place = self._place(hostdev)
            amount = lock_limit(self._domain, more=True)
            request = self._request(hostdev)
            async with self._grants.taking(request, amount, interactive=interactive) as grant:
                device = HostDevice(self._name(self._next), hostdev.host, grant.id)
                cancelled = await self._plug(_Plugged(device, hostdev, grant, place), place)
        if cancelled:
            raise asyncio.CancelledError
        return device.id

    def _refuse_known(self, host: PciAddress) -> None:
        for one in self._plugged.values():
            if one.device.host == host:
                raise BusyError(
                    f"the machine has {host} already",
                    evidence=f"it is {one.device.id}",
                    advice="detach it first, or attach another device",
                )

    def _place(self, hostdev: HostPci) -> Place:
        wanted = hostdev.address
        if wanted is not None:
            key = (wanted.domain, wanted.bus, wanted.slot, wanted.function)
            for place in self._free:
                if key == (0, place.number, place.slot, 0):
                    return place
            wanted.where.refuse(
                f"bus {wanted.bus} slot {wanted.slot:#x} function {wanted.function} of the "
                "running machine is no free place for a device",
                "Write the bus of a free root port and slot 0x00, or leave <address> out.",
            )
        if not self._free:
            raise BusyError(
                "no PCI port of the running machine is free",
                evidence="each device needs one, and ports cannot be added while it runs",
                advice="detach a device that was attached, or define the machine with more ports: "
                "<controller type='pci' index='N' model='pcie-root-port'/>",
            )
        return self._free[0]

    def _request(self, hostdev: HostPci) -> PciRequest:
        from sessionvirt.broker_requests import PciRequest

        need = pci_need(hostdev, [one.device.host for one in self._plugged.values()])
        return PciRequest(
            address=str(need.address),
            with_group=self._with_group,
            also=tuple(map(str, need.also)),
            managed=need.managed,
            driver=need.driver,
            mac=need.mac,
            vlan=need.vlan,
        )

    async def _plug(self, plugged: _Plugged, place: Place) -> bool:
        """Have QEMU make the device, which it does to the end, also for somebody who is gone.

        :return: the caller was cancelled, and the device is there.
        """
        from sessionvirt.qemu.command_hostdevs import hostdev_plug

        device = plugged.device
        self._next += 1
        self._free.remove(place)
        self._plugged[device.id] = plugged
        command = self._monitor.execute(
            "device_add", hostdev_plug(plugged.hostdev, device.id, place)
        )
        adding = asyncio.ensure_future(command)
        cancelled = False
        while not adding.done():
            try:
                await asyncio.wait((adding,))
            except asyncio.CancelledError:
                cancelled = True
        error = adding.exception()
        if error is None:
            plugged.there = True
            return cancelled
        if self._plugged.pop(device.id, None) is not None:
            self._release_place(plugged)
        if cancelled:
            raise asyncio.CancelledError
        if not isinstance(error, SessionvirtError):
            raise error
        raise QemuError(
            f"QEMU does not take {device.host}",
            evidence=str(error),
            advice="it was given back; 'sessionvirt devices' shows its state, and the kernel's "
            "journal may tell more",
        ) from error

    # --- to go

    async def detach(self, which: str, patience: float) -> None:
        """Ask the guest to let go of a device, and give that back.

        :param which: its id, or its address on the host.
        :param patience: seconds for the guest.
        :raise NotFoundError: the machine has no such device.
        :raise DeadlineError: the guest has not let go of it. It goes back when it does.
        :raise QemuError: the guest or QEMU refuses.
        :raise SessionvirtError: the broker could not take it back.
        """
        plugged = self._find(which)
        if plugged.answer is None or plugged.answer.done():
            plugged.answer = asyncio.get_running_loop().create_future()
        answer, device = plugged.answer, plugged.device
        try:
            await self._monitor.execute("device_del", {"id": device.id})
        except QemuError as error:
            if not answer.done() and _UNDER_WAY not in error.cause:
                raise
        await asyncio.wait((answer,), timeout=patience)
        if not answer.done():
            raise DeadlineError(
                f"the guest has not let go of {device.id}",
                evidence=f"it was asked to, and did not within {patience:g} s; {device.host} is "
                "still its own",
                advice="a guest that is paused, is booting or has no driver for hot-plug does not "
                "answer; when it does, the device goes back. The end of the machine frees it, too",
            )
        match answer.result():
            case _Answer.REFUSED:
                raise QemuError(
                    f"the guest refuses to let go of {device.id}",
                    evidence="QEMU reported DEVICE_UNPLUG_GUEST_ERROR",
                    advice="see in the guest what uses the device; its kernel's log may tell",
                )
            case _Answer.ENDED:
                raise StateError(f"QEMU ended before the guest had let go of {device.id}")
            case _Answer.GONE:
                assert plugged.returning is not None
                await asyncio.shield(plugged.returning)

    def _find(self, which: str) -> _Plugged:
        for one in self._plugged.values():
            if one.there and which in (one.device.id, str(one.device.host)):
                return one
        had = ", ".join(f"{one.id} ({one.host})" for one in self.devices)
        raise NotFoundError(
            f"the machine has no host device {which}",
            evidence=f"it has {had or 'none'}",
            advice="name one by its id, or by its address on the host such as 0000:03:00.0",
        )

    def see(self, event: Event) -> None:
        """Note an event of QEMU."""
        name = event.text("device")
        match event.name:
            case "DEVICE_DELETED":
                if (plugged := self._plugged.pop(name, None)) is not None:
                    self._release_place(plugged)
                    plugged.returning = self._grants.give_back(plugged.grant)
                    plugged.say(_Answer.GONE)
            case "DEVICE_UNPLUG_GUEST_ERROR":
                if name in self._plugged:
                    self._plugged[name].say(_Answer.REFUSED)

    async def close(self) -> None:
        """Note that QEMU has ended: nobody waits any more, and all of it is given back."""
        plugged, self._plugged = self._plugged, {}
        for one in plugged.values():
            one.say(_Answer.ENDED)
        await self._grants.close()

    def _release_place(self, plugged: _Plugged) -> None:
        if plugged.place is not None:
            self._free.append(plugged.place)
            self._free.sort(key=lambda place: (place.number, place.slot))

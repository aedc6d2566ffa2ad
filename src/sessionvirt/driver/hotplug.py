# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that come and go while a machine runs: the host's, and interfaces.

For a device of the host to come takes three steps: the broker gives it to the machine's lease, it
lets QEMU lock memory (VFIO does when the device is made), QEMU makes the device. What fails undoes
what was done before it. Interfaces have steps of their own (:mod:`.interfaces`), and the same
places, lease and turn.

What this never does: know the machine's state, keep a device that QEMU has let go of.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from sessionvirt.errors import BusyError
from sessionvirt.model.check import check_hostdev
from sessionvirt.model.filter import NO_FILTER
from sessionvirt.model.interface import Interface, host_devices
from sessionvirt.model.memory_lock import lock_limit
from sessionvirt.model.needs import pci_need

from .grants import Grants
from .interfaces import Interfaces
from .slots import Plugged, Slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sessionvirt.broker_data import Lease, PublishGrant
    from sessionvirt.broker_requests import PciRequest, Rate
    from sessionvirt.model.addresses import PciAddress
    from sessionvirt.model.domain import Domain
    from sessionvirt.model.filter import GuestFilter
    from sessionvirt.model.interface import HostPci
    from sessionvirt.model.portforward import Ports
    from sessionvirt.qemu.capabilities import Capabilities
    from sessionvirt.qemu.pci import Place
    from sessionvirt.qemu.process import Child
    from sessionvirt.qemu.qmp import Event, Monitor

    from .grants import Connect, Grant
    from .interfaces import NetworkInterface
    from .network import Joined

__all__ = ["HostDevice", "HotPlug"]


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


class _PluggedDevice(Plugged):
    """One of the host's."""

    REFUSED = (
        "it was given back; 'sessionvirt devices' shows its state, and the kernel's journal may "
        "tell more"
    )

    def __init__(
        self,
        device: HostDevice,
        hostdev: HostPci,
        grants: Grants,
        grant: Grant,
        place: Place | None = None,
    ) -> None:
        super().__init__(device.id, str(device.host), place)
        self.device = device
        self.hostdev = hostdev
        self._grants = grants
        self._grant = grant

    def gone(self) -> asyncio.Task[None]:
        return self._grants.give_back(self._grant)


class HotPlug:
    """The devices of one run that may go, and those that come.

    :param lease: of the start; None: there was none.
    :param joined: the interfaces of the start, in order.
    :param free: where a device can be plugged in.
    :param capabilities: of the QEMU that runs.
    :param vhost: as of :func:`.network.connect`.
    :param with_group: as in ``Settings``, and so is ``lists``.
    :param broker: connects to the broker.
    """

    def __init__(
        self,
        domain: Domain,
        monitor: Monitor,
        child: Child,
        lease: Lease | None,
        *,
        joined: Sequence[Joined],
        free: Sequence[Place],
        capabilities: Capabilities,
        vhost: bool,
        with_group: bool,
        broker: Connect,
        lists: GuestFilter = NO_FILTER,
    ) -> None:
        from sessionvirt.qemu.board import hostdev_id

        self._domain = domain
        self._monitor = monitor
        self._broker = broker
        self._grants = Grants(domain.name, monitor, child, lease, broker)
        self._slots = Slots(monitor, free)
        self._interfaces = Interfaces(
            domain,
            monitor,
            self._grants,
            self._slots,
            joined,
            capabilities,
            vhost=vhost,
            lists=lists,
        )
        self._drivers = capabilities.devices
        self._with_group = with_group
        self._name = hostdev_id
        #: Ids are never used again: an event may come late.
        self._next = len(host_devices(domain))
        self._turn = asyncio.Lock()
        if lease is not None:
            pairs = zip(host_devices(domain), lease.devices, strict=True)
            for index, (one, grant) in enumerate(pairs):
                device = HostDevice(hostdev_id(index), one.host, grant.id)
                held = self._grants.of_start(grant.id)
                self._slots.found_at_start(_PluggedDevice(device, one, self._grants, held))

    @property
    def devices(self) -> tuple[HostDevice, ...]:
        """The host's that the machine has now."""
        return tuple(one.device for one in self._mine() if one.there)

    @property
    def interfaces(self) -> tuple[NetworkInterface, ...]:
        """The interfaces that the machine has now."""
        return self._interfaces.there

    # --- to come

    async def attach(self, device: HostPci, *, interactive: bool) -> str:
        """Give the machine a device; returns its id. On failure nothing of it is left.

        :param interactive: the broker may show a prompt.
        :raise DefinitionError: the element is wrong, or the guest's address in it is not free.
        :raise BusyError: the machine has the device or address already, or no port is free.
        :raise QemuError: QEMU does not take it.
        :raise SessionvirtError: whatever the broker says.
        """
        if isinstance(device, Interface) and not device.is_hostdev:
            async with self._turn:
                return await self._interfaces.attach(device, interactive=interactive)
        return await self._attach_hostdev(device, interactive=interactive)

    async def _attach_hostdev(self, hostdev: HostPci, *, interactive: bool) -> str:
        from sessionvirt.qemu.command_hostdevs import hostdev_plug

        from .rehearsal import rehearse_hostdev

        check_hostdev(hostdev)
        rehearse_hostdev(hostdev, self._drivers)
        async with self._turn:
            self._refuse_known(hostdev.host)
            place = self._slots.choose(hostdev)
            amount = lock_limit(self._domain, more=True)
            request = self._request(hostdev)
            async with self._grants.taking(request, interactive=interactive, lock=amount) as taken:
                device = HostDevice(self._name(self._next), hostdev.host, taken.grant.id)
                self._next += 1
                plugged = _PluggedDevice(device, hostdev, self._grants, taken.grant, place)
                command = hostdev_plug(hostdev, device.id, place)
                cancelled = await self._slots.plug(
                    plugged, self._monitor.execute("device_add", command)
                )
        if cancelled:
            raise asyncio.CancelledError
        return device.id

    def _mine(self) -> list[_PluggedDevice]:
        """The host's, also one that QEMU is about to have."""
        return [one for one in self._slots if isinstance(one, _PluggedDevice)]

    def _refuse_known(self, host: PciAddress) -> None:
        for one in self._mine():
            if one.device.host == host:
                raise BusyError(
                    f"the machine has {host} already",
                    evidence=f"it is {one.id}",
                    advice="detach it first, or attach another device",
                )

    def _request(self, hostdev: HostPci) -> PciRequest:
        from sessionvirt.broker_requests import PciRequest

        need = pci_need(hostdev, [one.device.host for one in self._mine()])
        return PciRequest(
            address=str(need.address),
            with_group=self._with_group,
            also=tuple(map(str, need.also)),
            managed=need.managed,
            driver=need.driver,
            mac=need.mac,
            vlan=need.vlan,
        )

    # --- to go

    async def detach(self, which: str, patience: float) -> None:
        """Ask the guest to let go of a device, and give that back; as of :meth:`.Slots.take_out`.

        :param which: its id, its address on the host, or its MAC address.
        :param patience: seconds for the guest.
        """
        await self._slots.take_out(which, patience)

    async def set_link(self, which: str, *, up: bool) -> None:
        """Plug an interface's cable in, or pull it out.

        :param which: its id, or its MAC address.
        :raise NotFoundError: the machine has no such interface.
        :raise QemuError: QEMU refuses.
        """
        await self._interfaces.set_link(which, up=up)

    async def set_bandwidth(
        self, which: str, inbound: Rate | None, outbound: Rate | None, *, interactive: bool
    ) -> None:
        """Limit what an interface receives and sends, in the place of the limit that it has.

        :param which: its id, or its MAC address.
        :param interactive: the broker may show a prompt.
        :raise NotFoundError: the machine has no such interface.
        :raise UsageError: it has no TAP.
        :raise SessionvirtError: whatever the broker says; the former limit is in force then.
        """
        async with self._turn:
            await self._interfaces.set_bandwidth(which, inbound, outbound, interactive=interactive)

    async def set_filter(self, which: str, lists: GuestFilter) -> GuestFilter:
        """Exchange an interface's lists; as :meth:`VirtualMachine.set_filter` says."""
        async with self._turn:
            return await self._interfaces.set_filter(which, lists)

    async def publish(
        self, ports: Sequence[Ports], which: str | None, *, interactive: bool
    ) -> tuple[PublishGrant, ...]:
        """Have ports of the host lead to the guest; all or none.

        :param which: the id or MAC address of an interface, or its number; None: the first on a
            managed network.
        :raise NotFoundError: the machine has no such interface.
        :raise SessionvirtError: whatever the broker says.
        """
        from .publishing import choose_tap, held_lease, publish

        there = {one.id: str(one.mac) for one in self.interfaces}
        async with self._turn, await self._broker() as client:
            lease = await held_lease(client, self._grants.lease or "")
            tap = choose_tap(lease, None if which is None else there.get(which, which))
            return await publish(client, lease.lease, tap.id, ports, interactive=interactive)

    async def unpublish(self, ports: Sequence[Ports]) -> None:
        """Have them lead there no longer; new flows, that is.

        :raise NotFoundError: something of it is not published.
        """
        from .publishing import held_lease, unpublish

        async with self._turn, await self._broker() as client:
            lease = await held_lease(client, self._grants.lease or "")
            wanted = [(one.protocol.value, one.address or "", one.host) for one in ports]
            await unpublish(client, lease, wanted)

    def see(self, event: Event) -> None:
        """Note an event of QEMU."""
        self._slots.see(event)

    async def close(self) -> None:
        """Note that QEMU has ended: nobody waits any more, and all of it is given back."""
        self._slots.close()
        await self._grants.close()
        await self._interfaces.close()

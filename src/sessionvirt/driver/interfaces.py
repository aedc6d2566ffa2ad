# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interfaces that come and go while a machine runs, and their cables.

To come: a TAP from the broker or a user-mode network of our own, its descriptors to QEMU over the
monitor by a name each, a backend of these (netdev_add), the card (device_add). What fails undoes
what was done before it. To go: the card, which is the guest's to let go of; then the backend, with
which QEMU closes the descriptors; then the helper and the broker's grant.

A TAP is gone with its last descriptor, and the lease drops it by itself; so that the broker does
not know it any more when it is given back is in order.

What this never does: change the definition, or keep a descriptor that QEMU has.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Final

from sessionvirt.errors import BusyError, NotFoundError, SessionvirtError, UsageError
from sessionvirt.model.check import check_interface
from sessionvirt.model.filter import NO_FILTER
from sessionvirt.model.interface import InterfaceType, LinkState
from sessionvirt.model.needs import NeedKind, interface_need, needs

from .lease import rate_of, tap_request
from .network import Joined, join_user, tap_wiring
from .slots import Plugged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sessionvirt.broker_data import TapGrant
    from sessionvirt.broker_requests import Rate
    from sessionvirt.model.addresses import MacAddress
    from sessionvirt.model.domain import Domain
    from sessionvirt.model.filter import GuestFilter
    from sessionvirt.model.interface import Interface
    from sessionvirt.model.needs import Need
    from sessionvirt.qemu.capabilities import Capabilities
    from sessionvirt.qemu.command_interfaces import Plug
    from sessionvirt.qemu.pci import Place
    from sessionvirt.qemu.process import Child
    from sessionvirt.qemu.qmp import Monitor
    from sessionvirt.qemu.wiring import InterfaceWiring

    from .grants import Grant, Grants
    from .slots import Slots

__all__ = ["Interfaces", "NetworkInterface"]

#: Seconds for a helper to end, whose socket QEMU has closed.
_HELPER_PATIENCE: Final = 5.0


@dataclasses.dataclass(frozen=True)
class NetworkInterface:
    """An interface that a running machine has.

    :param id: QEMU's, by which :meth:`VirtualMachine.detach` knows it.
    :param definition: the element that it was made by.
    :param up: whether its cable is in.
    :param tap: what the broker says of it, without descriptors; None: a user-mode network.
    :param inbound: how much it receives in a second; None: as much as comes. Likewise ``outbound``.
    """

    id: str
    definition: Interface
    mac: MacAddress
    up: bool
    tap: TapGrant | None
    inbound: Rate | None = None
    outbound: Rate | None = None


class _PluggedInterface(Plugged):
    """One interface, with what is to be given back when it has gone.

    :param grant: None: a user-mode network.
    """

    REFUSED = (
        "its network was given back; write another <model>, <address> or <boot order>, or leave "
        "them out"
    )

    def __init__(
        self,
        interface: NetworkInterface,
        home: Interfaces,
        grant: Grant | None,
        helper: Child | None,
        place: Place | None = None,
    ) -> None:
        super().__init__(interface.id, interface.mac, place)
        self.interface = interface
        self._home = home
        self.grant = grant
        self._helper = helper

    def gone(self) -> asyncio.Task[None]:
        return self._home.give_back(self.id, self.grant, self._helper)


class Interfaces:
    """The interfaces of one run.

    :param joined: those of the start, in order.
    :param capabilities: of the QEMU that runs.
    :param vhost: the kernel moves packets, where it can and no document says otherwise.
    :param lists: as in ``Settings``, for interfaces that come.
    """

    def __init__(
        self,
        domain: Domain,
        monitor: Monitor,
        grants: Grants,
        slots: Slots,
        joined: Sequence[Joined],
        capabilities: Capabilities,
        *,
        vhost: bool,
        lists: GuestFilter = NO_FILTER,
    ) -> None:
        from sessionvirt.qemu.board import interface_id

        self._vm = domain.name
        self._monitor = monitor
        self._grants = grants
        self._slots = slots
        self._capabilities = capabilities
        self._vhost = vhost
        self._lists = lists
        self._name = interface_id
        #: Ids are never used again: an event may come late.
        self._next = len(domain.interfaces)
        #: Helpers of interfaces that came later; those of the start are the start's.
        self._helpers: set[Child] = set()
        for need, one in zip(needs(domain), joined, strict=True):
            nic, name = domain.interfaces[need.interface], interface_id(need.interface)
            grant = grants.of_start(one.tap.id) if one.tap is not None else None
            interface = _told(name, nic, one.wiring, one.tap)
            slots.found_at_start(_PluggedInterface(interface, self, grant, one.helper))

    @property
    def there(self) -> tuple[NetworkInterface, ...]:
        """Those that the machine has now."""
        return tuple(one.interface for one in self._mine() if one.there)

    def _mine(self) -> list[_PluggedInterface]:
        """Also one that QEMU is about to have."""
        return [one for one in self._slots if isinstance(one, _PluggedInterface)]

    # --- to come

    async def attach(self, nic: Interface, *, interactive: bool) -> str:
        """Give the machine an interface; returns its id. Not to be called twice at once.

        :raise SessionvirtError: as :meth:`.hotplug.HotPlug.attach` says.
        """
        from sessionvirt.qemu.command_interfaces import interface_plug, plug_model

        check_interface(nic)
        if nic.port_forwards and nic.type is InterfaceType.NETWORK:
            raise UsageError(
                "an interface that comes while the machine runs brings no ports with it",
                advice="attach it without <portForward>, then publish them",
            )
        place = self._slots.choose(nic)
        model = plug_model(nic, place, self._capabilities.devices)
        need = interface_need(dataclasses.replace(nic, model=model), self._next)
        if nic.mac is not None:
            self._refuse_known(nic.mac)
        name = self._name(self._next)
        async with self._joining(need, interactive=interactive) as (one, grant):
            # A name for each descriptor, which cannot begin with a digit.
            given = {fd: f"{name}-fd{number}" for number, fd in enumerate(one.wiring.passed_fds)}
            plug = interface_plug(nic, name, one.wiring, model, place, given)
            told = _told(name, nic, one.wiring, one.tap)
            self._next += 1
            plugged = _PluggedInterface(told, self, grant, one.helper, place)
            making = self._make(plug, given, down=not told.up)
            cancelled = await self._slots.plug(plugged, making)
        if cancelled:
            raise asyncio.CancelledError
        return name

    def _refuse_known(self, mac: MacAddress) -> None:
        for one in self._mine():
            if one.interface.mac == mac:
                raise BusyError(
                    f"the machine has an interface {mac} already",
                    evidence=f"it is {one.id}",
                    advice="detach it first, or write another address, or leave <mac> out",
                )

    @contextlib.asynccontextmanager
    async def _joining(
        self, need: Need, *, interactive: bool
    ) -> AsyncIterator[tuple[Joined, Grant | None]]:
        """Make the interface's other end; it is unmade when what is done with it inside fails.

        What QEMU gets copies of is closed here afterwards.
        """
        with contextlib.ExitStack() as handed_over:
            if need.kind is NeedKind.USER:
                one = join_user(need, self._vm, self._capabilities, handed_over)
                try:
                    yield one, None
                except BaseException:
                    if one.helper is not None:
                        await one.helper.close()
                    raise
                if one.helper is not None:
                    self._helpers.add(one.helper)
                return
            # Room for as many again: the answer has nothing else in it but a hold.
            from sessionvirt.broker_data import TapGrant
            from sessionvirt.broker_requests import FDS_PER_ANSWER

            room = FDS_PER_ANSWER - 1 - need.queues
            request = tap_request(need, vhost=self._vhost, room=room)
            async with self._grants.taking(request, interactive=interactive) as taken:
                assert isinstance(taken.told, TapGrant)
                wanted = need.filter.with_lists(self._lists)
                if not wanted.is_empty:
                    # Before QEMU has the TAP, so its guest has never sent without.
                    await self._grants.filter(taken.grant, wanted)
                wiring = tap_wiring(need, taken.told, handed_over, vhost=self._vhost)
                inbound, outbound = rate_of(need.inbound), rate_of(need.outbound)
                if inbound is not None or outbound is not None:
                    # It goes with the TAP.
                    await self._grants.limit(
                        taken.grant, inbound, outbound, interactive=interactive
                    )
                yield Joined(wiring, taken.told), taken.grant

    async def _make(self, plug: Plug, given: dict[int, str], *, down: bool) -> None:
        """Have QEMU make backend and card; on failure it has neither."""
        async with contextlib.AsyncExitStack() as undo:
            for fd, name in given.items():
                # What the backend has taken is no longer known by its name.
                undo.push_async_callback(self._quietly, "closefd", fdname=name)
                await self._monitor.give(fd, name)
            await self._monitor.execute("netdev_add", plug.backend)
            undo.push_async_callback(self._quietly, "netdev_del", id=plug.backend["id"])
            await self._monitor.execute("device_add", plug.device)
            undo.pop_all()
        if down:
            # A guest that looked in this moment has seen the cable in.
            await self._monitor.execute("set_link", {"name": plug.device["id"], "up": False})

    async def _quietly(self, command: str, **arguments: object) -> None:
        # Another error is already on its way.
        with contextlib.suppress(SessionvirtError):
            await self._monitor.execute(command, arguments)

    # --- to go

    def give_back(self, name: str, grant: Grant | None, helper: Child | None) -> asyncio.Task[None]:
        """The guest has let go of the card: give back all behind it."""
        return self._grants.give_back(grant, self._unmake(name, helper))

    async def _unmake(self, name: str, helper: Child | None) -> None:
        from sessionvirt.qemu.command_interfaces import backend_id

        try:
            await self._monitor.execute("netdev_del", {"id": backend_id(name)})
        finally:
            if helper is not None:
                await helper.terminate(_HELPER_PATIENCE)
                self._helpers.discard(helper)

    async def close(self) -> None:
        """Note that QEMU has ended; so do the helpers, which have nobody left to serve."""
        while self._helpers:
            await self._helpers.pop().close()

    # --- while it is there

    async def set_link(self, which: str, *, up: bool) -> None:
        """Plug the cable in, or pull it out; as of :meth:`.hotplug.HotPlug.set_link`."""
        one = self._find(which)
        await self._monitor.execute("set_link", {"name": one.id, "up": up})
        one.interface = dataclasses.replace(one.interface, up=up)

    async def set_bandwidth(
        self, which: str, inbound: Rate | None, outbound: Rate | None, *, interactive: bool
    ) -> None:
        """Limit its traffic; as of :meth:`.hotplug.HotPlug.set_bandwidth`."""
        one = self._find(which)
        tap = one.interface.tap
        if one.grant is None or tap is None or tap.kind != "tap":
            raise UsageError(
                f"the traffic of {one.id} cannot be limited",
                evidence=f"it is of the type {one.interface.definition.type}",
                advice="only that of an interface on a network or bridge can",
            )
        await self._grants.limit(one.grant, inbound, outbound, interactive=interactive)
        one.interface = dataclasses.replace(one.interface, inbound=inbound, outbound=outbound)

    def _find(self, which: str) -> _PluggedInterface:
        """The one that is meant.

        :raise NotFoundError: the machine has no such interface.
        """
        for one in self._mine():
            if one.there and which in (one.id, one.other):
                return one
        had = ", ".join(f"{one.id} ({one.mac})" for one in self.there)
        raise NotFoundError(
            f"the machine has no interface {which}",
            evidence=f"it has {had or 'none'}",
            advice="name one by its id, or by its MAC address",
        )

    async def set_filter(self, which: str, lists: GuestFilter) -> GuestFilter:
        """Exchange the lists of an interface; as of :meth:`.hotplug.HotPlug.set_filter`."""
        for one in self._mine():
            if one.there and which in (one.id, one.other) and one.grant is not None:
                return await self._grants.exchange(one.grant, lists)
        had = ", ".join(f"{one.id} ({one.mac})" for one in self.there if one.tap is not None)
        raise NotFoundError(
            f"the machine has no interface {which} that can be filtered",
            evidence=f"it has {had or 'none'} on networks and bridges",
            advice="name one by its id, or by its MAC address",
        )


def _told(
    name: str, nic: Interface, wiring: InterfaceWiring, tap: TapGrant | None
) -> NetworkInterface:
    if tap is not None:
        tap = dataclasses.replace(tap, fds=(), vhost_fds=())
    limits = nic.bandwidth
    return NetworkInterface(
        *(name, nic, wiring.mac, nic.link is LinkState.UP, tap),
        inbound=rate_of(limits.inbound) if limits is not None else None,
        outbound=rate_of(limits.outbound) if limits is not None else None,
    )

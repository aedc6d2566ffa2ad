# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker gives to a machine that runs, and takes back from it.

A machine that had nothing of the broker's at its start has no lease. Then a lease is made for the
first device, and its hold goes to QEMU over the monitor: it ends with QEMU as every other.

What this never does: decide when QEMU has a device, or has it no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Final, TypeAlias

from sessionvirt.errors import NotFoundError, SessionvirtError, StateError

from .filters import exchange, filter_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from sessionvirt.broker_client import BrokerClient
    from sessionvirt.broker_data import Grant as Told
    from sessionvirt.broker_data import Lease
    from sessionvirt.broker_requests import Rate, Request
    from sessionvirt.model.filter import GuestFilter
    from sessionvirt.qemu.process import Child
    from sessionvirt.qemu.qmp import Monitor

__all__ = ["Connect", "Grant", "Grants", "Taken"]

#: Connects to the broker.
Connect: TypeAlias = "Callable[[], Awaitable[BrokerClient]]"

#: Seconds for what is being given back when QEMU has ended, which gives it back anyway.
_CLOSE_PATIENCE: Final = 5.0


@dataclasses.dataclass(frozen=True)
class Grant:
    """One device's.

    :param lease: an object path.
    :param id: its name in the lease.
    """

    lease: str
    id: str


@dataclasses.dataclass(frozen=True)
class Taken:
    """What was given for a device.

    :param told: what the broker says of it; the descriptors are open as long as they are needed.
    """

    grant: Grant
    told: Told


class Grants:
    """The broker's side of one run.

    :param vm: the name that a prompt shows.
    :param lease: of the start; None: there was none.
    """

    def __init__(
        self, vm: str, monitor: Monitor, child: Child, lease: Lease | None, broker: Connect
    ) -> None:
        self._vm = vm
        self._monitor = monitor
        self._child = child
        self._lease = None if lease is None else lease.path
        self._broker = broker
        self._holds = 0
        self._held: set[Grant] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def of_start(self, name: str) -> Grant:
        """A device's that came with the start."""
        assert self._lease is not None
        grant = Grant(self._lease, name)
        self._held.add(grant)
        return grant

    @property
    def lease(self) -> str | None:
        """The object path of what the machine has; None: nothing."""
        return self._lease

    @contextlib.asynccontextmanager
    async def taking(
        self, request: Request, *, interactive: bool, lock: int = 0
    ) -> AsyncIterator[Taken]:
        """Take a device; it is given back when what is done with it inside fails.

        :param interactive: the broker may show a prompt.
        :param lock: the bytes that QEMU has to be able to lock with it.
        :raise StateError: QEMU has ended.
        :raise SessionvirtError: whatever the broker says.
        """
        async with await self._broker() as client, contextlib.AsyncExitStack() as undo:
            # Ours are closed on every way out; QEMU has copies by then.
            with contextlib.ExitStack() as ours:
                taken = await self._take(client, request, undo, ours, interactive=interactive)
                if lock:
                    await self._lock_memory(client, taken.grant, lock)
                self._held.add(taken.grant)
                undo.callback(self._held.discard, taken.grant)
                yield taken
                undo.pop_all()

    async def _take(
        self,
        client: BrokerClient,
        request: Request,
        undo: contextlib.AsyncExitStack,
        ours: contextlib.ExitStack,
        *,
        interactive: bool,
    ) -> Taken:
        lease = self._lease
        if lease is not None:
            try:
                (told,) = await client.add(lease, (request,), interactive=interactive)
            except asyncio.CancelledError:
                # The broker may have done it already, and its answer is lost. A TAP is gone with
                # the last of its descriptors, and its grant with it.
                from sessionvirt.broker_requests import PciRequest

                if isinstance(request, PciRequest):
                    self._spawn(self._return_strays(lease, request.address))
                raise
            except NotFoundError:
                # A lease ends with its last device, where the host has pulled that one out.
                if any(one.lease == lease for one in await client.leases()):
                    raise
            else:
                for fd in told.descriptors:
                    ours.enter_context(fd)
                added = Grant(lease, told.id)
                undo.push_async_callback(self._drop_quietly, client, added)
                return Taken(added, told)
        return await self._take_first(client, request, undo, ours, interactive=interactive)

    async def _take_first(
        self,
        client: BrokerClient,
        request: Request,
        undo: contextlib.AsyncExitStack,
        ours: contextlib.ExitStack,
        *,
        interactive: bool,
    ) -> Taken:
        """Make a lease for it, which is QEMU's from then on."""
        self._holds += 1
        hold = f"hold{self._holds}"
        lease = await client.acquire((request,), self._vm, interactive=interactive)
        ours.enter_context(lease)
        undo.push_async_callback(self._release_quietly, client, lease.path, hold)
        await self._monitor.give(lease.hold.fileno(), hold)
        self._lease = lease.path
        (told,) = lease.grants
        return Taken(Grant(lease.path, told.id), told)

    async def _lock_memory(self, client: BrokerClient, grant: Grant, amount: int) -> None:
        try:
            with self._child.duplicate_pidfd() as process:
                await client.lock_memory(grant.lease, process.fileno(), amount)
        except (SessionvirtError, ValueError) as error:
            if self._child.returncode is None:
                raise
            raise StateError("QEMU ended before it had the device") from error

    async def limit(
        self, grant: Grant, inbound: Rate | None, outbound: Rate | None, *, interactive: bool
    ) -> None:
        """Limit a TAP's traffic, in the place of whatever limit it has."""
        from .limits import set_limit

        async with await self._broker() as client:
            await set_limit(
                client, grant.lease, grant.id, inbound, outbound, interactive=interactive
            )

    async def filter(self, grant: Grant, wanted: GuestFilter) -> None:
        """Have a TAP filtered from the beginning; it goes with the TAP.

        :raise SessionvirtError: whatever the broker says.
        """
        async with await self._broker() as client:
            request = filter_request(grant.id, wanted)
            await client.add(grant.lease, (request,), interactive=False)

    async def exchange(self, grant: Grant, lists: GuestFilter) -> GuestFilter:
        """As :func:`.filters.exchange`."""
        async with await self._broker() as client:
            return await exchange(client, grant.lease, grant.id, lists)

    # --- giving back

    def give_back(
        self, grant: Grant | None, first: Coroutine[object, object, None] | None = None
    ) -> asyncio.Task[None]:
        """Give back what QEMU has no more.

        The broker dropped it already where the host has pulled the device out, or where it was a
        TAP and QEMU had its last descriptor. Where QEMU has it open for a moment longer, the broker
        waits for that by itself, and says nothing.

        :param grant: None: it was not the broker's.
        :param first: what is to be done before; if it fails, the rest is done nevertheless.
        :return: may be waited for, and need not be.
        """
        if grant is not None:
            self._held.discard(grant)
        return self._spawn(self._give_back(grant, first))

    async def close(self) -> None:
        """Note that QEMU has ended, with which everything goes back."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(tuple(self._tasks), timeout=_CLOSE_PATIENCE)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _give_back(
        self, grant: Grant | None, first: Coroutine[object, object, None] | None
    ) -> None:
        try:
            if first is not None:
                await first
        finally:
            if grant is not None:
                await self._return(grant)

    async def _return(self, grant: Grant) -> None:
        async with await self._broker() as client:
            # Looked at first, for what is asked in vain is a refusal in the host's journal.
            found = [info for info in await client.leases() if info.lease == grant.lease]
            if not found and self._lease == grant.lease:
                self._lease = None
            if any(grant.id == one.id for info in found for one in info.grants):
                with contextlib.suppress(NotFoundError):
                    await client.drop(grant.lease, (grant.id,))

    async def _return_strays(self, lease: str, address: str) -> None:
        """Drop the grant of a call that nobody read the answer of."""
        from sessionvirt.broker_data import PciGrant

        async with await self._broker() as client:
            for info in await client.leases():
                for grant in info.grants if info.lease == lease else ():
                    stray = Grant(lease, grant.id)
                    ours = isinstance(grant, PciGrant) and grant.address == address
                    if ours and stray not in self._held:
                        await self._drop_quietly(client, stray)

    async def _drop_quietly(self, client: BrokerClient, grant: Grant) -> None:
        # Another error is already on its way; the end of the lease gives it back at the latest.
        with contextlib.suppress(SessionvirtError):
            await client.drop(grant.lease, (grant.id,))

    async def _release_quietly(self, client: BrokerClient, lease: str, hold: str) -> None:
        self._lease = None
        with contextlib.suppress(SessionvirtError):
            await client.release(lease)
        with contextlib.suppress(SessionvirtError):
            await self._monitor.execute("closefd", {"fdname": hold})

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="sessionvirt-give-back")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Whoever waits for it has it, too; nobody has to.
            task.exception()

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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from sessionvirt.broker_client import BrokerClient
    from sessionvirt.broker_data import Lease
    from sessionvirt.broker_requests import PciRequest
    from sessionvirt.qemu.process import Child
    from sessionvirt.qemu.qmp import Monitor

__all__ = ["Connect", "Grant", "Grants"]

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

    @contextlib.asynccontextmanager
    async def taking(
        self, request: PciRequest, amount: int, *, interactive: bool
    ) -> AsyncIterator[Grant]:
        """Take a device; it is given back when what is done with it inside fails.

        :param amount: the bytes that QEMU has to be able to lock with it.
        :param interactive: the broker may show a prompt.
        :raise StateError: QEMU has ended.
        :raise SessionvirtError: whatever the broker says.
        """
        async with await self._broker() as client, contextlib.AsyncExitStack() as undo:
            grant = await self._take(client, request, undo, interactive=interactive)
            await self._lock_memory(client, grant, amount)
            self._held.add(grant)
            undo.callback(self._held.discard, grant)
            yield grant
            undo.pop_all()

    async def _take(
        self,
        client: BrokerClient,
        request: PciRequest,
        undo: contextlib.AsyncExitStack,
        *,
        interactive: bool,
    ) -> Grant:
        lease = self._lease
        if lease is not None:
            try:
                (grant,) = await client.add(lease, (request,), interactive=interactive)
            except asyncio.CancelledError:
                # The broker may have done it already, and its answer is lost.
                self._spawn(self._return_strays(lease, request.address))
                raise
            except NotFoundError:
                # A lease ends with its last device, where the host has pulled that one out.
                if any(one.lease == lease for one in await client.leases()):
                    raise
            else:
                added = Grant(lease, grant.id)
                undo.push_async_callback(self._drop_quietly, client, added)
                return added
        return await self._take_first(client, request, undo, interactive=interactive)

    async def _take_first(
        self,
        client: BrokerClient,
        request: PciRequest,
        undo: contextlib.AsyncExitStack,
        *,
        interactive: bool,
    ) -> Grant:
        """Make a lease for it, which is QEMU's from then on."""
        self._holds += 1
        hold = f"hold{self._holds}"
        with await client.acquire((request,), self._vm, interactive=interactive) as lease:
            undo.push_async_callback(self._release_quietly, client, lease.path, hold)
            await self._monitor.give(lease.hold.fileno(), hold)
            self._lease = lease.path
            return Grant(lease.path, lease.grants[0].id)

    async def _lock_memory(self, client: BrokerClient, grant: Grant, amount: int) -> None:
        try:
            with self._child.duplicate_pidfd() as process:
                await client.lock_memory(grant.lease, process.fileno(), amount)
        except (SessionvirtError, ValueError) as error:
            if self._child.returncode is None:
                raise
            raise StateError("QEMU ended before it had the device") from error

    # --- giving back

    def give_back(self, grant: Grant) -> asyncio.Task[None]:
        """Give back what QEMU has no more.

        The broker dropped it already where the host has pulled the device out. Where QEMU has it
        open for a moment longer, the broker waits for that by itself, and says nothing.

        :return: may be waited for, and need not be.
        """
        self._held.discard(grant)
        return self._spawn(self._give_back(grant))

    async def close(self) -> None:
        """Note that QEMU has ended, with which everything goes back."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(tuple(self._tasks), timeout=_CLOSE_PATIENCE)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _give_back(self, grant: Grant) -> None:
        async with await self._broker() as client:
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

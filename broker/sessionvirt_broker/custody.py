# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was given, until it is given back: hang-ups, changes of the host, and what would not go.

A lease ends when its holder does, when the kernel says that what was given is no more what it was,
or when nobody could be told of it. What somebody still has open is tried again by the clock until
he lets go. On the loop; the host is touched by the worker alone.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from .audit import audit
from .errors import BrokerError
from .hold import HoldWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from .kind import Watched
    from .lease import Acquired
    from .leases import Changed, Leases
    from .worker import Worker

__all__ = ["FIRST_RETRY_SECONDS", "Custody"]

#: Between two tries to give back what somebody has open.
FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 0.05, 2.0


class Custody:
    """The watch over leases.

    :param moved: called when the number of leases may have changed.
    """

    def __init__(self, worker: Worker, leases: Leases, moved: Callable[[], None]) -> None:
        self._worker = worker
        self._leases = leases
        self._moved = moved
        self.holds = HoldWatch()
        self._tasks: set[asyncio.Task[None]] = set()
        self._names: frozenset[Watched] = frozenset()
        self._routes = False
        self._looking = False
        self._persistence: asyncio.Task[None] | None = None

    def holds_ended(self) -> None:
        """The loop reports hang-ups: give those leases back."""
        for lease in self.holds.ended():
            self._spawn(self._release_ended(lease, "the holder is gone"))

    def host_changed(self, names: frozenset[Watched], *, routes: bool) -> None:
        """The kernel reports changed interfaces, devices or routes: are leases still as given?"""
        self._names |= names
        self._routes |= routes
        if not self._looking:
            self._looking = True
            self._spawn(self._look())

    def persist(self) -> None:
        """Give back, as soon as somebody lets go of it, what would not go."""
        if self._leases.waits and self._persistence is None:
            self._persistence = asyncio.get_running_loop().create_task(self._persist())

    async def _persist(self) -> None:
        seconds = FIRST_RETRY_SECONDS
        try:
            waits = True
            while waits:
                await asyncio.sleep(seconds)  # nobody is told that a device was closed
                seconds = min(seconds * 2, _LAST_RETRY_SECONDS)
                waits = await self._worker.run(self._leases.retry)
        finally:
            self._persistence = None
            self._moved()

    async def settle(self) -> None:
        """Wait for what was begun here; what waits for somebody is the next broker's."""
        if self._persistence is not None:
            self._persistence.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def orphaned(self, acquired: Acquired) -> None:
        """Made for a caller that has left."""
        acquired.close()
        os.close(acquired.watch)
        self._spawn(self._release_ended(acquired.lease, "its caller is gone"))

    async def undelivered(self, acquired: Acquired) -> None:
        """The answer could not be sent."""
        await self._release_ended(acquired.lease, "the answer could not be sent")

    async def _release_ended(self, lease: str, why: str) -> None:
        owner = await self._worker.run(self._leases.release, lease)
        if owner is not None:
            self.ended(lease, owner.uid, why)

    def ended(self, lease: str, uid: int, why: str, sender: str = "") -> None:
        """A lease was given back, or what would go of it."""
        self.holds.remove(lease)
        self._moved()
        self.persist()
        audit("release", uid=uid, sender=sender, lease=lease, why=why)

    def drop_quietly(self, lease: str, uid: int, names: Sequence[str]) -> None:
        """Give back what was added for a caller that has left."""
        self._spawn(self._drop(lease, uid, names))

    async def _drop(self, lease: str, uid: int, names: Sequence[str]) -> None:
        try:
            await self._worker.run(self._leases.drop, lease, uid, names)
        except BrokerError as error:
            audit("failure", lease=lease, why=str(error))
        self.persist()

    async def _look(self) -> None:
        """One look at a time, at everything that changed until it begins."""
        try:
            while self._names or self._routes:
                names, self._names = self._names, frozenset()
                routes, self._routes = self._routes, False
                await self._look_at(names, routes=routes)
        finally:
            self._looking = False

    async def _look_at(self, names: frozenset[Watched], *, routes: bool) -> None:
        for found in await self._worker.run(self._look_on_worker, names, routes):
            if found.dropped:
                self.persist()
                what = ",".join(found.dropped)
                audit("drop", uid=found.uid, lease=found.lease, what=what, why=found.why)
            else:
                await self._release_ended(found.lease, found.why)

    def _look_on_worker(self, names: frozenset[Watched], routes: bool) -> list[Changed]:  # noqa: FBT001
        """In one go: whatever is asked for after a change was heard of finds it dealt with."""
        found = self._leases.changed(names)
        if routes:
            self._leases.refresh_uplinks()
        return found

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            audit("failure", why=f"{type(error).__name__}: {error}")

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Questions that can take the worker long, one at a time and with pauses.

How long they take is up to others' rulesets: with forty thousand rules nft takes seconds. Anybody
may ask, again and again, and everybody's machines wait for the worker meanwhile. So after each
answer none is looked for during several times as long: they have a fifth of the worker at most. A
user's own questions wait for each other first, so one who asks much is before another once only.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

    from .worker import Worker

__all__ = ["Pace"]

P = ParamSpec("P")
T = TypeVar("T")

_PAUSE_TIMES = 4


class Pace:
    """The queue of such questions. On the loop.

    :param clock: in seconds.
    """

    def __init__(self, worker: Worker, clock: Callable[[], float] = time.monotonic) -> None:
        self._worker = worker
        self._clock = clock
        self._turn = asyncio.Lock()
        #: Each as long as somebody waits for it.
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._not_before = 0.0

    async def run(self, uid: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result, as of :meth:`Worker.run`; for this user."""
        own = self._turns.get(uid)
        if own is None:
            own = self._turns[uid] = asyncio.Lock()
        async with own, self._turn:
            await asyncio.sleep(max(0.0, self._not_before - self._clock()))
            call = functools.partial(function, *args, **kwargs)
            return await self._worker.run(self._measured, call)

    def _measured(self, function: Callable[[], T]) -> T:
        """On the worker: the time in which it did nothing else. Who stops waiting is paid for."""
        begun = self._clock()
        try:
            return function()
        finally:
            now = self._clock()
            self._not_before = now + _PAUSE_TIMES * (now - begun)

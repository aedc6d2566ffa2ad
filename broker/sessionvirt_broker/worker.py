# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one thread that touches the host, so that nothing blocks the loop.

What was begun there is finished there: a caller that goes away, or a cancelled task, does not tear
a transaction apart. Its result then goes to ``orphan``, which gives it back.
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs functions in order, one at a time."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="host")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result. Cancelling this does not stop it."""
        loop = asyncio.get_running_loop()
        call = functools.partial(_whole, function, *args, **kwargs)
        return await loop.run_in_executor(self._executor, call)

    async def run_or_orphan(self, function: Callable[[], T], orphan: Callable[[T], None]) -> T:
        """As :meth:`run`; when nobody waits any more, the result is handed to ``orphan``."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, _whole, function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(
                lambda done: None if done.cancelled() or done.exception() else orphan(done.result())
            )
            raise

    async def close(self) -> None:
        """Wait for what is under way."""
        await self.run(lambda: None)
        self._executor.shutdown()


def _whole(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it. A future cannot carry StopIteration (PEP 479): its waiter would wait for ever."""
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        raise RuntimeError("StopIteration on the worker") from error

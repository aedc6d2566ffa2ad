# SPDX-License-Identifier: LGPL-2.1-or-later
"""The loop's side of putting rules back: when ``upkeep.py`` looks.

At once, and then not for several times as long as that took: somebody who changes our tables
without an end has a fifth of the worker at most. Each event has its line in the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from .audit import audit
from .rulewatch import RuleChanges

if TYPE_CHECKING:
    from .upkeep import Repair, Upkeep
    from .worker import Worker

__all__ = ["Mending"]

_PAUSE_SECONDS, _PAUSE_TIMES = 0.02, 4
#: Kinds of tables and families are few; what would be more is looked at whole.
_TOUCHES = 64


class Mending:
    """The task."""

    def __init__(self, worker: Worker, upkeep: Upkeep) -> None:
        self._worker = worker
        self._upkeep = upkeep
        self._heard = RuleChanges(frozenset(), everything=False)
        self._looking: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None

    def heard(self, changes: RuleChanges) -> None:
        """The kernel reports what somebody did to tables with our names."""
        if not (changes.touched or changes.everything):
            return
        touched = self._heard.touched | changes.touched
        everything = self._heard.everything or changes.everything or len(touched) > _TOUCHES
        self._heard = RuleChanges(frozenset(sorted(touched)[:_TOUCHES]), everything=everything)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    def wait(self) -> None:
        """Look again by the clock, where the rules are lost."""
        if self._upkeep.due is not None and self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_task(self._wait())

    async def settle(self) -> None:
        """No more looks; the next broker puts back what is missing when it starts."""
        for task in (self._looking, self._waiting):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _look(self) -> None:
        try:
            while self._heard.touched or self._heard.everything:
                changes, self._heard = self._heard, RuleChanges(frozenset(), everything=False)
                begun = time.monotonic()
                self._tell(await self._worker.run(self._upkeep.look, changes))
                took = time.monotonic() - begun
                await asyncio.sleep(_PAUSE_SECONDS + _PAUSE_TIMES * took)
        except Exception as error:  # the broker answers on
            audit("failure", why=f"{type(error).__name__}: {error}")
        finally:
            self._looking = None

    async def _wait(self) -> None:
        try:
            while (due := self._upkeep.due) is not None:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                self._tell(await self._worker.run(self._upkeep.again))
        except Exception as error:
            audit("failure", why=f"{type(error).__name__}: {error}")
        finally:
            self._waiting = None

    def _tell(self, repairs: list[Repair]) -> None:
        for one in repairs:
            took = f"{one.milliseconds} ms" if one.event == "rules-restored" else ""
            audit(one.event, what=one.what, why=one.why, took=took)
        self.wait()

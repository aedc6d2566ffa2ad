# SPDX-License-Identifier: LGPL-2.1-or-later
"""Puts rules of ours back that somebody took away, and does not fight over them for ever.

A ``flush ruleset`` (a restart of nftables.service, an administrator's script) leaves every guest
unfiltered. So what should be in our tables goes back at once, in one transaction for each pair of
tables. Somebody who takes them away again and again means it, or is broken: after a few times
within a minute it is said that leases are degraded, and tried once a minute from then on. They are
not any more when the rules have stayed for one.

Between the flush and the rules' return, which is milliseconds, guests are not filtered; nothing but
the table's owner flag could close that gap, and a broker that ends would take the rules along
(``ruleset.py`` says why it is not set). Worker thread; knows no loop.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .errors import HostFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .rulewatch import RuleChanges

__all__ = ["MINUTE", "TIMES", "Kept", "Repair", "Upkeep"]

log = logging.getLogger(__name__)

#: Put back more often than this within a minute: not any more.
TIMES, MINUTE = 5, 60.0


class Kept(Protocol):
    """Tables that are put back together."""

    @property
    def tables(self) -> frozenset[tuple[str, str]]:
        """Family and name of each."""

    def intact(self) -> bool:
        """Whether everything that should be there is; also true where nothing should."""

    def restore(self) -> None:
        """Put everything back, in one transaction.

        :raise HostFailure: it could not be.
        """


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done, for the journal.

    :param event: "rules-restored", "rules-lost" (they could not be, or not again) or "rules-whole".
    :param what: the tables.
    """

    event: str
    what: str
    why: str = ""
    milliseconds: int = 0


class Upkeep:
    """What was put back when.

    :param kept: all that is looked after.
    :param own_port: the netlink port of what we change ourselves.
    :param told: called where :attr:`degraded` may have changed, or what it shuts is open again.
    """

    def __init__(
        self,
        kept: Callable[[], Sequence[Kept]],
        own_port: Callable[[], int],
        told: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kept = kept
        self._own_port = own_port
        self._told = told
        self._clock = clock
        self._restored: deque[float] = deque(maxlen=TIMES)
        self._lost_at: float | None = None
        #: Why the rules may not be there; empty: they are.
        self.degraded = ""

    @property
    def due(self) -> float | None:
        """When :meth:`again` should be called, by the clock; None: it need not be."""
        return None if self._lost_at is None else self._lost_at + MINUTE

    def look(self, changes: RuleChanges) -> list[Repair]:
        """Put back what somebody changed, and what else is not there with it.

        Of one ``flush ruleset`` the kernel tells in several messages, and this may be called after
        the first of them; the next look comes later (``mending.py``).
        """
        if self._lost_at is not None:
            self._told()  # what was given since had the rules put back, and opened
            return []  # it is tried by the clock
        port = self._own_port()
        touched = {(one.family, one.table) for one in changes.touched if one.port != port}
        every = self._kept()
        if not changes.everything and not any(kept.tables & touched for kept in every):
            return []
        broken = [kept for kept in every if kept.tables & touched or not kept.intact()]
        if not broken:
            return []
        now = self._clock()
        if len(self._restored) == TIMES and now - self._restored[0] < MINUTE:
            why = f"somebody took the firewall's rules away more than {TIMES} times in a minute"
            return [self._lost(_names(broken), why)]
        self._restored.append(now)
        return self._restore(broken)

    def again(self) -> list[Repair]:
        """A minute after the rules were lost: they have stayed since, or go back once more."""
        broken = [kept for kept in self._kept() if not kept.intact()]
        if not broken:
            self._lost_at, self.degraded = None, ""
            self._restored.clear()
            self._told()
            return [Repair("rules-whole", "")]
        self._lost_at = self._clock()
        return self._restore(broken)

    def failed(self, why: str) -> None:
        """What should be there could not be put there, by whoever tried it."""
        self._lost_at, self.degraded = self._clock(), why
        self._told()

    def _restore(self, broken: Sequence[Kept]) -> list[Repair]:
        done: list[Repair] = []
        for kept in broken:
            begun = self._clock()
            try:
                kept.restore()
            except HostFailure as error:
                done.append(self._lost(_names([kept]), str(error)))
            else:
                took = round((self._clock() - begun) * 1000)
                done.append(Repair("rules-restored", _names([kept]), milliseconds=took))
        return done

    def _lost(self, what: str, why: str) -> Repair:
        self.failed(why)
        return Repair("rules-lost", what, why)


def _names(kept: Sequence[Kept]) -> str:
    return ", ".join(sorted(f"{family} {name}" for one in kept for family, name in one.tables))

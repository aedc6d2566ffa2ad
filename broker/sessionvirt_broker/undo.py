# SPDX-License-Identifier: LGPL-2.1-or-later
"""Taking back what a record says, and keeping what would not go.

A step whose undo fails stays in its record, in the journal and here; it is tried again with every
release and at every start, never on top of itself.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from .errors import HostFailure
from .steps import take_back

if TYPE_CHECKING:
    from .host import Host
    from .journal import Journal, Record
    from .steps import Step


class Undo:
    """Undoes records, part by part. Worker thread, but for :attr:`waits`."""

    def __init__(self, host: Host, journal: Journal) -> None:
        self._host = host
        self._journal = journal
        self._stuck: list[Record] = []
        #: Whether something that is stuck will go when somebody lets go of it: it is worth while to
        #: try by the clock. Set at the end of a turn; the loop's thread may look at it.
        self.waits = False

    def __contains__(self, record_id: str) -> bool:
        """Whether something of this record would not go."""
        return record_id in self._host.stuck

    def owed(self, uid: int) -> int:
        """How many records of what was one user's alone would not go."""
        return sum(record.header.get("for") == uid for record in self._stuck)

    def part(self, record: Record, name: str) -> list[Step]:
        """Take one part back, whole or half-made; what is stuck stays in the record.

        :return: the steps that the part had.
        """
        former = list(record.parts.get(name, ()))
        if name in record.parts:
            record.parts[name] = take_back(record.parts[name], self._host)
            if not record.parts[name]:
                del record.parts[name]
        return former

    def record(self, record: Record) -> None:
        """Take all parts back, last first, and forget the record if nothing is stuck."""
        self._record(record)
        self._settle()

    def remains(self) -> list[str]:
        """What would not go, each with why, after one more try."""
        lines = []
        for record in self._stuck:
            for steps in record.parts.values():
                for step in reversed(steps):
                    try:
                        step.undo(self._host)
                    except Exception as error:
                        lines.append(f"{record.id}: cannot {step.describe_undo()}: {error}")
        self._host.vfio.let_go()
        self.retry()
        return lines

    def retry(self) -> None:
        """Once more for everything that was stuck."""
        stuck, self._stuck = self._stuck, []
        for record in stuck:
            self._record(record)
        self._settle()

    def _record(self, record: Record) -> None:
        for name in reversed(list(record.parts)):
            self.part(record, name)
        if not record.parts:
            self._host.stuck.discard(record.id)
            self._journal.remove(record.id)
            return
        self._host.stuck.add(record.id)
        self._stuck.append(record)
        with contextlib.suppress(HostFailure):
            self._journal.write(record)

    def _settle(self) -> None:
        left = {id(step) for one in self._stuck for part in one.parts.values() for step in part}
        self.waits = any(id(step) in left for step in self._host.waiting)
        self._host.waiting[:] = [step for step in self._host.waiting if id(step) in left]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which leases of a former broker are still good.

A lease is good when its record can be understood, something that was given is as it was given, and
its FIFO is held. Of a good one, what was never answered or is not as it was given is undone here;
what is not good is only named. Nothing is counted or kept: ``leases.py`` does that with the answer.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from . import hold
from .errors import HostFailure
from .lease import RECORD_PREFIX, Lease, kind_word

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .host import Host
    from .journal import Journal, Record
    from .kind import ResourceKind
    from .shared import SharedResources
    from .undo import Undo


class Judge:
    """Looks at records, and at the host that they speak of."""

    def __init__(
        self,
        host: Host,
        journal: Journal,
        kinds: Mapping[str, ResourceKind],
        shared: SharedResources,
        undo: Undo,
    ) -> None:
        self._host = host
        self._journal = journal
        self._kinds = kinds
        self._shared = shared
        self._undo = undo

    def look(self, journal: Iterable[Record]) -> tuple[list[tuple[Lease, int]], list[Record]]:
        """Divide leases; what they share is told to who keeps it.

        :return: the good ones, each with the read end of its FIFO, which is the caller's; and the
            records of those that have ended.
        """
        alive: list[tuple[Lease, int]] = []
        dead: list[Record] = []
        # What leases share comes first: a lease is judged by it.
        for record in sorted(journal, key=lambda record: record.id.startswith(RECORD_PREFIX)):
            if not record.id.startswith(RECORD_PREFIX):
                self._shared.found(record)
                continue
            lease = Lease.of(record)
            usable = lease.is_sound(self._kinds, self._shared) and self._mend(lease)
            watch = hold.reopen(self._host.paths.holds / lease.id) if usable else None
            if watch is None:
                dead.append(record)
            else:
                alive.append((lease, watch))
        return alive, dead

    def _mend(self, lease: Lease) -> bool:
        """Give back the parts that were never answered, half dropped, or are not as given.

        A broker that dies between an Add and its answer takes the new TAP's only fd with it.

        :return: whether anything that was given is left.
        """
        ended = lease.unfinished
        kept = {name: steps for name, steps in lease.grants if name not in ended}
        broken = [
            name
            for name, steps in kept.items()
            if self._kinds[kind_word(name)].intact(steps, self._host)
        ]
        gone = lease.with_what_rests([*ended, *broken])
        for name in gone:
            lease.shared.pop(name, None)
            lease.rests.pop(name, None)
            self._undo.part(lease.record, name)
            if name in lease.record.parts:
                lease.shared[name] = []  # what would not go needs nothing that others have
        if gone:
            # What only these needed is gone in a moment, and the next broker would miss it.
            with contextlib.suppress(HostFailure):
                self._journal.write(lease.record)
        return not broken or not kept.keys() <= set(gone)

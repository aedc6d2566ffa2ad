# SPDX-License-Identifier: LGPL-2.1-or-later
"""What several leases use together: the tables, a network, forwarding.

Made for the first, undone after the last; each a journal record of its own, written ``complete``
when it is, and ``for`` the uid whose alone it is, where it is one user's. Worker thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from .errors import BrokerError, HostFailure
from .forwarding import Forward
from .journal import Journal, Record
from .network import FORWARDING, BridgeForward, uplink_steps
from .steps import carry_out, take_back

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .host import Host
    from .kind import Adopted, ResourceKind, Shared
    from .steps import Step
    from .undo import Undo

log = logging.getLogger(__name__)


class SharedResources:
    """The records, and how many parts of leases use each."""

    def __init__(
        self, host: Host, journal: Journal, kinds: Mapping[str, ResourceKind], undo: Undo
    ) -> None:
        self._host = host
        self._journal = journal
        self._kinds = kinds
        self._undo = undo
        self._records: dict[str, Record] = {}
        self._users: Counter[str] = Counter()

    def __contains__(self, shared_id: str) -> bool:
        return shared_id in self._records

    def use(self, shared: Shared) -> None:
        """Have it there, and count one user more.

        :raise BrokerError: it could not be made; nothing of it is left, nobody is counted.
        """
        if shared.id not in self._records:
            self._make(shared)
        self.count([shared.id])

    def count(self, shared_ids: Iterable[str]) -> None:
        """One user more of each, who has it already."""
        self._users.update(shared_ids)

    def unuse(self, shared_ids: Iterable[str]) -> None:
        """One user less of each; :meth:`collect` acts on it."""
        self._users.subtract(shared_ids)

    def collect(self) -> None:
        """Undo what nobody uses any more, last made first."""
        for shared_id in reversed(list(self._records)):
            if self._users[shared_id] <= 0:
                record = self._records.pop(shared_id)
                former = list(record.parts.get("", ()))
                self._undo.record(record)
                for kind in self._kinds.values():
                    kind.ended(former)

    def refresh_uplinks(self) -> None:
        """The default route or global forwarding changed: follow."""
        record = self._records.get(FORWARDING)
        if record is None:
            return
        steps = record.parts.setdefault("", [])
        have = {step.ifindex: step for step in steps if isinstance(step, Forward)}
        want = {step.ifindex: step for step in uplink_steps(self._host)}
        for ifindex in have.keys() - want.keys():
            if not take_back([have[ifindex]], self._host):
                steps.remove(have[ifindex])
        for ifindex in want.keys() - have.keys():
            self._forward(record, want[ifindex])
        self._journal.write(record)
        self._forward_again()
        self._restrict_uplinks()

    # Section: a new broker

    def found(self, record: Record) -> None:
        """A former broker's record."""
        self._records[record.id] = record

    def adopt(self, adopted: Adopted) -> None:
        """Take over what is complete."""
        for record in self._records.values():
            if record.header.get("complete") is True:
                for kind in self._kinds.values():
                    kind.adopt(record.parts.get("", ()), adopted)

    def resume(self) -> None:
        """Start again what ended with the former broker."""
        for record in self._records.values():
            for step in record.parts.get("", ()):
                try:
                    step.resume(self._host)
                except BrokerError:
                    log.exception("cannot resume: %s", step.describe())
        self.refresh_uplinks()

    def _make(self, shared: Shared) -> None:
        # What is left of a former one would be taken back later, from under this one.
        self._undo.retry()
        if shared.id in self._undo:
            raise HostFailure(f"the host has not let go of the former {shared.id}")
        header: dict[str, object] = {"complete": False}
        if shared.uid is not None:
            header["for"] = shared.uid
        record = Record(shared.id, header, {"": []})
        steps = shared.steps()
        for kind in self._kinds.values():
            kind.begun(steps)
        try:
            carry_out(steps, record.parts[""], self._host, lambda: self._journal.write(record))
            record.header["complete"] = True
            self._journal.write(record)
        except BaseException:
            self._undo.record(record)
            for kind in self._kinds.values():
                kind.ended(steps)
            raise
        self._records[shared.id] = record
        if shared.id == FORWARDING:
            self._restrict_uplinks()

    def _forward(self, record: Record, step: Forward) -> None:
        steps = record.parts[""]
        steps.append(step)
        self._journal.write(record)
        try:
            steps[-1] = step.execute(self._host)
        except OSError:
            steps.pop()  # the interface is gone again
            log.warning("cannot %s", step.describe())

    def _forward_again(self) -> None:
        """Turning global forwarding off turns off every interface's: ours go on."""
        for record in self._records.values():
            for step in record.parts.get("", ()):
                mine = isinstance(step, Forward) and not step.former
                if mine or isinstance(step, BridgeForward):
                    try:
                        step.execute(self._host)
                    except OSError:
                        log.warning("cannot %s", step.describe())

    def _restrict_uplinks(self) -> None:
        steps: list[Step] = self._records[FORWARDING].parts.get("", [])
        turned_on = {s.ifindex for s in steps if isinstance(s, Forward) and not s.former}
        self._host.firewall.set_uplinks(frozenset(turned_on))

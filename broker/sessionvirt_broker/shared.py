# SPDX-License-Identifier: LGPL-2.1-or-later
"""What several leases use together: the tables, a network, forwarding.

Made for the first, undone after the last; each a journal record of its own, written ``complete``
when it is, and ``for`` the uid whose alone it is, where it is one user's. Worker thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING

from .errors import BrokerError, HostFailure
from .forwarding import BridgeForward, Forward, uplink_steps
from .journal import Journal, Record
from .network import UPLINKS_OF, Bridge
from .publishsteps import RouteLocalnet
from .steps import carry_out, take_back

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .host import Host
    from .kind import Adopted, ResourceKind, Shared
    from .undo import Undo

log = logging.getLogger(__name__)

#: In a record's header: kept without users, and the ids of what it needs for that, itself included.
_KEPT = "kept"


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
                if shared_id in UPLINKS_OF:
                    with contextlib.suppress(BrokerError):  # the next change puts it right
                        self._restrict_uplinks()

    def keep(self, wanted: Mapping[str, Sequence[Shared]]) -> None:
        """Have these there without any user, and no longer what was kept before.

        One that cannot be made is logged, and left out.

        :param wanted: what each needs, itself last, by its record's id.
        """
        for record in self._records.values():
            kept = record.id in wanted and self._is_there(record)
            if _KEPT in record.header and not kept:
                self._let_go(record)
        self.collect()
        for shared_id, needs in wanted.items():
            if shared_id in self._records and _KEPT in self._records[shared_id].header:
                continue
            used: list[str] = []
            try:
                for shared in needs:
                    self.use(shared)
                    used.append(shared.id)
                record = self._records[shared_id]
                record.header[_KEPT] = used
                self._journal.write(record)
            except Exception:  # whatever one network is about, the broker starts
                log.exception("cannot keep %s", shared_id)
                if shared_id in self._records:
                    self._records[shared_id].header.pop(_KEPT, None)
                self.unuse(used)
        self.collect()

    def _let_go(self, record: Record) -> None:
        kept = record.header.pop(_KEPT)
        assert isinstance(kept, list)
        self.unuse(kept)
        self._journal.write(record)

    def _is_there(self, record: Record) -> bool:
        """Whether somebody has taken the bridge away while nobody looked."""
        made = [step for step in record.parts.get("", ()) if isinstance(step, Bridge)]
        found = [self._host.links.by_name(step.bridge) for step in made]
        return all(
            link is not None and link.ifindex == step.ifindex
            for link, step in zip(found, made, strict=True)
        )

    def refresh_uplinks(self) -> None:
        """A default route or global forwarding changed: follow."""
        known = [one for one in UPLINKS_OF if one in self._records]
        for shared_id in known:
            self._refresh(self._records[shared_id], UPLINKS_OF[shared_id])
        if known:
            self._forward_again()
            self._restrict_uplinks()

    def _refresh(self, record: Record, version: int) -> None:
        steps = record.parts.setdefault("", [])
        have = {step.ifindex: step for step in steps if isinstance(step, Forward)}
        want = {step.ifindex: step for step in uplink_steps(self._host, version)}
        for ifindex in have.keys() - want.keys():
            if not take_back([have[ifindex]], self._host):
                steps.remove(have[ifindex])
        for ifindex in want.keys() - have.keys():
            self._forward(record, want[ifindex])
        self._journal.write(record)

    def rely_on_rules(self, *, there: bool) -> None:
        """The firewall's rules are there, or not: what only they keep guests from opens or shuts.

        The records stay as they are: to shut is not to undo.
        """
        for record in self._records.values():
            for step in record.parts.get("", ()):
                if isinstance(step, RouteLocalnet):
                    with contextlib.suppress(OSError):  # the bridge is gone, and its guests
                        if there:
                            step.open(self._host)
                        else:
                            step.shut(self._host)

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
            kept = record.header.get(_KEPT, [])
            if isinstance(kept, list) and all(one in self._records for one in kept):
                self.count(kept)
            else:
                del record.header[_KEPT]

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
        if shared.id in UPLINKS_OF:
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
                    except (OSError, BrokerError):
                        log.warning("cannot %s", step.describe())

    def _restrict_uplinks(self) -> None:
        for shared_id, version in UPLINKS_OF.items():
            record = self._records.get(shared_id)
            steps = record.parts.get("", []) if record else []
            turned_on = {s.ifindex for s in steps if isinstance(s, Forward) and not s.former}
            self._host.firewall.set_uplinks(version, frozenset(turned_on))

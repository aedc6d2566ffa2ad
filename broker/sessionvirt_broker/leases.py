# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who holds what: leases, their beginning and end.

Everything here runs on the worker thread, one call after the other, so deciding and taking cannot
be separated by another call. A lease is a journal record with a part for each grant; what several
leases need is ``shared.py``'s.

``complete`` in a record's header says that its maker got to the end. At the start of a broker what
is not complete is undone: its caller never had an answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import hold
from .errors import (
    HostFailure,
    InvalidRequest,
    NotFound,
    NotSupported,
    StateChanged,
)
from .kind import Adopted, Owner, Resting
from .lease import Acquired, Granted, Lease, grant_id, kind_word
from .limits import Share, check
from .listing import Listing
from .memlock import Allowance, process_of, raise_limit
from .obstacles import Obstacles
from .shared import SharedResources
from .steps import carry_out
from .takeover import Judge
from .tally import Tally
from .undo import Undo
from .upkeep import Upkeep
from .wire import Fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .config import Configuration
    from .host import Host
    from .journal import Journal
    from .kind import Offer, Plan, Request, ResourceKind, Shared, Watched
    from .processes import Process
    from .steps import Step
    from .wire import TypedValue

log = logging.getLogger(__name__)

#: A request as it came: the kind's word and its fields.
RawRequest = tuple[str, "Mapping[str, TypedValue]"]


@dataclass(frozen=True, slots=True)
class Changed:
    """A lease that is not as it was given.

    :param dropped: the grants that it has no more; empty: all of it must end.
    """

    lease: str
    uid: int
    why: str
    dropped: tuple[str, ...]


class Leases:
    """All of them."""

    def __init__(self, host: Host, journal: Journal, kinds: Mapping[str, ResourceKind]) -> None:
        self._host = host
        self._journal = journal
        self._kinds = kinds
        self._leases: dict[str, Lease] = {}
        self._undo = Undo(host, journal)
        self._shared = SharedResources(host, journal, kinds, self._undo)
        self._tally = Tally()
        self._allowance = Allowance()
        self.upkeep = Upkeep(host.firewall.kept, lambda: host.firewall.port, self._rely)
        self.obstacles = Obstacles(host, lambda: self._leases.values())
        self.listing = Listing(host, self._undo, self._held, lambda: self.upkeep.degraded)

    # Section: questions

    def __len__(self) -> int:
        return len(self._leases)

    def watched(self) -> frozenset[Watched]:
        """What was given, as the kernel names it. May be asked from the loop's thread."""
        return self._tally.watched()

    def parse(
        self, raw: Sequence[RawRequest], configuration: Configuration, first: int = 0
    ) -> list[tuple[ResourceKind, Request]]:
        """Validate the requests of one call."""
        if not 1 <= len(raw) <= configuration.limits.requests_per_call:
            limit = configuration.limits.requests_per_call
            raise InvalidRequest(f"requests: must be from 1 to {limit}")
        parsed = []
        for number, (word, values) in enumerate(raw):
            kind = self._kinds.get(word)
            if kind is None:
                raise NotSupported(f"requests[{number}]: no such kind of request")
            fields = Fields(f"requests[{number}]", values)
            parsed.append((kind, kind.parse(fields, first + number, configuration)))
        return parsed

    def is_ready(self, raw: Sequence[RawRequest], configuration: Configuration) -> bool:
        """Whether the host has what it needs for these; else :meth:`prepare`."""
        parsed = self.parse(raw, configuration)
        return all(kind.is_ready(request, self._host) for kind, request in parsed)

    def prepare(self, raw: Sequence[RawRequest], configuration: Configuration) -> None:
        """Have what the host needs for these."""
        for kind, request in self.parse(raw, configuration):
            if not kind.is_ready(request, self._host):
                kind.prepare(request, self._host)

    def survey(
        self,
        raw: Sequence[RawRequest],
        owner: Owner,
        configuration: Configuration,
        lease: str | None = None,
    ) -> list[Offer]:
        """What would be given for ``raw``, and whether there is room for it."""
        first = 0
        if lease is not None:
            held = self._own(lease, owner.uid)
            first, owner = held.next_number, held.recipient
        parsed = self.parse(raw, configuration, first)
        rested_on = {request.on for _, request in parsed if isinstance(request, Resting)}
        parts, offers = dict(owner.parts), []
        for kind, request in parsed:
            recipient = replace(owner, parts=parts)
            if isinstance(request, Resting) and request.on not in parts:
                raise NotFound(f"requests: the lease has no grant {request.on}")
            offers.append(kind.survey(request, recipient, configuration, self._host))
            if (name := grant_id(kind, request)) in rested_on:
                parts[name] = kind.plan(request, recipient, configuration, self._host).steps
        wanted = Share(leases=0 if lease else 1)
        for offer in offers:
            wanted = wanted.plus(offer.share)
        # A group that is not given back is a device that nobody else has either.
        held_now = self._tally.held(owner.uid).plus(Share(devices=self._undo.owed(owner.uid)))
        check(held_now, wanted, len(self._leases), configuration.limits)
        return offers

    def outline(
        self, raw: Sequence[RawRequest], owner: Owner, configuration: Configuration
    ) -> list[tuple[str, str]]:
        """Every step in words, with its undo; no side effect."""
        seen: set[str] = set()
        lines, parts = [], dict(owner.parts)
        for kind, request in self.parse(raw, configuration):
            recipient = replace(owner, parts=parts)
            plan = kind.plan(request, recipient, configuration, self._host)
            parts[grant_id(kind, request)] = plan.steps
            steps: list[Step] = []
            for shared in plan.shared:
                if shared.id not in self._shared and shared.id not in seen:
                    seen.add(shared.id)
                    steps += shared.steps()
            steps += plan.steps
            lines += [(step.describe(), step.describe_undo()) for step in steps]
        return lines

    def owner(self, lease_id: str, uid: int) -> Owner:
        """The owner of a lease.

        :raise NotFound: no such lease, or another user's: one sentence for both.
        """
        return self._own(lease_id, uid).owner

    def addresses(self, lease_id: str, uid: int) -> tuple[Owner, list[str]]:
        """Whose a lease is, and the addresses that its guest's interfaces were given.

        :raise NotFound: as :meth:`owner`.
        """
        lease = self._own(lease_id, uid)
        found: list[str] = []
        for facts in self._all_facts(lease):
            for key in ("ipv4", "ipv6"):
                given = facts.get(key, ())
                assert isinstance(given, tuple)
                found += given
        return lease.owner, found

    # Section: beginning

    def acquire(
        self,
        raw: Sequence[RawRequest],
        owner: Owner,
        configuration: Configuration,
        shown: Sequence[Offer],
        allowed: str,
    ) -> Acquired:
        """Make a lease.

        :param shown: what :meth:`survey` said before the user did; it must say the same now.
        :raise StateChanged: it does not.
        :raise BrokerError: a step failed, and everything is as it was.
        """
        self._still(raw, owner, configuration, shown, None)
        lease_id = secrets.token_hex(16)
        lease = Lease.new(lease_id, owner, allowed)
        try:
            watch, write_end = hold.create(self._host.paths.holds / lease_id)
        except OSError as error:
            raise HostFailure("the host refused to make a FIFO below /run") from error
        try:
            grants = self._grow(lease, raw, configuration)
        except BaseException:
            os.close(watch)
            os.close(write_end)
            self._forget(lease)
            raise
        self._leases[lease_id] = lease
        self._tally.lease_begun(owner.uid)
        return Acquired(lease_id, write_end, watch, grants)

    def add(
        self,
        lease_id: str,
        uid: int,
        raw: Sequence[RawRequest],
        configuration: Configuration,
        shown: Sequence[Offer],
    ) -> tuple[Granted, ...]:
        """More for a lease; on failure it is as it was."""
        lease = self._own(lease_id, uid)
        self._still(raw, lease.owner, configuration, shown, lease_id)
        return self._grow(lease, raw, configuration)

    def _still(
        self,
        raw: Sequence[RawRequest],
        owner: Owner,
        configuration: Configuration,
        shown: Sequence[Offer],
        lease: str | None,
    ) -> None:
        if self.survey(raw, owner, configuration, lease) != list(shown):
            raise StateChanged("the host changed since it was asked about; ask again")

    def _grow(
        self, lease: Lease, raw: Sequence[RawRequest], configuration: Configuration
    ) -> tuple[Granted, ...]:
        """Carry out all requests, or none; ``lease`` is journalled as it grows."""
        first = lease.next_number
        new: list[str] = []
        try:
            for kind, request in self.parse(raw, configuration, first):
                name = grant_id(kind, request)
                plan = kind.plan(request, lease.recipient, configuration, self._host)
                new.append(name)
                if isinstance(request, Resting):
                    lease.rests[name] = request.on
                self._carry_out(lease, name, kind, plan)
            lease.record.header["next"] = first + len(new)
            lease.record.header["complete"] = True
            self._journal.write(lease.record)
        except BaseException:
            for name in reversed(new):
                self._take_part(lease, name)
            with contextlib.suppress(HostFailure):
                self._journal.write(lease.record)
            self._shared.collect()
            raise
        return tuple(self._granted(lease, name) for name in new)

    def _carry_out(self, lease: Lease, name: str, kind: ResourceKind, plan: Plan) -> None:
        uses: list[str] = lease.shared.setdefault(name, [])
        for shared in plan.shared:
            self._shared.use(shared)
            uses.append(shared.id)
        done = lease.record.parts.setdefault(name, [])
        kind.begun(plan.steps)
        try:
            carry_out(plan.steps, done, self._host, lambda: self._journal.write(lease.record))
        except BaseException:
            kind.ended(plan.steps)
            raise
        self._count(lease, name)

    # Section: end

    def release(self, lease_id: str, uid: int | None = None) -> Owner | None:
        """Give everything of a lease back.

        :param uid: whose it must be; None: the broker itself knows that it has ended.
        :return: whose it was; None (only where ``uid`` is None): it had ended already.
        """
        if uid is not None:
            self._own(lease_id, uid)
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return None
        self._tally.lease_ended(lease.owner.uid)
        self._forget(lease)
        return lease.owner

    def drop(self, lease_id: str, uid: int, names: Sequence[str]) -> Owner:
        """Give some grants back."""
        lease = self._own(lease_id, uid)
        for name in names:
            if name not in lease.record.parts:
                raise NotFound("grants: the lease has no such grant")
        self._give_back(lease, lease.with_what_rests(names))
        return lease.owner

    def _give_back(self, lease: Lease, names: Sequence[str]) -> None:
        # First the word, then the deed: a crash between must not look like a broken lease.
        left = lease.ending
        lease.record.header["ending"] = [*left, *(name for name in names if name not in left)]
        try:
            self._journal.write(lease.record)
        except BaseException:
            lease.record.header["ending"] = left
            raise
        for name in names:
            self._take_part(lease, name)
        # What would not go is no grant any more: the next broker tries it again.
        lease.record.header["ending"] = [n for n in lease.ending if n in lease.record.parts]
        try:
            self._journal.write(lease.record)
        finally:
            self._shared.collect()

    def _forget(self, lease: Lease) -> None:
        """Undo every part, and what nobody needs then."""
        grants = self._all_facts(lease)
        used = {one for ids in lease.shared.values() for one in ids}
        for name in lease.with_what_rests(lease.record.parts):
            self._take_part(lease, name)
        (self._host.paths.holds / lease.id).unlink(missing_ok=True)
        self._undo.retry()
        self._undo.record(lease.record)
        self._shared.collect()
        self.listing.ended(lease, grants, used)

    def _take_part(self, lease: Lease, name: str) -> None:
        """Undo one part, whole or half-made."""
        self._shared.unuse(lease.shared.pop(name, ()))
        lease.rests.pop(name, None)
        former = self._undo.part(lease.record, name)
        if name in lease.record.parts:
            lease.shared[name] = []  # what would not go needs nothing that others have
        if self._tally.ended(lease.id, name):
            self._kind_of(name).ended(former)

    @property
    def waits(self) -> bool:
        """Whether something is to be given back when somebody lets go of it: :meth:`retry`."""
        return self._undo.waits

    def retry(self) -> bool:
        """Try once more to give back what would not go.

        :return: whether something still waits.
        """
        self._undo.retry()
        self.listing.forget()
        return self._undo.waits

    def lock_memory(self, lease_id: str, uid: int, pidfd: int, size_bytes: int, most: int) -> int:
        """Let a process of a lease's user lock memory, as VFIO does.

        :param most: what all processes of the user may lock together.
        :return: its pid.
        """
        lease = self._own(lease_id, uid)
        if not any(kind_word(name) == "pci" for name, _ in self._whole(lease)):
            raise NotSupported("nothing that the lease has locks memory")
        process = process_of(pidfd)
        self._allowance.check(uid, process, size_bytes, most)
        raise_limit(pidfd, uid, size_bytes)
        lease.record.header["locks"] = self._allowance.note(uid, process, size_bytes)
        lease.record.header["process"] = process.encode()
        self._journal.write(lease.record)
        return process.pid

    def holder(self, lease_id: str) -> tuple[Owner, Process | None]:
        """Whose a lease is, whoever asks, and the process that has what it gave.

        :raise NotFound: no such lease.
        """
        lease = self._leases.get(lease_id)
        if lease is None:
            raise NotFound("there is no such lease")
        return lease.owner, lease.process

    def remains(self) -> list[str]:
        """What is left of leases and networks that have ended, each with why; for a person."""
        return self._undo.remains()

    # Section: what the kernel reports

    def changed(self, names: Iterable[Watched]) -> list[Changed]:
        """Leases with something among ``names`` that is no longer as it was given.

        What is gone, as when a guest's device is unplugged, is dropped from its lease; what was
        changed is to end it.
        """
        found = []
        for lease_id in self._tally.owners(names):
            lease = self._leases[lease_id]
            whole = self._whole(lease)
            broken = {name: why for name, steps in whole if (why := self._broken(name, steps))}
            gone = [
                name
                for name, steps in whole
                if name in broken and self._kind_of(name).is_gone(steps, self._host)
            ]
            if not broken:
                continue
            all_gone = lease.with_what_rests(gone)
            if len(gone) < len(broken) or len(all_gone) == len(whole):
                gone = []
            else:
                self._give_back(lease, all_gone)
            found.append(Changed(lease_id, lease.owner.uid, broken.popitem()[1], tuple(gone)))
        return found

    def refresh_uplinks(self) -> None:
        """The default route or global forwarding changed."""
        self._shared.refresh_uplinks()

    def keep(self, wanted: Mapping[str, Sequence[Shared]]) -> None:
        """As of :meth:`SharedResources.keep`."""
        self._shared.keep(wanted)

    # Section: a new broker

    def reconcile(self) -> list[tuple[str, int]]:
        """Take over what a former broker left, and undo what has ended since.

        :return: lease and read end of each FIFO that is held; the caller owns the fds.
        """
        judge = Judge(self._host, self._journal, self._kinds, self._shared, self._undo)
        alive, dead = judge.look(self._journal.load())
        self._adopt([lease for lease, _ in alive])
        for record in dead:
            self._undo.record(record)  # nothing of it was counted here
        for path in self._host.paths.holds.iterdir():
            if path.name not in self._leases:
                path.unlink()
        self._shared.collect()
        self._shared.resume()
        self._rely()
        return [(lease.id, watch) for lease, watch in alive]

    def _adopt(self, alive: Sequence[Lease]) -> None:
        adopted = Adopted(taps=[], networks=[])
        self._shared.adopt(adopted)
        for lease in alive:
            self._leases[lease.id] = lease
            self._tally.lease_begun(lease.owner.uid)
            if (process := lease.process) is not None:
                self._allowance.note(lease.owner.uid, process, lease.locks)
            for name, steps in lease.grants:
                self._shared.count(lease.shared.get(name, ()))
                self._kind_of(name).adopt(steps, adopted)
                self._count(lease, name)
        try:
            self._host.firewall.adopt(
                adopted.taps,
                adopted.networks,
                adopted.macvtaps,
                adopted.filters,
                adopted.published,
            )
        except HostFailure as error:
            # Nothing new is given then, but what there is can be given back.
            log.exception("the firewall could not be taken over")
            self.upkeep.failed(str(error))
        try:
            self._host.throttle.adopt(adopted.limits, self._host.links, self._host.firewall.policer)
        except HostFailure:
            log.exception("the limits of what guests send could not be taken over")

    # Section: small things

    def _rely(self) -> None:
        self._shared.rely_on_rules(there=not self.upkeep.degraded)

    def _held(self) -> Iterator[tuple[Lease, list[dict[str, object]]]]:
        for lease in self._leases.values():
            yield lease, self._all_facts(lease)

    def _all_facts(self, lease: Lease) -> list[dict[str, object]]:
        return [self._facts(*grant) for grant in self._whole(lease)]

    def _own(self, lease_id: str, uid: int) -> Lease:
        lease = self._leases.get(lease_id)
        if lease is None or lease.owner.uid != uid:
            raise NotFound("there is no such lease")
        return lease

    def _whole(self, lease: Lease) -> list[tuple[str, list[Step]]]:
        """Its grants, without what is left of one whose undo failed."""
        return [grant for grant in lease.grants if self._tally.is_whole(lease.id, grant[0])]

    def _broken(self, name: str, steps: Sequence[Step]) -> str:
        """Why a grant is no longer as it was given; empty: it is."""
        return self._kind_of(name).intact(steps, self._host)

    def _kind_of(self, name: str) -> ResourceKind:
        return self._kinds[kind_word(name)]

    def _facts(self, name: str, steps: Sequence[Step]) -> dict[str, object]:
        return {"id": name, **self._kind_of(name).grant(steps)}

    def _granted(self, lease: Lease, name: str) -> Granted:
        facts = self._facts(name, lease.record.parts[name])
        made_for = str(facts[self._kind_of(name).fds_fact])
        return Granted(facts, tuple(self._host.fds.pop(made_for, ())))

    def _count(self, lease: Lease, name: str) -> None:
        """A part is whole."""
        kind, steps = self._kind_of(name), lease.record.parts[name]
        watched, share = kind.watched(steps), kind.share(steps)
        self._tally.begun(lease.id, name, lease.owner.uid, watched, share)

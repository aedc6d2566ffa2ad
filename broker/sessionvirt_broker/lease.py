# SPDX-License-Identifier: LGPL-2.1-or-later
"""One lease: whose it is, and what the journal has of it.

The header of its record, plain JSON::

    uid, vm     whose, and for which VM
    since       seconds since the epoch
    allowed     "yes" without a prompt, "configured" in broker.toml beforehand, "asked" after one
    shared      part -> ids of the shared records that it uses
    rests       part -> the part that it does not outlive; may be absent
    next        the number that the next grant gets
    ending      grants that are being given back, or would not go; may be absent
    process     the one that LockMemory named last, and
    locks       the bytes that it may lock; both may be absent
    complete    its maker got to the end; without it nobody had an answer
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .journal import Record
from .kind import Owner
from .processes import Process
from .wire import VmName

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .kind import Request, ResourceKind
    from .shared import SharedResources
    from .steps import Step

RECORD_PREFIX = "lease-"
#: Kinds that only take away. What they rest on goes first: while a guest can still send, it is kept
#: from what it was.
_LAST = frozenset({"filter"})


@dataclass(frozen=True, slots=True)
class Granted:
    """One grant, on its way to the caller; whoever has it owns ``fds``."""

    facts: Mapping[str, object]
    fds: tuple[int, ...]


def close_grants(grants: Iterable[Granted]) -> None:
    """Close their fds; they were sent, or could not be."""
    for grant in grants:
        for descriptor in grant.fds:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Acquired:
    """A new lease. Whoever has it owns ``hold``, ``watch`` and the grants' fds."""

    lease: str
    hold: int
    watch: int
    grants: tuple[Granted, ...]

    def close(self) -> None:
        """Close what goes to the caller; it was sent, or could not be."""
        os.close(self.hold)
        close_grants(self.grants)


@dataclass(slots=True)
class Lease:
    """One lease, as the journal has it."""

    id: str
    owner: Owner
    record: Record

    @classmethod
    def new(cls, lease_id: str, owner: Owner, allowed: str) -> Lease:
        """A lease with nothing in it yet."""
        header: dict[str, object] = {
            "uid": owner.uid,
            "vm": owner.vm,
            "since": int(time.time()),
            "allowed": allowed,
            "shared": {},
            "next": 0,
            "complete": False,
        }
        return cls(lease_id, owner, Record(RECORD_PREFIX + lease_id, header))

    @classmethod
    def of(cls, record: Record) -> Lease:
        """A lease from its record; :meth:`is_sound` says whether it is more than steps."""
        uid = record.header.get("uid")
        owner = Owner(uid if type(uid) is int else -1, VmName(str(record.header.get("vm"))))
        return cls(record.id.removeprefix(RECORD_PREFIX), owner, record)

    @property
    def grants(self) -> Iterator[tuple[str, list[Step]]]:
        """Id and steps of each."""
        return iter(self.record.parts.items())

    @property
    def recipient(self) -> Owner:
        """The owner, with what the lease has already of what is shared."""
        return replace(
            self.owner,
            has=frozenset(one for ids in self.shared.values() for one in ids),
            parts=self.record.parts,
        )

    @property
    def process(self) -> Process | None:
        """The one that LockMemory named last."""
        return Process.decode(self.record.header.get("process"))

    @property
    def locks(self) -> int:
        """The bytes that it was allowed to lock."""
        size = self.record.header.get("locks")
        return size if type(size) is int and size > 0 else 0

    @property
    def next_number(self) -> int:
        """The number of the next grant."""
        return int(str(self.record.header["next"]))

    @property
    def ending(self) -> list[str]:
        """Grants that are being given back, and what is left of those that would not go."""
        ending = self.record.header.get("ending", [])
        return list(ending) if isinstance(ending, list) else []

    @property
    def unfinished(self) -> list[str]:
        """Grants that were never answered, or of which something was given back already."""
        following, ending = self.record.header.get("next"), self.ending
        if type(following) is not int:
            return []
        return [
            name
            for name in self.record.parts
            if name in ending or int("0" + name.removeprefix(kind_word(name))) >= following
        ]

    @property
    def shared(self) -> dict[str, list[str]]:
        """Part to ids of shared records.

        :raise TypeError: the record is not sound.
        """
        shared = self.record.header.get("shared")
        if not isinstance(shared, dict):
            raise TypeError("shared: not an object")
        return shared

    @property
    def rests(self) -> dict[str, str]:
        """Part to the part that it does not outlive.

        :raise TypeError: the record is not sound.
        """
        rests = self.record.header.setdefault("rests", {})
        if not isinstance(rests, dict) or not all(isinstance(on, str) for on in rests.values()):
            raise TypeError("rests: not an object of texts")
        return rests

    def with_what_rests(self, names: Iterable[str]) -> list[str]:
        """These parts and those that do not outlive them, in the order in which they are undone."""
        gone = set(names)
        gone |= {name for name, on in self.rests.items() if on in gone}
        order = [name for name in reversed(self.record.parts) if name in gone]
        return sorted(order, key=lambda name: kind_word(name) in _LAST)

    def is_sound(self, kinds: Mapping[str, ResourceKind], shared: SharedResources) -> bool:
        """Whether a record that was read back can be used as a lease, and not only undone."""
        header = self.record.header
        try:
            sound = header["complete"] is True
            sound = sound and all(isinstance(header[key], str) for key in ("vm", "allowed"))
            sound = sound and all(type(header[key]) is int for key in ("uid", "since", "next"))
            sound = sound and all(on in self.record.parts for on in self.rests.values())
            for name, steps in self.grants:
                kinds[kind_word(name)].grant(steps)
                sound = sound and all(used in shared for used in self.shared[name])
        except (KeyError, StopIteration, TypeError, ValueError):
            return False
        return sound


def grant_id(kind: ResourceKind, request: Request) -> str:
    """What the grant of a request is called: ``tap0``."""
    return f"{kind.name}{request.position}"


def kind_word(grant: str) -> str:
    """The kind of a grant: ``tap`` of ``tap0``."""
    return grant.rstrip("0123456789")

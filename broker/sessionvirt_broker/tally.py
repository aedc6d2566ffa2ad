# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is held, in numbers: each user's share, and which interface or device is of which lease.

A part counts from the moment when all its steps were carried out until it is given back; what is
left of one whose undo failed counts for nobody. Changed on the worker's thread only. Numbers only:
nothing here touches the host, or says what somebody may have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .limits import Share

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .kind import Watched

_LEASE = Share(leases=1)


class _Part(NamedTuple):
    """One part of a lease that was carried out whole."""

    uid: int
    watched: tuple[Watched, ...]
    share: Share


class Tally:
    """The account of all leases."""

    def __init__(self) -> None:
        self._held: dict[int, Share] = {}
        self._parts: dict[tuple[str, str], _Part] = {}
        #: A lease is there once for each of its parts: two may have one group of devices.
        self._by_watched: dict[Watched, list[str]] = {}

    def held(self, uid: int) -> Share:
        """What a user has."""
        return self._held.get(uid, Share())

    def watched(self) -> frozenset[Watched]:
        """What was given, as the kernel names it. May be asked from the loop's thread."""
        return frozenset(self._by_watched)

    def owners(self, changed: Iterable[Watched]) -> set[str]:
        """The leases that some of these belong to."""
        return {lease for one in changed for lease in self._by_watched.get(one, ())}

    def lease_begun(self, uid: int) -> None:
        """A user has one more lease."""
        self._held[uid] = self.held(uid).plus(_LEASE)

    def lease_ended(self, uid: int) -> None:
        """A user has one lease less."""
        self._lessen(uid, _LEASE)

    def begun(
        self, lease: str, part: str, uid: int, watched: tuple[Watched, ...], share: Share
    ) -> None:
        """A part of a lease was carried out whole."""
        self._parts[lease, part] = _Part(uid, watched, share)
        for one in watched:
            self._by_watched.setdefault(one, []).append(lease)
        self._held[uid] = self.held(uid).plus(share)

    def ended(self, lease: str, part: str) -> bool:
        """A part is given back.

        :return: whether it had been carried out whole.
        """
        counted = self._parts.pop((lease, part), None)
        if counted is None:
            return False
        for one in counted.watched:
            leases = self._by_watched[one]
            leases.remove(lease)
            if not leases:
                del self._by_watched[one]
        self._lessen(counted.uid, counted.share)
        return True

    def is_whole(self, lease: str, part: str) -> bool:
        """Whether a part counts."""
        return (lease, part) in self._parts

    def _lessen(self, uid: int, share: Share) -> None:
        held = self.held(uid).minus(share)
        if held == Share():
            self._held.pop(uid, None)
        else:
            self._held[uid] = held

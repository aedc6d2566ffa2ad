# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is held, as the contract's lists tell it: to a user his own, to root everybody's.

Also which leases have ended and are not wholly given back, because somebody still has a device
open: they are listed as "releasing" until that is over. Worker thread; changes nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .networkconfig import PRIVATE
from .private import private_bridge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .host import Host
    from .lease import Lease
    from .undo import Undo

    #: A lease that is held, with the facts of its grants.
    Held = tuple[Lease, Sequence[Mapping[str, object]]]

__all__ = ["Listing"]

#: Where an interface is: the type of place, and the fact of the grant that names it.
_PLACES = {"network": "network", "bridge": "bridge", "direct": "device"}


class Listing:
    """The lists.

    :param held: every lease that is held, asked anew each time.
    :param degraded: why the firewall's rules may not be there; empty: they are.
    """

    def __init__(
        self,
        host: Host,
        undo: Undo,
        held: Callable[[], Iterable[Held]],
        degraded: Callable[[], str],
    ) -> None:
        self._host = host
        self._undo = undo
        self._held = held
        self._degraded = degraded
        #: As they were listed, and the ids of the records that wait.
        self._releasing: dict[str, tuple[dict[str, object], frozenset[str]]] = {}

    def leases(self, uid: int | None) -> list[dict[str, object]]:
        """The leases of a user, or (None) of everybody."""
        held = list(self._of(uid))
        drops = self._host.firewall.drops() if held else {}
        listed = []
        for lease, grants in held:
            filtered = any(facts.get("ifname") for facts in grants)
            row = _row(lease, grants, "held", drops)
            listed.append({**row, "degraded": self._degraded() if filtered else ""})
        self.forget()
        rows = (row for row, _ in self._releasing.values())
        return listed + [row for row in rows if uid in (None, row["uid"])]

    def network_users(self, uid: int | None) -> Counter[tuple[str, str]]:
        """How many of a user's (None: everybody's) TAPs are in each place (its type, its name).

        A network and a bridge of the LAN may have the same name. Everybody's private network has,
        so its name here is its bridge's.
        """
        found: Counter[tuple[str, str]] = Counter()
        for lease, grants in self._of(uid):
            for facts in grants:
                for type_, key in _PLACES.items():
                    if name := facts.get(key):
                        is_private = (type_, name) == ("network", PRIVATE)
                        place = private_bridge(lease.owner.uid) if is_private else str(name)
                        found[type_, place] += 1
        return found

    def device_holders(self, uid: int | None) -> dict[str, str]:
        """PCI address to the VM that has it; "-": of a user that *uid* is not (None is anybody)."""
        found = {}
        for lease, grants in self._held():
            mine = uid is None or lease.owner.uid == uid
            for facts in grants:
                members = facts.get("members", ())
                assert isinstance(members, tuple)
                found.update(dict.fromkeys(members, lease.owner.vm if mine else "-"))
        return found

    def ended(self, lease: Lease, grants: Sequence[Mapping[str, object]], used: set[str]) -> None:
        """A lease was given back, or what would go of it.

        :param grants: what it had.
        :param used: ids of the records that it needed.
        """
        row = _row(lease, grants, "releasing", {})
        self._releasing[lease.id] = (row, frozenset(used | {lease.record.id}))
        self.forget()

    def is_releasing(self, lease_id: str) -> bool:
        """Whether a lease has ended, and something of it is not given back yet."""
        return lease_id in self._releasing

    def forget(self) -> None:
        """Forget those of which nothing waits any more."""
        for lease_id, (_, used) in list(self._releasing.items()):
            if not any(one in self._undo for one in used):
                del self._releasing[lease_id]

    def _of(self, uid: int | None) -> Iterable[Held]:
        return (held for held in self._held() if uid is None or held[0].owner.uid == uid)


def _row(
    lease: Lease,
    grants: Sequence[Mapping[str, object]],
    state: str,
    drops: Mapping[str, Mapping[str, int]],
) -> dict[str, object]:
    """:param drops: by interface, whoever's it is."""
    process = lease.process
    rows: list[dict[str, object]] = []
    dropped: Counter[str] = Counter()
    for facts in grants:
        row = {**facts, "fds": []}
        if "ifname" in facts:
            own = dict(drops.get(str(facts["ifname"]), {}))
            dropped.update(own)
            row["drops"] = own
        rows.append(row)
    return {
        "lease": lease.id,
        "vm": lease.owner.vm,
        "uid": lease.owner.uid,
        "state": state,
        "since": lease.record.header["since"],
        "allowed": lease.record.header["allowed"],
        "grants": rows,
        "drops": dict(dropped),
        "process": process.pid if process else 0,
        "degraded": "",
    }

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What stops the packets of guests that hold a lease, as the contract's ListObstacles tells it.

To a user of his own guests, to root of everybody's. What was read of others' rules serves until
one of the others changes any, so that who asks again and again has them listed once: ten thousand
take libnftables a second. Our own changes, which every user can cause, are not such. Worker thread,
but for :meth:`Obstacles.outdated`; changes nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from .foreign import Walk, read
from .networkconfig import Mode
from .passing import Guest, packets
from .rulecount import count_rules
from .tapsteps import AttachTap, FilterTap
from .wire import legible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .firewall import NetworkRules
    from .foreign import Obstacle, Rules
    from .host import Host
    from .lease import Lease

__all__ = ["Obstacles"]

_MOST_GUESTS = 64
_MOST_LETTERS = 128


class Obstacles:
    """The list.

    :param held: every lease that is held.
    """

    def __init__(self, host: Host, held: Callable[[], Iterable[Lease]]) -> None:
        self._host = host
        self._held = held
        self._rules: Rules | None = None
        self._changes = self._read_at = 0

    def outdated(self) -> None:
        """Somebody else changed some rule; told by the loop."""
        self._changes += 1

    def rows(self, uid: int | None, vm: str | None) -> list[dict[str, object]]:
        """The obstacles of a user's (None: everybody's) guests; of one machine, where it is named.

        Of the same interface's packets only: a guest without an obstacle has no row.
        """
        guests = [
            (lease, guest)
            for lease in self._held()
            if uid in (None, lease.owner.uid) and vm in (None, lease.owner.vm)
            for guest in self._guests(lease)
        ][:_MOST_GUESTS]
        if not guests:
            return []
        rules, walk = self._read(), Walk()
        uplinks = {
            version: next(iter(names.values()))
            for version in (4, 6)
            if (names := self._host.links.uplinks(version))
        }
        bridged = self._is_bridged()
        return [
            {"lease": lease.id, "vm": lease.owner.vm, "bridge": guest.bridge, **_row(one)}
            for lease, guest in guests
            for one in rules.obstacles(packets(guest, uplinks, bridged=bridged), walk)
        ]

    def _guests(self, lease: Lease) -> Iterable[Guest]:
        networks = {rules.bridge: rules for rules in self._host.firewall.networks()}
        for _, steps in lease.grants:
            filtered = [step for step in steps if isinstance(step, FilterTap)]
            attached = [step for step in steps if isinstance(step, AttachTap)]
            if filtered and attached:
                yield _guest(filtered[0], attached[0].bridge, networks.get(attached[0].bridge))

    def _read(self) -> Rules:
        if self._rules is None or self._read_at != self._changes:
            self._read_at = self._changes
            self._rules = None  # at no time are there two
            self._rules = read(self._host.firewall.listed_terse, count_rules)
        return self._rules

    def _is_bridged(self) -> bool:
        path = self._host.paths.proc_net / "bridge/bridge-nf-call-iptables"
        return path.exists() and path.read_text(encoding="ascii").strip() == "1"


def _row(one: Obstacle) -> dict[str, object]:
    """Names are whatever somebody called his chains."""
    names = {key: legible(getattr(one, key), _MOST_LETTERS) for key in ("table", "chain")}
    return {**asdict(one), **names}


def _guest(tap: FilterTap, bridge: str, network: NetworkRules | None) -> Guest:
    addresses = {version: own[0] for version, own in ((4, tap.ipv4), (6, tap.ipv6)) if own}
    if network is None:
        return Guest(tap.ifname, bridge, addresses, {}, frozenset())
    gateways = {
        version: own[0].partition("/")[0]
        for version, own in ((4, network.ipv4), (6, network.ipv6))
        if own
    }
    outward = {
        Mode.NAT: frozenset({4, 6} if network.nat6 else {4}),
        Mode.ISOLATED: frozenset[int](),
    }.get(network.mode, frozenset({4, 6}))
    return Guest(tap.ifname, bridge, addresses, gateways, outward)

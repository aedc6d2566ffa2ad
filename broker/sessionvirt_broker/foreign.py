# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which rule of somebody else's stops a guest's packets, by reading theirs; nothing is changed.

Every base chain of a hook must let a packet pass, whoever's it is, so each is walked for itself,
with its jumps. A rule is about the packet, is not, or that is unknown (``passing.py``): an unknown
drop is a *possible* obstacle and the walk goes on; an unknown accept makes what is found behind it
*likely* instead of *certain*.

Told are names and numbers of chains and rules, never what is in them. Named sets of addresses are
unknown, for they can have a million elements; those of interfaces are read. So are tables, the
smallest first, until that would be more rules than the broker has memory for: of what is not read,
a policy of drop is a possible obstacle. The walk has its limits, so that nobody's ruleset keeps the
worker. Worker thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .passing import LIKELY, about, matches, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .passing import Packet, Truth

    Listed = Callable[[str, object], list[dict[str, Any]]]
    Counted = Callable[[], Mapping[tuple[str, str], int] | None]

__all__ = ["Obstacle", "Rules", "Walk", "read"]

_FAMILIES = ("inet", "ip", "ip6", "bridge")
_HOOKS = frozenset({"prerouting", "input", "forward", "output", "postrouting"})
_OURS = re.compile(r"sessionvirt(_[a-z]+)?")
#: Types of the keys of named sets whose elements are read.
_SMALL = re.compile(r"(ifname|iface_index|inet_proto|ct_state|mark)")
#: Rules that are read, all in all: each is 12 kB here.
_MOST_READ = 8000
_MOST_SETS, _MOST_RULES, _MOST_DEPTH, _MOST_OBSTACLES = 64, 100_000, 16, 32
_VERDICTS = ("accept", "drop", "return", "continue", "jump", "goto", "reject", "queue")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What stops a packet.

    :param handle: of the rule; 0: the chain's policy.
    :param certainty: "certain", "likely" or "possible".
    """

    traffic: str
    ip: int
    family: str
    table: str
    chain: str
    handle: int
    hook: str
    priority: int
    verdict: str
    certainty: str


@dataclass(slots=True)
class _Table:
    """One table of somebody's: rules by chain, and elements by set; or nothing, unread."""

    family: str
    name: str
    unread: bool = False
    chains: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sets: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Base:
    """One base chain."""

    table: _Table
    name: str
    hook: str
    priority: int
    policy: str


@dataclass(frozen=True, slots=True)
class Rules:
    """Others' base chains."""

    bases: tuple[_Base, ...]

    def obstacles(self, packets: Iterable[Packet], walk: Walk) -> list[Obstacle]:
        """What stops these, in the order of the packets' ways; each is told once."""
        found: dict[tuple[object, ...], Obstacle] = {}
        for packet in packets:
            for hook in packet.hooks:
                for base in self.bases:
                    if base.hook == hook and _concerns(base, packet):
                        for one in walk.through(base, packet):
                            found.setdefault((one.traffic, one.family, *_place(one)), one)
        return list(found.values())[:_MOST_OBSTACLES]


def _place(one: Obstacle) -> tuple[object, ...]:
    return one.table, one.chain, one.handle, one.certainty


def _concerns(base: _Base, packet: Packet) -> bool:
    family = base.table.family
    return family in ("inet", "bridge") or family == ("ip" if packet.version == 4 else "ip6")


def read(listed: Listed, counted: Counted) -> Rules:
    """Everything of others' that has a base chain where a guest's packets pass.

    :param listed: what libnftables lists, without the elements of sets where it can.
    :param counted: how many rules each table has; None: too many.
    """
    bases: list[_Base] = []
    tables: dict[tuple[str, str], _Table] = {}
    for item in listed("chains", {}):
        chain = item.get("chain", {})
        family, name = str(chain.get("family")), str(chain.get("table"))
        # What NAT does is done to the packet, and it lets pass.
        if chain.get("hook") not in _HOOKS or chain.get("type") == "nat":
            continue
        if family not in _FAMILIES or _OURS.fullmatch(name):
            continue
        table = tables.setdefault((family, name), _Table(family, name))
        bases.append(
            _Base(
                table,
                str(chain["name"]),
                str(chain["hook"]),
                int(chain.get("prio", 0)),
                str(chain.get("policy", "accept")),
            )
        )
    numbers, left = counted(), _MOST_READ
    for key, table in sorted(tables.items(), key=lambda one: (numbers or {}).get(one[0], 0)):
        rules = 0 if numbers is None else numbers.get(key, 0)
        table.unread = numbers is None or rules > left
        if not table.unread:
            left -= rules
            _fill(table, listed)
    return Rules(tuple(sorted(bases, key=lambda base: base.priority)))


def _fill(table: _Table, listed: Listed) -> None:
    small: list[tuple[str, str]] = []
    for item in listed("table", {"family": table.family, "name": table.name}):
        if (rule := item.get("rule")) is not None:
            table.chains.setdefault(str(rule["chain"]), []).append(rule)
        for kind in ("set", "map"):
            one = item.get(kind)
            types = one.get("type") if one else None
            each = types if isinstance(types, list) else [types]
            if one and all(isinstance(each_, str) and _SMALL.fullmatch(each_) for each_ in each):
                small.append((kind, str(one["name"])))
    for kind, name in small[:_MOST_SETS]:
        for item in listed(kind, {"family": table.family, "table": table.name, "name": name}):
            table.sets[name] = item.get(kind, {}).get("elem", [])


class Walk:
    """One walk through base chains, with one limit for all that is asked in a call.

    Where it is reached, what is found is at most likely.
    """

    def __init__(self) -> None:
        self._left = _MOST_RULES
        self._found: list[Obstacle] = []
        self._doubt = False

    def through(self, base: _Base, packet: Packet) -> list[Obstacle]:
        """What stops the packet in this chain."""
        self._found, self._doubt = [], False
        if base.table.unread:
            if base.policy == "drop":
                self._stop(base, base.name, packet, (0, "drop"), sure=False)
            return self._found
        on_bridge = base.table.family == "bridge"
        seen = _by_port(packet) if on_bridge else packet
        end = self._chain(base, base.name, seen, sure=True, depth=0)
        if end == "return" and base.policy == "drop":
            self._stop(base, base.name, seen, (0, "drop"), sure=True)
        return self._found

    def _chain(self, base: _Base, name: str, packet: Packet, *, sure: bool, depth: int) -> str:
        """How the packet leaves a chain: "accept", "drop" or "return"."""
        for rule in base.table.chains.get(name, ()) if depth < _MOST_DEPTH else ():
            self._left -= 1
            if self._left < 0:
                self._doubt = True
                return "return"
            end = self._rule(base, rule, packet, sure=sure, depth=depth)
            if end:
                return end
        return "return"

    def _rule(
        self, base: _Base, rule: Mapping[str, Any], packet: Packet, *, sure: bool, depth: int
    ) -> str:
        """How it leaves the chain by this rule; empty: it goes on to the next."""
        expressions: Sequence[Any] = rule.get("expr") or ()
        try:
            outcomes = _outcomes(packet, expressions, base.table.sets)
        except (AttributeError, KeyError, TypeError, ValueError):
            self._doubt = True  # a form that this edition does not know
            return ""
        for verdict, found in outcomes:
            truth = found
            if truth is False:
                continue
            if truth == LIKELY:
                self._doubt, truth = True, True
            certain = sure and truth is True
            ((word, what),) = verdict.items()
            end = "return" if word == "return" else ""
            if word in ("drop", "reject"):
                self._stop(
                    base, str(rule["chain"]), packet, (int(rule["handle"]), word), sure=certain
                )
                end = "drop"
            elif word == "accept":
                end = "accept"
            elif word in ("jump", "goto"):
                target = str((what or {}).get("target"))
                end = self._chain(base, target, packet, sure=certain, depth=depth + 1)
                if end == "return" and word == "jump":
                    end = ""
            elif word == "queue":
                end = "accept"  # whoever reads the queue decides
                self._doubt = True
            if end in ("accept", "return") and truth is None:
                # It may have left here, and what is found behind may not be met.
                self._doubt, end = True, ""
            if end and truth is True:
                return end
        return ""

    def _stop(
        self, base: _Base, chain: str, packet: Packet, by: tuple[int, str], *, sure: bool
    ) -> None:
        certainty = "possible" if not sure else "likely" if self._doubt else "certain"
        self._found.append(
            Obstacle(
                packet.traffic,
                packet.version,
                base.table.family,
                base.table.name,
                chain,
                by[0],
                base.hook,
                base.priority,
                by[1],
                certainty,
            )
        )


def _by_port(packet: Packet) -> Packet:
    """The same packet as ``table bridge`` sees it: interfaces are the bridge's ports."""
    if packet.traffic == "in" or packet.iif is None:
        return replace(packet, oif=packet.port, iif=None)
    return replace(packet, iif=packet.port, oif=None)


def _outcomes(
    packet: Packet, expressions: Sequence[Any], sets: Mapping[str, Any]
) -> list[tuple[dict[str, Any], Truth]]:
    """Each verdict that a rule has, and whether the packet meets it."""
    found: list[tuple[dict[str, Any], Truth]] = []
    conditions = [one for one in expressions if isinstance(one, dict)]
    for number, one in enumerate(conditions):
        before = conditions[:number]
        if "vmap" in one:
            truth = about(packet, before, drops=False, sets=sets)
            if truth is not False:
                found += _mapped(packet, one["vmap"], truth, sets)
            continue
        verdict = _verdict(one)
        if verdict is not None:
            drops = next(iter(verdict)) in ("drop", "reject")
            found.append((verdict, about(packet, before, drops=drops, sets=sets)))
            break
    return found


def _verdict(one: Mapping[str, Any]) -> dict[str, Any] | None:
    for word in _VERDICTS:
        if word in one:
            return {word: one[word]}
    extension = one.get("xt") or {}
    if extension.get("type") == "target" and extension.get("name") in ("REJECT", "DROP"):
        return {"reject": None}
    return None


def _mapped(
    packet: Packet, vmap: Mapping[str, Any], truth: Truth, sets: Mapping[str, Any]
) -> list[tuple[dict[str, Any], Truth]]:
    data = vmap.get("data")
    pairs = sets.get(data[1:]) if isinstance(data, str) else (data or {}).get("set")
    value = value_of(packet, vmap.get("key"))
    found: list[tuple[dict[str, Any], Truth]] = []
    for pair in pairs or ():
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict)):
            continue
        verdict = _verdict(pair[1])
        meets = matches(value, "==", pair[0], sets)
        if verdict is None or meets is False:
            continue
        found.append((verdict, None if truth is None or meets is None else True))
        if meets is True:
            break
    return found

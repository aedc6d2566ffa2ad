# SPDX-License-Identifier: LGPL-2.1-or-later
"""The nft table of filters: what a guest may not, of what everybody else may.

``table bridge sessionvirt_filter`` is there only while a TAP has a filter: others pay nothing for a
packet. Its base chains look the TAP up in a map, by its name, and go to the chains of that one;
they stand right behind those of ``ruleset.py``, so whatever a filter permits, those have permitted
before. Nothing here can loosen anything: an accept ends this table only.

The text is fixed. A TAP's chains (``filterchains.py``) are JSON made of validated numbers, called
after the TAP. A change of one is one transaction, in which its rules are exchanged: there is no
moment with both or neither.

What several filters of one TAP say is what the newest says: a client that changes one adds another
and then gives the former back.

A TAP that is in no map here is not judged. A second set that knows who should be would cost every
frame of everybody a look-up; instead what somebody takes away is put back as soon as the kernel has
told of it (``upkeep.py``), the filters before the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from .errors import HostFailure
from .filterchains import BUDGET, DIRECTIONS, OUTBOUND, Judged, budget, chain_of
from .tablelook import chains_of, counters_of
from .wholetable import has_fixed_part, outline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .filterchains import Direction, Rule
    from .filterlists import Entry
    from .firewall import Commands
    from .tablelook import Lister

__all__ = ["FILTER_RULES", "FilterRules", "Filters"]

FAMILY, TABLE = "bridge", "sessionvirt_filter"
#: A chain of this name says that the table is ours. A later edition must not leave a TAP without
#: its rules while it takes this one's place.
MARKER = "sessionvirt_1"
#: The word in ListLeases for what is dropped here.
REASON: Final = "filter"

_OF_A_TAP = re.compile(r"(?:kept_)?(?:in|out)_svt[0-9a-f]{12}")


def _flows(name: str, version: int) -> str:
    """The datagrams whose answers are known. There is room for those of more than 1,000 TAPs."""
    return f"""
  set {name}{version} {{
    type ifname . ipv{version}_addr . ipv{version}_addr . inet_service . inet_service
    flags timeout, dynamic
    timeout 2m
    size 8388608
  }}"""


def _sides(side: str, direction: str) -> str:
    """What both directions have, by the kernel's word for the interface."""
    return f"""
  chain drop_{direction} {{
    {side} @dropped drop
    drop
  }}
  chain segment4_{direction} {{
    ip frag-off & 0x1fff == 1 goto drop_{direction}
    ip frag-off & 0x1fff != 0 accept
    tcp flags & (syn | ack) != syn accept
  }}
  chain settled4_{direction} {{
    meta l4proto tcp goto segment4_{direction}
    meta l4proto icmp ip frag-off & 0x1fff != 0 accept
    icmp type {{ 0, 3, 11, 12, 14 }} accept
  }}
  chain segment6_{direction} {{
    frag frag-off 1 goto drop_{direction}
    frag frag-off != 0 accept
    tcp flags & (syn | ack) != syn accept
  }}
  chain first_fragment6_{direction} {{
    @th,0,32 >= 0 return
    goto drop_{direction}
  }}
  chain settled6_{direction} {{
    frag frag-off 0 jump first_fragment6_{direction}
    meta l4proto tcp goto segment6_{direction}
    meta l4proto icmpv6 frag frag-off != 0 accept
    icmpv6 type {{ 1, 2, 3, 4, 129 }} accept
    frag frag-off != 0 return
    meta l4proto >= 0 return
    goto drop_{direction}
  }}
  chain settled_{direction} {{
    ether type ip jump settled4_{direction}
    ether type ip6 jump settled6_{direction}
    goto lifelines_{direction}
  }}
  chain lifelines_{direction} {{
    ether type ip goto lifelines4_{direction}
    ether type ip6 goto lifelines6_{direction}
  }}
  chain later_{direction} {{
    ip frag-off & 0x1fff != 0 accept
    frag frag-off != 0 accept
  }}
  chain rest_{direction} {{
    ether type ip goto drop_{direction}
    ether type ip6 goto drop_{direction}
  }}"""


FILTER_RULES = (
    f"""
table bridge {TABLE} {{
  chain {MARKER} {{
  }}
  set dropped {{
    type ifname
    counter
  }}
  map outbound {{
    type ifname : verdict
  }}
  map inbound {{
    type ifname : verdict
  }}"""
    """
  chain lifelines4_outbound {
    ip daddr 255.255.255.255 udp sport 68 udp dport 67 ip frag-off & 0x1fff == 0 accept
  }
  chain lifelines4_inbound {
    udp sport 67 udp dport 68 ip frag-off & 0x1fff == 0 accept
  }
  chain lifelines6_outbound {
    icmpv6 type { 131, 132, 133, 135, 136, 143 } accept
    ip6 daddr ff02::1:2 udp sport 546 udp dport 547 accept
  }
  chain lifelines6_inbound {
    icmpv6 type { 130, 131, 132, 133, 134, 135, 136, 143 } accept
    udp sport 547 udp dport 546 accept
  }
  chain unspecified6_outbound {
    ip6 saddr :: icmpv6 type { 133, 135, 143 } accept
  }"""
    + "".join(_flows(name, version) for name in ("asked", "heard") for version in (4, 6))
    + _sides("iifname", "outbound")
    + _sides("oifname", "inbound")
    + """
  chain untagged_inbound {
    ether type { 8021q, 0x88a8, 0x9100 } goto drop_inbound
  }
  chain dns_outbound {
    meta l4proto { tcp, udp } th dport 53 accept
  }
  chain dns_inbound {
    udp sport 53 accept
  }
  chain prerouting {
    type filter hook prerouting priority -299; policy accept;
    iifname vmap @outbound
  }
  chain forward {
    type filter hook forward priority -199; policy accept;
    oifname vmap @inbound
  }
  chain output {
    type filter hook output priority 201; policy accept;
    oifname vmap @inbound
  }
}
"""
)

_OUTLINE: Final = outline(FILTER_RULES)


@dataclass(frozen=True)
class FilterRules:
    """One filter of a TAP, with words of the contract; ``filterchains.py`` says what they are.

    :param position: its grant's; of several filters of one TAP the one with the highest holds.
    :param link_local: the guest's.
    :param uid: whose the guest is.
    """

    ifname: str
    position: int
    link_local: str
    lists: dict[str, tuple[Entry, ...]]
    deny: frozenset[str]
    only_mac: tuple[str, ...]
    addresses: tuple[str, ...]
    no_broadcast: bool
    no_multicast: frozenset[int]
    gateways: tuple[str, ...]
    uid: int

    def _judged(self, direction: Direction) -> Judged:
        outbound = direction is OUTBOUND
        other = DIRECTIONS[outbound]
        return Judged(
            direction=direction,
            ifname=self.ifname,
            deny=self.lists[f"deny_{direction.name}"],
            allow=self.lists[f"allow_{direction.name}"],
            words=self.deny,
            peers=self.only_mac,
            no_broadcast=self.no_broadcast and outbound,
            no_multicast=self.no_multicast if outbound else frozenset(),
            addresses=self.addresses if outbound else (),
            link_local=self.link_local,
            gateways=self.gateways,
            answers=self._cuts_answers(direction),
            asks=self._cuts_answers(other),
            uid=self.uid,
        )

    def _cuts_answers(self, direction: Direction) -> bool:
        """Whether the lists of a direction could keep the answer to a datagram back."""
        denied = self.lists[f"deny_{direction.name}"]
        wide = any(one.protocol in ("any", "udp") for one in denied)
        return bool(self.lists[f"allow_{direction.name}"]) or wide

    @cached_property
    def chains(self) -> dict[str, list[Rule]]:
        """Name to rules; a chain stands behind those that it goes to."""
        found: dict[str, list[Rule]] = {}
        for direction in DIRECTIONS:
            rules, kept = chain_of(self._judged(direction))
            if kept:
                found[f"kept_{direction.short}_{self.ifname}"] = kept
            if rules:
                found[f"{direction.short}_{self.ifname}"] = rules
        return found

    def maps(self) -> list[str]:
        """Those that send the TAP's frames to its chains."""
        return [one.name for one in DIRECTIONS if f"{one.short}_{self.ifname}" in self.chains]

    def install(self) -> Commands:
        """All of it; what is there of a former one is exchanged."""
        # One that is there stays as it is, with what was used of it (nf_tables_newobj()).
        commands: Commands = [
            {"add": {"limit": {**_named(budget(self.uid)), **BUDGET}}},
            _element("add", "dropped", self.ifname),
        ]
        for name, rules in self.chains.items():
            commands += [{"add": {"chain": _named(name)}}, {"flush": {"chain": _named(name)}}]
            commands += [
                {"add": {"rule": {**_IN_TABLE, "chain": name, "expr": one}}} for one in rules
            ]
        return [*commands, *(_element("add", m, self._target(m)) for m in self.maps())]

    def _target(self, name: str) -> list[object]:
        short = next(one.short for one in DIRECTIONS if one.name == name)
        return [self.ifname, {"goto": {"target": f"{short}_{self.ifname}"}}]

    def remove(self, but: FilterRules | None = None) -> Commands:
        """All of it, but what another one of the same TAP has, too."""
        kept_maps = but.maps() if but else []
        gone = [name for name in self.chains if not but or name not in but.chains]
        return [
            *(_element("delete", m, self._target(m)) for m in self.maps() if m not in kept_maps),
            *([] if but else [_element("delete", "dropped", self.ifname)]),
            *_deleted(gone),
        ]


class Filters:
    """The table, and what should be in it.

    :param load: has nft take a constant text; whether it did.
    :param run: likewise one transaction of commands.
    :param listed: what nft lists.
    """

    def __init__(
        self,
        load: Callable[[str], bool],
        run: Callable[[Commands], bool],
        listed: Lister,
    ) -> None:
        self._load = load
        self._run = run
        self._list = listed
        #: TAP to its filters, oldest first.
        self._held: dict[str, list[FilterRules]] = {}

    def add(self, rules: FilterRules) -> None:
        """Have a TAP judged by these, in place of what it was judged by.

        :raise HostFailure: nft refused; :meth:`remove` puts the former back.
        """
        first = not self._held
        held = self._held.setdefault(rules.ifname, [])
        former = held[-1] if held else None
        held.append(rules)
        held.sort(key=lambda one: one.position)
        if held[-1] is rules and (first or not self._exchange(former, rules)):
            self._rebuild()  # there is no table yet, or somebody flushed the ruleset

    def remove(self, ifname: str, position: int) -> None:
        """Forget one filter; unknown is in order. What is left for the TAP holds from then on.

        :raise HostFailure: nft refused, and it still holds.
        """
        held = self._held.get(ifname, [])
        gone = next((one for one in held if one.position == position), None)
        if gone is None:
            return
        before = dict(self._held)
        rest = [one for one in held if one is not gone]
        if rest:
            self._held[ifname] = rest
        else:
            del self._held[ifname]
        try:
            if not self._held:
                self.delete()
            elif held[-1] is gone and not self._exchange(gone, rest[-1] if rest else None):
                self._rebuild()
        except HostFailure:
            self._held = before  # else another try would do nothing
            raise

    def _exchange(self, former: FilterRules | None, rules: FilterRules | None) -> bool:
        commands = rules.install() if rules else []
        return self._run([*commands, *(former.remove(rules) if former else [])])

    def adopt(self, filters: Iterable[FilterRules]) -> None:
        """Take over what a former broker left: only this is in the table afterwards."""
        self._held = {}
        for rules in sorted(filters, key=lambda one: one.position):
            self._held.setdefault(rules.ifname, []).append(rules)
        if self._held:
            self.restore()
        else:
            self.delete()

    tables = frozenset({(FAMILY, TABLE)})

    def restore(self) -> None:
        """Put back what should be there; no filters: leave it as it is.

        In one transaction, but where the fixed part is not there: that is another one before.

        :raise HostFailure: somebody else's table has our name, or nft refused it.
        """
        if not self._held:
            return
        listed = self._list("table", {"family": FAMILY, "name": TABLE})
        if MARKER in (self._chains() or ()) and not has_fixed_part(listed, _OUTLINE):
            self.delete()
        self._rebuild()

    def delete(self) -> None:
        """Delete the table, where it is ours.

        :raise HostFailure: it is still there.
        """
        if MARKER not in (self._chains() or ()):
            return
        if not self._run([{"delete": {"table": {"family": FAMILY, "name": TABLE}}}]):
            raise HostFailure("the host refused to delete the firewall table of filters")

    def drops(self) -> dict[str, int]:
        """Frames dropped, by interface; zeros are left out."""
        counted = self._counted() if self._held else {}
        return {ifname: packets for ifname, packets in counted.items() if packets}

    def intact(self) -> bool:
        """Whether everything that should be in the table is there."""
        return not self.missing()

    def missing(self) -> str:
        """What is not there that should be, in words; empty: all of it is.

        Chains and maps, by their names: to read what is in each chain takes nft 1.0.6 a second for
        300 TAPs (measured). That somebody takes one rule out the kernel tells (``rulewatch.py``).
        """
        if not self._held:
            return ""
        names = self._chains()
        if names is None or MARKER not in names:
            return "the table of filters is gone"
        for ifname, held in self._held.items():
            if not names.issuperset(held[-1].chains):
                return f"the rules of a filter of {ifname} are gone"
        for direction in DIRECTIONS:
            listed = self._list("map", _named(direction.name))
            there = {str(e[0]) for item in listed for e in item.get("map", {}).get("elem", [])}
            for ifname, held in self._held.items():
                if direction.name in held[-1].maps() and ifname not in there:
                    return f"{ifname} is no longer among the filtered TAPs"
        return ""

    def _chains(self) -> set[str] | None:
        return chains_of(self._list, FAMILY, TABLE)

    def _rebuild(self) -> None:
        chains = self._chains()
        if chains is None:
            if not self._load(FILTER_RULES):
                raise HostFailure("the host refused the fixed rules of filters")
            chains = self._chains() or set()
        if MARKER not in chains:
            raise HostFailure("the host has a foreign nft table bridge sessionvirt_filter")
        held = [all_[-1] for all_ in self._held.values()]
        wanted = {name for one in held for name in one.chains}
        stray = sorted(name for name in chains - wanted if _OF_A_TAP.fullmatch(name))
        commands: Commands = [{"flush": {"map": _named(one.name)}} for one in DIRECTIONS]
        for one in held:
            commands += one.install()
        commands += _deleted(stray)
        commands += [
            _element("delete", "dropped", ifname) for ifname in self._counted().keys() - self._held
        ]
        if not self._run(commands):
            raise HostFailure("the host refused the rules of a filter")

    def _counted(self) -> dict[str, int]:
        return counters_of(self._list, FAMILY, TABLE, "dropped")


_IN_TABLE: Final = {"family": FAMILY, "table": TABLE}


def _named(name: str) -> dict[str, object]:
    return {**_IN_TABLE, "name": name}


def _element(verb: str, name: str, element: object) -> dict[str, Any]:
    return {verb: {"element": {**_named(name), "elem": [element]}}}


def _deleted(chains: Sequence[str]) -> Commands:
    """Chains have to be empty; every one is, before the first goes."""
    return [
        *({"flush": {"chain": _named(name)}} for name in chains),
        *({"delete": {"chain": _named(name)}} for name in chains),
    ]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rules of one filtered TAP, as libnftables' JSON: what it asks of which frame, and in which
order.

A frame meets first what forbids it whatever it carries (ethertypes, peers, broadcast), with what no
network works without let through before; then the lists, which judge what *begins*::

    TCP         a SYN without ACK; the rest passes, so a change of the lists ends no connection
    ICMP        what asks; errors and answers pass
    UDP         every datagram, but one that answers what came the other way within two minutes
    the rest    every packet

There is no connection tracking here: a bridge need not have any. Answers are known by sets that a
TAP's datagrams are noted in, at most so many in a second, so that no flood fills what others need:
answers to what was not noted are judged like anything else. A TAP's own limit begins anew with each
change of its filter, and with each TAP; so a user has one, too, which stays as long as the table.

The sets are everybody's, with the TAP in the key, for the kernel goes through a table's sets one by
one to find one (nf_tables_set_alloc_name(), nft_set_lookup()), and so does every change of
anybody's; a set for each TAP made 24 seconds of 1,000 (measured). For the same reason a short list
is rules.

A later fragment has no ports. It passes where its address and protocol are not denied as such:
without the first, which was judged, nobody can put the packet together. TCP's second eight bytes in
a fragment of their own are refused, for they would bring other flags (RFC 1858, 3128).

Pure. Values are numbers, addresses and the TAP's name, all validated before they come here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .filterlists import Lookups, Network, lookups

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .filterlists import Entry

__all__ = [
    "BUDGET",
    "DIRECTIONS",
    "INBOUND",
    "OUTBOUND",
    "Direction",
    "Judged",
    "Rule",
    "budget",
    "chain_of",
]

#: libnftables-json(5): the value of "expr".
Rule = list[dict[str, Any]]

_UDP: Final = 17
#: So many rules are tried one after the other rather than by a set.
_FEW: Final = 4
#: Of a TAP's datagrams whose answers are to be known, new ones a second, and at once. With the two
#: minutes of ``filterrules.py`` that makes at most 8,000 in a set at a time.
_RATE: Final = 32
_BURST: Final = 4096
#: Likewise of all of a user's together, as an object of nft's: at most 47,000 in all sets.
BUDGET: Final[dict[str, Any]] = {"rate": 256, "per": "second", "burst": 16384}
#: Who has no address yet asks whether it is free with this one (RFC 5227).
_UNSPECIFIED: Final = "0.0.0.0"  # noqa: S104 - of a packet


@dataclass(frozen=True, slots=True)
class Direction:
    """One of the two, seen from the guest.

    :param name: of its base map, and how its drop chain ends.
    :param short: how its chains begin.
    :param side: the kernel's word for the guest's interface.
    :param peer: the field with the other side's address; ``own`` the guest's.
    :param answers: how the sets are called that know its packets as answers; ``asks`` those that
        it fills for the other direction. The family's number follows.
    """

    name: str
    short: str
    side: str
    peer: str
    own: str
    answers: str
    asks: str

    @property
    def drop(self) -> dict[str, Any]:
        """The verdict that counts."""
        return {"goto": {"target": f"drop_{self.name}"}}


OUTBOUND: Final = Direction("outbound", "out", "iifname", "daddr", "saddr", "heard", "asked")
INBOUND: Final = Direction("inbound", "in", "oifname", "saddr", "daddr", "asked", "heard")
DIRECTIONS: Final = (OUTBOUND, INBOUND)


@dataclass(frozen=True, slots=True)
class Judged:
    """What one direction of a TAP is judged by.

    :param words: ethertypes that are denied.
    :param peers: the only MAC addresses on the other side; none: all.
    :param addresses: the only ones that the guest sends from, of the families that are named here.
    :param link_local: the guest's own, which goes with those.
    :param gateways: whose DNS is never cut off.
    :param answers: a datagram may pass as an answer.
    :param asks: answers to its datagrams do, in the other direction.
    :param uid: whose datagrams they are.
    """

    direction: Direction
    ifname: str
    deny: tuple[Entry, ...]
    allow: tuple[Entry, ...]
    words: frozenset[str]
    peers: tuple[str, ...]
    no_broadcast: bool
    no_multicast: frozenset[int]
    addresses: tuple[str, ...]
    link_local: str
    gateways: tuple[str, ...]
    answers: bool
    asks: bool
    uid: int

    @property
    def lists(self) -> bool:
        """Whether there are lists."""
        return bool(self.deny or self.allow)


def budget(uid: int) -> str:
    """The object's name."""
    return f"noted_by_{uid}"


def chain_of(judged: Judged) -> tuple[list[Rule], list[Rule]]:
    """The rules of its chain, and of the chain that what an allow list permits goes to."""
    rules = [*_forbidden(judged)]
    asking = [*_asks(judged)] if judged.asks else []
    if not judged.lists:
        return rules + asking, []
    rules.append([_jump("settled", judged)])
    rules += _dns(judged)
    if judged.answers:
        for version in (4, 6):
            answer = _match(_flow(judged, version), f"@{judged.direction.answers}{version}")
            rules.append([_match(_PROTOCOL, _UDP), answer, _ACCEPT])
    rules += _denied(judged)
    if not judged.allow:
        return rules + asking, []
    kept = {"goto": {"target": f"kept_{judged.direction.short}_{judged.ifname}"}}
    rules += [[*one, kept if asking else _ACCEPT] for one in _permitted(judged)]
    rules.append([{"goto": {"target": f"rest_{judged.direction.name}"}}])
    return rules, [*asking, [_ACCEPT]] if asking else []


# What forbids a frame whatever it carries


def _forbidden(judged: Judged) -> Iterator[Rule]:
    drop, inbound = judged.direction.drop, judged.direction is INBOUND
    for word, ethertype in (("arp", "arp"), ("ipv4", "ip"), ("ipv6", "ip6")):
        if word in judged.words:
            yield [_ethertype(ethertype), drop]
    if inbound:
        # What is not in ARP, IPv4 and IPv6 no guest can send (ruleset.py). A tag hides what a list
        # would ask about, and no guest of ours is in a VLAN by a tag.
        if judged.lists or judged.words & {"ipv4", "ipv6"}:
            yield [_jump("untagged", judged)]
        if "rarp" in judged.words:
            yield [_ethertype(0x8035), drop]
        if "other" in judged.words:
            yield [_match(_ETHERTYPE, {"set": [0x0806, 0x0800, 0x86DD, 0x8035]}, "!="), drop]
    yield from _bound(judged)
    if not _has_words(judged):
        return
    if judged.peers:
        yield [_ethertype("arp"), _ACCEPT]
    yield [_jump("lifelines", judged)]
    if judged.peers:
        side = {"payload": {"protocol": "ether", "field": judged.direction.peer}}
        yield [_match(side, {"set": list(judged.peers)}, "!="), drop]
    if judged.no_broadcast:
        target = {"payload": {"protocol": "ether", "field": "daddr"}}
        yield [_ethertype("ip"), _match(target, "ff:ff:ff:ff:ff:ff"), drop]
    for version, group in ((4, ("224.0.0.0", 4)), (6, ("ff00::", 8))):
        if version in judged.no_multicast:
            prefix = {"prefix": {"addr": group[0], "len": group[1]}}
            yield [_match(_address("daddr", version), prefix), drop]


def _has_words(judged: Judged) -> bool:
    return bool(judged.peers or judged.no_broadcast or judged.no_multicast)


def _bound(judged: Judged) -> Iterator[Rule]:
    """The guest's addresses, in ARP and neighbour discovery, too."""
    drop = judged.direction.drop
    ipv4 = [one for one in judged.addresses if ":" not in one]
    ipv6 = [one for one in judged.addresses if ":" in one]
    if ipv4:
        sender = {"payload": {"protocol": "arp", "field": "saddr ip"}}
        yield [_match(sender, {"set": [_UNSPECIFIED, *ipv4]}, "!="), drop]
        yield _families(4, _jump("lifelines4", judged))
        yield [_match(_address("saddr", 4), {"set": ipv4}, "!="), drop]
    if ipv6:
        own = {"set": [judged.link_local, *ipv6]}
        yield [_jump("unspecified6", judged)]
        yield [_match(_address("saddr", 6), own, "!="), drop]
        # nft 1.0.6 has no word for the address that is advertised; as a number it is 128 bits.
        target = {"payload": {"base": "th", "offset": 64, "len": 128}}
        advertised = _match({"payload": {"protocol": "icmpv6", "field": "type"}}, 136)
        yield [
            advertised,
            _match(target, {"set": [hex(_number(one)) for one in own["set"]]}),
            _ACCEPT,
        ]
        yield [advertised, drop]


def _number(address: str) -> int:
    import ipaddress

    return int(ipaddress.IPv6Address(address))


# The lists


def _dns(judged: Judged) -> Iterator[Rule]:
    """The network's own, by its gateway."""
    for version in (4, 6):
        mine = [one for one in judged.gateways if (":" in one) == (version == 6)]
        if mine:
            gateway = _match(_address(judged.direction.peer, version), {"set": mine})
            yield [gateway, _jump("dns", judged)]


def _denied(judged: Judged) -> Iterator[Rule]:
    drop = judged.direction.drop
    found = lookups(judged.deny)
    yield from ([*one, drop] for one in _portless(judged, found))
    yield [_jump("later", judged)]
    yield from ([*one, drop] for one in _ported(judged, found))


def _permitted(judged: Judged) -> Iterator[Rule]:
    found = lookups(judged.allow)
    yield from (*_portless(judged, found), *_ported(judged, found))


def _portless(judged: Judged, found: Mapping[int | None, Lookups]) -> Iterator[Rule]:
    for version, one in found.items():
        peer = _address(judged.direction.peer, version)
        if one.everything:
            yield from ([_ethertype("ip")], [_ethertype("ip6")])
        yield from _any_of((peer,), [(net,) for net in one.addresses])
        yield from _any_of((peer, _PROTOCOL), list(one.protocols))


def _ported(judged: Judged, found: Mapping[int | None, Lookups]) -> Iterator[Rule]:
    for version, one in found.items():
        keys = (_address(judged.direction.peer, version), _PROTOCOL, _PORT)
        for layer in one.layers:
            boxes = [(box.network, box.protocol, (box.first, box.last)) for box in layer]
            yield from _any_of(keys, boxes)


def _any_of(keys: tuple[object, ...], members: Sequence[tuple[object, ...]]) -> Iterator[Rule]:
    """Rules that match where all keys are as in one of the members.

    Few are a rule each, for every set is one more that nft asks the kernel about at each change.
    """
    if members and members[0][0] is None:  # whatever the address
        keys, members = keys[1:], [one[1:] for one in members]
    if len(members) <= _FEW:
        for one in members:
            yield [_match(key, _value(part)) for key, part in zip(keys, one, strict=True)]
    elif len(keys) == 1:
        yield [_match(keys[0], {"set": [_value(one) for (one,) in members]})]
    else:
        values = [{"concat": [_value(part) for part in one]} for one in members]
        yield [_match({"concat": list(keys)}, {"set": values})]


def _value(part: object) -> object:
    if isinstance(part, tuple):
        return part[0] if part[0] == part[1] else {"range": list(part)}
    if isinstance(part, int):
        return part
    assert isinstance(part, Network)
    if part.prefixlen == part.max_prefixlen:
        return str(part.network_address)
    return {"prefix": {"addr": str(part.network_address), "len": part.prefixlen}}


def _asks(judged: Judged) -> Iterator[Rule]:
    """Have the other direction know answers. What is known already is free of the limit."""
    for version in (4, 6):
        udp = [_ethertype("ip" if version == 4 else "ip6"), _match(_PROTOCOL, _UDP)]
        known = f"@{judged.direction.asks}{version}"
        flow = _flow(judged, version)
        update = {"set": {"op": "update", "elem": flow, "set": known}}
        yield [*udp, _match(flow, known), update, _ACCEPT]
        own = {"limit": {"rate": _RATE, "per": "second", "burst": _BURST}}
        yield [*udp, own, {"limit": budget(judged.uid)}, update]


def _flow(judged: Judged, version: int) -> dict[str, Any]:
    """TAP; the other side's address and port, and the guest's."""
    out = judged.direction is OUTBOUND
    ports = ("dport", "sport") if out else ("sport", "dport")
    return {
        "concat": [
            {"meta": {"key": judged.direction.side}},
            _address(judged.direction.peer, version),
            _address(judged.direction.own, version),
            *({"payload": {"protocol": "th", "field": port}} for port in ports),
        ]
    }


# Small things

_ACCEPT: Final[dict[str, Any]] = {"accept": None}
_PROTOCOL: Final[dict[str, Any]] = {"meta": {"key": "l4proto"}}
_PORT: Final[dict[str, Any]] = {"payload": {"protocol": "th", "field": "dport"}}
_ETHERTYPE: Final[dict[str, Any]] = {"payload": {"protocol": "ether", "field": "type"}}


def _match(left: object, right: object, operator: str = "==") -> dict[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}


def _ethertype(one: object) -> dict[str, Any]:
    return _match(_ETHERTYPE, one)


def _families(version: int, verdict: dict[str, Any]) -> Rule:
    return [_ethertype("ip" if version == 4 else "ip6"), verdict]


def _jump(what: str, judged: Judged) -> dict[str, Any]:
    return {"jump": {"target": f"{what}_{judged.direction.name}"}}


def _address(field: str, version: int | None) -> dict[str, Any]:
    return {"payload": {"protocol": "ip" if version == 4 else "ip6", "field": field}}

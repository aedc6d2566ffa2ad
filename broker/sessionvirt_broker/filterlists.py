# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lists of a filter: one strict form of an entry, and the few look-ups that a list becomes.

An entry is text, the same in a request, in the journal and before people::

    10.0.0.0/8              whatever there is, with these addresses
    any  tcp  udp  icmp     a protocol
    tcp:22  udp:5000-5100   its ports, first and last
    tcp:22@2001:db8::/32    all of it

``icmp`` is ICMP, and ICMPv6 where the packet is IPv6. Nothing is resolved and nothing corrected:
what is not exactly this is refused.

A list becomes sets that nft looks a packet up in. No two members of one set overlap: the kernel
refuses some of those that do, and by their order (nft_pipapo_insert()). So what another entry
covers is left out, and entries that overlap in part are *layers*, a look-up each; who writes such
entries pays for them with his own packets. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ENTRIES", "Box", "Entry", "Lookups", "Network", "lookups", "parse_entry"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Of one list.
ENTRIES: Final = 64

_WORDS = re.compile(
    r"(any|tcp|udp|icmp)(?::([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?)?(?:@([0-9a-f.:/]{1,49}))?"
)
_PREFIX = re.compile(r"([0-9a-f.:]{1,45})(?:/([0-9]|[1-9][0-9]{1,2}))?")
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry.

    :param ports: first and last; None: all.
    :param prefix: None: every address of both families.
    """

    protocol: str
    ports: tuple[int, int] | None
    prefix: Network | None

    def __str__(self) -> str:
        if self.protocol == "any" and self.prefix is not None:
            return str(self.prefix)
        first, last = self.ports or (0, 0)
        span = f":{first}" if first == last else f":{first}-{last}"
        where = f"@{self.prefix}" if self.prefix is not None else ""
        return self.protocol + (span if self.ports else "") + where


def parse_entry(text: str) -> Entry:
    """Read an entry.

    :raise ValueError: it is none; the words say why and repeat nothing of it.
    """
    found = _WORDS.fullmatch(text)
    if found is None:
        return Entry("any", None, _prefix(text))
    protocol, first, last, prefix = found.groups()
    return Entry(protocol, _ports(protocol, first, last), _prefix(prefix) if prefix else None)


def _ports(protocol: str, first: str | None, last: str | None) -> tuple[int, int] | None:
    if first is None:
        return None
    if protocol not in ("tcp", "udp"):
        raise ValueError("ports go with tcp or udp")
    span = int(first), int(last or first)
    if not 1 <= span[0] <= span[1] <= 65535:
        raise ValueError("ports are from 1 to 65535, the lower one first")
    return span


def _prefix(text: str) -> Network:
    found = _PREFIX.fullmatch(text)
    if found is None:
        raise ValueError("must look like tcp:22, udp:5000-5100@10.0.0.0/8, icmp or 2001:db8::/32")
    try:
        address = ipaddress.ip_address(found[1])
        length = int(found[2]) if found[2] else address.max_prefixlen
        network = ipaddress.ip_network((address, length))
    except ValueError:
        raise ValueError("the prefix is none, or has bits behind its length") from None
    if network.version == 6 and network.overlaps(_MAPPED) and network.prefixlen >= 96:
        raise ValueError("an IPv4 address is written as one: no packet has it mapped")
    return network


@dataclass(frozen=True, slots=True)
class Box:
    """Addresses, a protocol's number, and its first and last port.

    :param network: None: every address of both families.
    """

    network: Network | None
    protocol: int
    first: int
    last: int

    def covers(self, other: Box) -> bool:
        """Whether all of the other is in it."""
        return (
            self.protocol == other.protocol
            and self.first <= other.first
            and other.last <= self.last
            and _within(other.network, (self.network,))
        )

    def overlaps(self, other: Box) -> bool:
        """Whether a packet could be in both; of one family."""
        ports = self.first <= other.last and other.first <= self.last
        if self.network is None or other.network is None:
            return self.protocol == other.protocol and ports
        return self.protocol == other.protocol and ports and self.network.overlaps(other.network)


@dataclass(frozen=True, slots=True)
class Lookups:
    """What a list is for one family, or beside both for what has no addresses.

    :param everything: all there is; then there is nothing else here.
    :param addresses: whatever the protocol.
    :param protocols: addresses with a protocol's number, whatever the ports.
    :param layers: with ports; what overlaps is in another layer.
    """

    everything: bool = False
    addresses: tuple[Network, ...] = ()
    protocols: tuple[tuple[Network | None, int], ...] = ()
    layers: tuple[tuple[Box, ...], ...] = ()


def lookups(entries: Sequence[Entry]) -> dict[int | None, Lookups]:
    """A list, as few and as small sets as it can be: of both families (None), of 4 and of 6."""
    plain = [one for one in entries if one.prefix is None]
    if any(one.protocol == "any" for one in plain):
        return {None: Lookups(everything=True), 4: Lookups(), 6: Lookups()}
    numbers = [n for one in plain if one.ports is None for n in sorted(_numbers(one, None))]
    protocols = tuple((None, number) for number in dict.fromkeys(numbers))
    boxes = [box for box in _spans(_boxes(plain, None)) if (None, box.protocol) not in protocols]
    found: dict[int | None, Lookups] = {None: Lookups(protocols=protocols, layers=_layers(boxes))}
    for version in (4, 6):
        mine = [one for one in entries if one.prefix and one.prefix.version == version]
        found[version] = _of_family(mine, version, found[None], boxes)
    return found


def _of_family(mine: Sequence[Entry], version: int, both: Lookups, wide: Sequence[Box]) -> Lookups:
    """What entries with prefixes add to those without."""
    addresses = _merged(one.prefix for one in mine if one.protocol == "any" and one.prefix)
    protocols: list[tuple[Network | None, int]] = []
    for number in sorted({n for one in mine for n in _numbers(one, version)}):
        if (None, number) in both.protocols:
            continue
        chosen = [
            one.prefix
            for one in mine
            if one.prefix and one.ports is None and number in _numbers(one, version)
        ]
        protocols += [(one, number) for one in _merged(chosen) if not _within(one, addresses)]
    left = [
        box
        for box in _spans(_boxes(mine, version))
        if (None, box.protocol) not in both.protocols
        and not any(other.covers(box) for other in wide)
        and not _within(
            box.network, [*addresses, *(one for one, n in protocols if n == box.protocol)]
        )
    ]
    return Lookups(addresses=tuple(addresses), protocols=tuple(protocols), layers=_layers(left))


def _numbers(entry: Entry, version: int | None) -> frozenset[int]:
    """The protocol's; ICMP has one for each family."""
    if entry.protocol == "any":
        return frozenset()
    if entry.protocol == "icmp":
        return frozenset({1, 58} if version is None else {1 if version == 4 else 58})
    return frozenset({6 if entry.protocol == "tcp" else 17})


def _boxes(entries: Iterable[Entry], version: int | None) -> list[Box]:
    return [
        Box(one.prefix, number, *one.ports)
        for one in entries
        if one.ports is not None
        for number in _numbers(one, version)
    ]


def _merged(networks: Iterable[Network]) -> list[Network]:
    """The same addresses of one family, by prefixes that do not overlap."""
    same = cast("list[ipaddress.IPv4Network]", list(networks))
    return list(ipaddress.collapse_addresses(same))


def _within(network: Network | None, others: Iterable[Network | None]) -> bool:
    """Whether one of the others, of the same family, has all of its addresses."""
    return any(
        one is None
        or (network is not None and one.overlaps(network) and one.prefixlen <= network.prefixlen)
        for one in others
    )


def _spans(boxes: Iterable[Box]) -> list[Box]:
    """The same, with the ports of equal addresses joined where they touch."""
    found: list[Box] = []
    for box in sorted(boxes, key=lambda one: (one.protocol, str(one.network), one.first)):
        last = found[-1] if found else None
        if (
            last is not None
            and (last.network, last.protocol) == (box.network, box.protocol)
            and box.first <= last.last + 1
        ):
            found[-1] = replace(last, last=max(last.last, box.last))
        else:
            found.append(box)
    return found


def _layers(boxes: Sequence[Box]) -> tuple[tuple[Box, ...], ...]:
    layers: list[list[Box]] = []
    for box in boxes:
        if any(other != box and other.covers(box) for other in boxes):
            continue
        free = (one for one in layers if not any(box.overlaps(other) for other in one))
        layer = next(free, None)
        if layer is None:
            layers.append([box])
        else:
            layer.append(box)
    return tuple(map(tuple, layers))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A network or bridge in words: what it is, and who is on it.

The broker tells what is configured and which interfaces are the caller's; the kernel shows to
everybody how many ports a bridge has, and what has passed each. This puts the two together. The
broker tells nobody but root of other users' machines, so of theirs there is only a number.

Every text may be hostile: what is shown is one line of print. Nothing here talks to the broker,
reads the kernel's counters or writes anything.
"""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from sessionvirt.broker_data import BandwidthGrant, TapGrant
from sessionvirt.errors import NotFoundError

from .output import moment, one_line, paint
from .rates import limit_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sessionvirt.broker_data import LeaseInfo, NetworkInfo
    from sessionvirt.host.traffic import Traffic

__all__ = ["Interface", "View", "lines", "named", "plain", "taps", "view"]

#: What the broker calls a TAP begins with this; other ports of a bridge are not machines.
_TAP_PREFIX: Final = "svt"

_TYPES: Final = {
    "network": "managed network",
    "bridge": "bridge of the local network",
    "direct": "interface to the local network",
}
_HEADS: Final = ("VM", "USER", "SINCE", "IN", "OUT", "DROPPED")


@dataclass(frozen=True)
class Interface:
    """One interface of a machine.

    :param lease: the machine's.
    :param user: the name of whose it is, or the number.
    :param totals: since it was made; None: the kernel does not show it to us.
    :param rates: a second; None: not yet known.
    """

    lease: LeaseInfo
    tap: TapGrant
    user: str
    totals: Traffic | None
    rates: Traffic | None

    @property
    def drops(self) -> Mapping[str, int]:
        """Frames by reason; an older broker tells of the whole machine's only."""
        return self.lease.drops if self.tap.drops is None else self.tap.drops

    @property
    def limit(self) -> BandwidthGrant | None:
        """The one in force; None: there is none."""
        found = [
            grant
            for grant in self.lease.grants
            if isinstance(grant, BandwidthGrant) and grant.tap == self.tap.id
        ]
        return found[-1] if found else None


@dataclass(frozen=True)
class View:
    """A network with who is on it.

    :param others: interfaces of machines that the broker does not tell us of; None: the kernel
        does not show us the bridge.
    """

    network: NetworkInfo
    others: int | None
    interfaces: tuple[Interface, ...]


def named(networks: Sequence[NetworkInfo], name: str) -> tuple[NetworkInfo, ...]:
    """Pick the network, or the bridge, or both, of a name.

    :raise NotFoundError: there is none.
    """
    found = tuple(network for network in networks if network.name == name)
    if not found:
        names = ", ".join(dict.fromkeys(one_line(network.name) for network in networks))
        raise NotFoundError(
            f"no network or bridge {one_line(name)!r}",
            evidence=f"there are: {names}" if names else "there are none",
            advice="an administrator adds them to /etc/sessionvirt/broker.toml",
        )
    return found


def taps(leases: Iterable[LeaseInfo]) -> Iterable[tuple[LeaseInfo, TapGrant]]:
    """Every interface, with whose it is; not those of a machine that has ended."""
    for lease in leases:
        if lease.state != "releasing":
            yield from ((lease, grant) for grant in lease.grants if isinstance(grant, TapGrant))


def view(
    network: NetworkInfo,
    leases: Iterable[LeaseInfo],
    ports: frozenset[str] | None,
    counted: Mapping[str, tuple[Traffic | None, Traffic | None]],
    user: Callable[[int], str],
) -> View:
    """Put together what is known of a network.

    :param ports: of its bridge; None: not to be seen.
    :param counted: by interface: its totals and its rates.
    :param user: says what a user is called.
    """
    here = tuple(
        Interface(lease, tap, user(lease.uid), *counted.get(tap.ifname, (None, None)))
        for lease, tap in taps(leases)
        if network.name == _place(network.type, tap) and _is_of(network, lease)
    )
    others = None
    if ports is not None:
        own = {interface.tap.ifname for interface in here}
        others = sum(port.startswith(_TAP_PREFIX) and port not in own for port in ports)
    elif not network.up:
        others = 0
    return View(network, others, here)


def _is_of(network: NetworkInfo, lease: LeaseInfo) -> bool:
    """Whether it is not another user's private network: to root all of these have one name."""
    if (network.type, network.name) != ("network", "private"):
        return True
    return network.bridge == f"svn_u{lease.uid}"


def _place(kind: str, tap: TapGrant) -> str:
    """The name of what it is on, where that is of this type; else empty."""
    return {"network": tap.network, "direct": tap.device}.get(kind, tap.bridge)


def plain(shown: View) -> dict[str, object]:
    """For programs. The keys of the network are the contract's."""
    interfaces = [_plain(interface) for interface in shown.interfaces]
    return {**asdict(shown.network), "others": shown.others, "interfaces": interfaces}


def _plain(interface: Interface) -> dict[str, object]:
    lease, tap = interface.lease, interface.tap
    return {
        "vm": lease.vm,
        "uid": lease.uid,
        "user": interface.user,
        "lease": lease.lease,
        "since": lease.since,
        "interface": tap.ifname,
        "mac": tap.mac,
        "mtu": tap.mtu,
        "ipv4": tap.ipv4,
        "ipv6": tap.ipv6,
        "dns": tap.dns,
        "totals": asdict(interface.totals) if interface.totals else None,
        "rates": asdict(interface.rates) if interface.rates else None,
        "drops": interface.drops,
        "limit": _plain_limit(interface.limit),
    }


def _plain_limit(limit: BandwidthGrant | None) -> dict[str, object] | None:
    if limit is None:
        return None
    ways = {"inbound": limit.inbound, "outbound": limit.outbound}
    return {way: asdict(rate) if rate is not None else None for way, rate in ways.items()}


def lines(shown: View, width: int) -> list[str]:
    """For people.

    :param width: characters a line may have; interfaces are a table where it fits, else each is a
        paragraph.
    """
    found = [*_head(shown, width)]
    if not shown.interfaces:
        return found
    rows = [_row(interface) for interface in shown.interfaces]
    widths = [max(map(len, column)) for column in zip(_HEADS, *rows, strict=True)]
    if sum(widths) + 2 * len(widths) > width:
        for interface in shown.interfaces:
            found += _paragraph(interface, width)
        return found
    found.append(paint(_aligned(_HEADS, widths), "bold"))
    for interface, row in zip(shown.interfaces, rows, strict=True):
        found.append(_aligned(row, widths))
        found += _wrapped(_identity(interface), width, 4)
    return found


def _head(shown: View, width: int) -> list[str]:
    network = shown.network
    words = (_TYPES.get(network.type, network.type), network.mode, "up" if network.up else "down")
    title = f"{network.name}: {', '.join(words)}"
    below = f"{network.bridge}, MTU {network.mtu}" if network.mtu else "there is none"
    facts = {
        "interface" if network.type == "direct" else "bridge": below,
        "addresses": ", ".join((*network.ipv4, *network.ipv6)) or "none of its own",
        "machines": _machines(shown),
    }
    found = [paint(line, "bold") for line in _wrapped(title, width, 0)]
    for name, value in facts.items():
        found += _wrapped(f"{name:<9}  {one_line(value)}", width, 2)
    return found


def _machines(shown: View) -> str:
    own, others = len(shown.interfaces), shown.others
    here = f"{own} {'interface' if own == 1 else 'interfaces'}" if own else "none"
    if others:
        here = f"{here} of yours" if not own else f"{here}, listed below"
        return f"{here}; {others} {'interface' if others == 1 else 'interfaces'} of other users"
    return here


def _row(interface: Interface) -> tuple[str, ...]:
    cells = (
        *(interface.lease.vm, interface.user, moment(interface.lease.since)),
        *_rates(interface),
        _drops(interface),
    )
    return tuple(one_line(cell) for cell in cells)


def _rates(interface: Interface) -> tuple[str, str]:
    rates = interface.rates
    if rates is None:
        return "-", "-"
    return (
        f"{_scaled(rates.in_bytes)}B/s {_scaled(rates.in_packets)}p/s",
        f"{_scaled(rates.out_bytes)}B/s {_scaled(rates.out_packets)}p/s",
    )


def _scaled(number: int) -> str:
    """Three digits and a unit's prefix: "512 ", "1.2 k", "34 M"."""
    amount, prefixes = float(number), iter("kMGT")
    prefix = ""
    while amount >= 999.5 and (following := next(prefixes, "")):
        amount, prefix = amount / 1000, following
    return f"{amount:.1f} {prefix}" if prefix and amount < 9.95 else f"{amount:.0f} {prefix}"


def _drops(interface: Interface) -> str:
    counts = [f"{reason} {count}" for reason, count in interface.drops.items() if count]
    return ", ".join(counts) or "0"


def _identity(interface: Interface) -> str:
    tap = interface.tap
    limited = interface.limit
    words = (f"limit: {limit_words(limited)}",) if limited is not None else ()
    names = filter(None, (tap.dns,))
    return " ".join((tap.ifname, tap.mac, *tap.ipv4, *tap.ipv6, *names, *words))


def _paragraph(interface: Interface, width: int) -> list[str]:
    vm, user, since, received, sent, dropped = _row(interface)
    return [
        *(paint(line, "bold") for line in _wrapped(f"{vm} ({user}) since {since}", width, 2)),
        *_wrapped(f"in {received}, out {sent}", width, 4),
        *_wrapped(f"dropped: {dropped}", width, 4),
        *_wrapped(_identity(interface), width, 4),
    ]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return f"  {'  '.join(padded)}".rstrip()


def _wrapped(text: str, width: int, indent: int) -> list[str]:
    """One line of print as lines of a width, those that follow the first further in."""
    pad = " " * indent
    return textwrap.wrap(
        one_line(text),
        max(width, indent + 8),
        initial_indent=pad,
        subsequent_indent=f"{pad}  " if indent else "    ",
        break_on_hyphens=False,
    )

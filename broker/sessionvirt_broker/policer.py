# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest may send in a second: a chain at the ingress hook of its own TAP.

The hook is where tc's policing would be, before the bridge sees a frame, and each device has its
own: who has no limit pays nothing for those who have (docs/adr/0011). What is too much is dropped,
as libvirt's policing does; the sender's TCP slows down.

nft's bucket of bytes holds a second's worth and the burst (nft_limit_init() in
net/netfilter/nft_limit.c), so a burst is never less than that second. It holds one frame that
segmentation is left to the host of, too, or such a frame could never pass.

A change is one transaction, with which the new rule stands in the place of the former. The table
``netdev sessionvirt_limits`` is there as long as somebody is limited; older kernels delete a chain
with its device, newer ones keep it.

Never touched: a table of that name without the marker.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .errors import HostFailure
from .tablelook import chains_of, present

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .firewall import Commands
    from .htb import Rate
    from .tablelook import Lister

__all__ = ["Policer"]

FAMILY, TABLE = "netdev", "sessionvirt_limits"
#: A chain of this name says that the table is ours.
MARKER = "sessionvirt_1"
#: Before every other of this hook, as policing is.
_PRIORITY = -500
#: A frame of 64 KiB with its headers.
_LARGEST_FRAME = 66000


class Policer:
    """The table, and what should be in it.

    :param run: has nft do one transaction of commands; whether it did.
    :param listed: what nft lists.
    """

    def __init__(
        self,
        run: Callable[[Commands], bool],
        listed: Lister,
    ) -> None:
        self._run = run
        self._list = listed
        self._rates: dict[str, Rate] = {}

    def adopt(self, rates: Mapping[str, Rate]) -> None:
        """Take over what a former broker left: only this is in the table afterwards."""
        self._rates = dict(rates)
        if self._rates or self._is_ours():
            self._rebuild()

    def set_rate(self, ifname: str, rate: Rate) -> None:
        """Have what a TAP sends not exceed ``rate``, from now on, whatever it was before.

        :raise HostFailure: nft refuses, or somebody else's table has our name.
        """
        known = ifname in self._rates
        self._rates[ifname] = rate
        # Who has a chain has its rules exchanged; that somebody took it away is seen by that.
        if not known or not self._run(_rules(ifname, rate)):
            self._refuse_foreign()
            if not self._run([*_table(), *_chain(ifname), *_rules(ifname, rate)]):
                self._rebuild()

    def remove(self, ifname: str) -> None:
        """Let a TAP send as it can; absent is in order.

        :raise HostFailure: its chain is still there.
        """
        chains = self._chains()
        if chains is not None and MARKER in chains:
            commands: Commands = []
            if not chains - {MARKER, ifname}:
                commands = [{"delete": {"table": {"family": FAMILY, "name": TABLE}}}]
            elif ifname in chains:
                chain = {"chain": _named(ifname)}
                commands = [{"flush": chain}, {"delete": chain}]
            if commands and not self._run(commands):
                raise HostFailure("the host refused to remove a limit of the firewall")
        self._rates.pop(ifname, None)

    tables = frozenset({(FAMILY, TABLE)})

    def intact(self) -> bool:
        """Whether the chain of each limited TAP that is there is, with its rules."""
        if not self._rates:
            return True
        listed = self._list("table", {"family": FAMILY, "name": TABLE})
        rules = Counter(item["rule"]["chain"] for item in listed if "rule" in item)
        return all(rules[name] == len(_limits(self._rates[name])) for name in self._present())

    def restore(self) -> None:
        """Put back what should be there, in one transaction; no limits: leave it as it is.

        :raise HostFailure: somebody else's table has our name, or nft refused it.
        """
        if self._rates:
            self._rebuild()

    def _present(self) -> list[str]:
        """The limited TAPs that are there."""
        return present(self._rates)

    def _rebuild(self) -> None:
        self._refuse_foreign()
        commands: Commands = [*_table(), {"delete": {"table": {"family": FAMILY, "name": TABLE}}}]
        if self._rates:
            commands += _table()
        for ifname in self._present():
            commands += [*_chain(ifname), *_rules(ifname, self._rates[ifname])]
        if not self._run(commands):
            raise HostFailure("the host refused the limits of the firewall")

    def _chains(self) -> set[str] | None:
        return chains_of(self._list, FAMILY, TABLE)

    def _is_ours(self) -> bool:
        return MARKER in (self._chains() or ())

    def _refuse_foreign(self) -> None:
        chains = self._chains()
        if chains is not None and MARKER not in chains:
            raise HostFailure(f"the host has a foreign nft table {FAMILY} {TABLE}")


def _named(name: str) -> dict[str, object]:
    return {"family": FAMILY, "table": TABLE, "name": name}


def _table() -> Commands:
    table = {"add": {"table": {"family": FAMILY, "name": TABLE}}}
    return [table, {"add": {"chain": _named(MARKER)}}]


def _chain(ifname: str) -> Commands:
    """The chain that hooks one TAP, called as it is."""
    hook = {"type": "filter", "hook": "ingress", "dev": ifname, "prio": _PRIORITY}
    return [{"add": {"chain": {**_named(ifname), **hook, "policy": "accept"}}}]


def _rules(ifname: str, rate: Rate) -> Commands:
    """In the place of those that the chain has."""
    rule = {"family": FAMILY, "table": TABLE, "chain": ifname}
    return [
        {"flush": {"chain": _named(ifname)}},
        *({"add": {"rule": {**rule, "expr": [limit, {"drop": None}]}}} for limit in _limits(rate)),
    ]


def _limits(rate: Rate) -> list[dict[str, object]]:
    """What a frame must not be over, a rule each."""
    average = _over(rate.bytes, rate.burst * 1024)
    return [_over(rate.peak_bytes, 0), average] if rate.peak_bytes > rate.bytes else [average]


def _over(rate: int, burst: int) -> dict[str, object]:
    beyond = max(burst, _LARGEST_FRAME) - rate
    units = {"rate_unit": "bytes", "per": "second", "burst_unit": "bytes"}
    return {"limit": {"rate": rate, "burst": max(beyond, 0), "inv": True, **units}}

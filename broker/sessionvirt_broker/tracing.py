# SPDX-License-Identifier: LGPL-2.1-or-later
"""A rule that has the kernel tell by which rules one guest's packets to one address go.

A table of its own, ``inet sessionvirt_trace``, whose chains come before everybody's and let
everything pass: they only mark what has exactly the guest's address and the other's, both ways.
What NAT has in its hands on the way back is marked when it is the guest's again, at the forward
hook. No more are marked in a second than are told of in all: each costs the kernel a message at
every rule, to everybody who listens, and a guest can send a million. The table is there for one
question at a time and for its seconds, and goes in any case: when they are over, when who asked is
gone, when a broker starts. Worker thread.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from .errors import HostFailure
from .tracewatch import MARKS, MOST_PACKETS, TABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .firewall import Commands

__all__ = ["begin", "end"]

_FAMILY = "inet"
#: In front of raw's -300 and conntrack's -200.
_PRIORITY = -350
_TABLE = {"table": {"family": _FAMILY, "name": TABLE}}


def begin(run: Callable[[Commands], bool], guest: str, other: str, port: int) -> None:
    """Mark the packets between two addresses.

    :param run: has nft carry out one transaction.
    :param port: the other's, of TCP or UDP; 0: any packet.
    :raise HostFailure: nft refused it.
    """
    if not run(commands(guest, other, port)):
        raise HostFailure("the host refused to trace packets")


def commands(guest: str, other: str, port: int) -> Commands:
    """What :func:`begin` does; the addresses are told once more by their numbers."""
    one, two = ipaddress.ip_address(guest), ipaddress.ip_address(other)
    protocol = "ip" if one.version == 4 else "ip6"
    chains: Commands = []
    for hook, source, target, which in (
        (MARKS["out"], one, two, "dport"),
        (MARKS["in"], two, one, "sport"),
    ):
        name = {"family": _FAMILY, "table": TABLE, "name": hook}
        base = {"type": "filter", "hook": hook, "prio": _PRIORITY, "policy": "accept"}
        conditions = [
            _match({"payload": {"protocol": protocol, "field": field}}, str(address))
            for field, address in (("saddr", source), ("daddr", target))
        ]
        if port:
            conditions += [
                _match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}),
                _match({"payload": {"protocol": "th", "field": which}}, port),
            ]
        most = {"limit": {"rate": MOST_PACKETS, "per": "second", "burst": MOST_PACKETS}}
        mark = {"mangle": {"key": {"meta": {"key": "nftrace"}}, "value": 1}}
        rule = {"family": _FAMILY, "table": TABLE, "chain": hook, "expr": [*conditions, most, mark]}
        chains += [{"add": {"chain": {**name, **base}}}, {"add": {"rule": rule}}]
    # Only to see it there; see tracewatch.py.
    last = {"family": _FAMILY, "table": TABLE, "name": "postrouting", "hook": "postrouting"}
    chains.append(
        {"add": {"chain": {**last, "type": "filter", "prio": _PRIORITY, "policy": "accept"}}}
    )
    return [{"add": _TABLE}, {"delete": _TABLE}, {"add": _TABLE}, *chains]


def _match(left: dict[str, object], right: object) -> dict[str, object]:
    return {"match": {"op": "==", "left": left, "right": right}}


def end(run: Callable[[Commands], bool]) -> None:
    """Delete the table; absent is in order.

    :raise HostFailure: it is still there.
    """
    # Added first, for to delete what is absent is an error.
    if not run([{"add": _TABLE}, {"delete": _TABLE}]):
        raise HostFailure("the host refused to delete the table of a trace")

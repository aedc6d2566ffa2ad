# SPDX-License-Identifier: LGPL-2.1-or-later
"""By which uplink a published port answers, in words, and the one command that has it another way.

The answer of a guest has the guest's own address when it is routed, and so leaves by the best
default route, whichever uplink the question came in by. What mends it needs a mark, a routing table
and a rule for routing, all of the whole host: those are an administrator's to give away, so the
command is put and never run. A mark that already leads to an uplink says that it was.

The kernel takes nearly any name for an interface, and some programs have one made for whoever sits
at the host. In the command, which somebody runs as root, are only names that neither a shell nor
nft reads as anything else.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from sessionvirt.broker_data import PublishGrant, TapGrant
from sessionvirt.host.policyroutes import policy_rules
from sessionvirt.host.ways import interface_of, leaves_by, uplinks

from .checks import Check, Level
from .firewallchecks import bridge_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sessionvirt.broker_data import LeaseInfo
    from sessionvirt.host.ways import Uplink

__all__ = ["answer_command", "way_checks"]

#: The first number that is proposed, for mark and table both.
_FIRST: Final = 200
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*", re.ASCII)
#: Behind the translation of the first packet (dstnat, -100) and before that is routed.
_PRIORITY: Final = -95


def way_checks(leases: Sequence[LeaseInfo]) -> list[Check]:
    """One check for each uplink whose questions another one answers."""
    machines: dict[str, list[str]] = defaultdict(list)
    others: dict[str, list[str]] = defaultdict(list)
    ways: dict[str, dict[int, Uplink]] = defaultdict(dict)
    for vm, uplink, other in _crossed(leases):
        machines[uplink.interface].append(vm)
        others[uplink.interface].append(other)
        ways[uplink.interface][uplink.version] = uplink
    numbers = _free_numbers() if ways else iter(())
    checks = []
    for (name, found), number in zip(ways.items(), numbers, strict=False):
        named, answering = (", ".join(dict.fromkeys(one[name])) for one in (machines, others))
        sentence = (
            f"{named}: a connection to a published port that comes in by {name}, from beyond the "
            f"network there, is answered by {answering}"
        )
        opens = (
            f"what is published answers by {name} what came in by it, and nothing more is let in; "
            f"mark and table {number} must be nobody else's"
        )
        command = answer_command(list(found.values()), number)
        advice = f"{command}   ({opens})" if command else "give it a plain name, and ask again"
        checks.append(Check("published-ports", Level.WARNING, sentence, advice))
    return checks


def answer_command(ways: Sequence[Uplink], number: int) -> str:
    """One line for a shell of root's; all else that the main table has still holds.

    :param ways: one interface, by version of IP.
    :param number: of mark and table.
    :return: empty: its name is not for a shell.
    """
    if not _PLAIN.fullmatch(ways[0].interface):
        return ""
    commands = []
    for way in ways:
        ip = "ip" if way.version == 4 else "ip -6"
        via = f" via {way.gateway}" if way.gateway else ""
        commands += [
            f"{ip} route add default{via} dev {way.interface} table {number}",
            f"{ip} rule add fwmark {number} table {number}",
            f"{ip} rule add fwmark {number} table main suppress_prefixlength 0",
        ]
    chain, name, mark = "inet answers back", ways[0].interface, f"mark set {number}"
    rules = (
        "add table inet answers",
        f"add chain {chain} {{ type filter hook prerouting priority {_PRIORITY}; }}",
        f'add rule {chain} iifname "{name}" ct state new ct status dnat ct {mark}',
        f'add rule {chain} iifname "svn_*" ct direction reply ct mark {number} meta {mark}',
    )
    return " && ".join([*commands, f"nft '{'; '.join(rules)}'"])


def _crossed(leases: Sequence[LeaseInfo]) -> Iterator[tuple[str, Uplink, str]]:
    """Machine, the uplink that a question may come by, and the interface of the answer."""
    if not any(isinstance(grant, PublishGrant) for lease in leases for grant in lease.grants):
        return  # the tables of routes may be long
    every = {version: uplinks(version) for version in (4, 6)}
    for lease in leases:
        taps = {one.id: one for one in lease.grants if isinstance(one, TapGrant)}
        for grant in lease.grants:
            if not isinstance(grant, PublishGrant) or grant.tap not in taps:
                continue
            bridge = bridge_of(lease, taps[grant.tap])
            for address in grant.guest:
                best = leaves_by(address, bridge)
                asked = [one for one in _asked(grant, every[_version(address)]) if best]
                if all(one.interface == best for one in asked):
                    continue
                marked = _marked(address, bridge)
                for uplink in asked:
                    if uplink.interface not in (best, *marked):
                        yield lease.vm, uplink, best


def _asked(grant: PublishGrant, every: Iterable[Uplink]) -> list[Uplink]:
    """By which of these a question comes in: where one address was named, by its own."""
    only = interface_of(grant.address) if grant.address else ""
    return [one for one in every if not grant.address or one.interface == only]


def _marked(address: str, bridge: str) -> set[str]:
    """Where the guest's packets go with a mark that a rule for routing asks for.

    A rule for all that has not a mark is a VPN's: with it are that one's own packets (wg-quick(8)).
    """
    rules = policy_rules(_version(address))
    marks = {rule.mark for rule in rules if rule.marked and not rule.inverted}
    return {leaves_by(address, bridge, mark) for mark in marks}


def _free_numbers() -> Iterator[int]:
    rules = [rule for version in (4, 6) for rule in policy_rules(version)]
    used = {number for rule in rules for number in (rule.table, rule.mark)}
    return (number for number in itertools.count(_FIRST) if number not in used)


def _version(address: str) -> int:
    return 6 if ":" in address else 4

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt leases``: what running machines hold of this host."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

from sessionvirt.broker_client import BrokerClient
from sessionvirt.broker_data import BandwidthGrant, FilterGrant, PciGrant, PublishGrant
from sessionvirt.driver.publishing import words

from . import status
from .output import moment, print_json, print_table, say
from .rates import limit_words

if TYPE_CHECKING:
    import argparse

    from sessionvirt.broker_data import Grant, LeaseInfo

__all__ = ["main"]

_HEADS = (
    *("LEASE", "VM", "USER", "PROCESS", "STATE", "SINCE", "ALLOWED"),
    *("ON", "DEVICE", "MAC", "ADDRESSES, NAME", "DROPS"),
)
#: Enough of a lease's name to tell it from others.
_SHORT = 8


def main(args: argparse.Namespace) -> int:
    """Print the list."""
    return asyncio.run(_main(args))


async def _main(args: argparse.Namespace) -> int:
    async with await BrokerClient.connect() as client:
        leases = await client.leases()
    if args.json:
        print_json({"leases": [_plain(lease) for lease in leases]})
    elif leases:
        print_table(_HEADS, [row for lease in leases for row in _rows(lease)])
        for lease in leases:
            if lease.degraded:
                say(f"{lease.vm} may not be filtered: {lease.degraded}")
    else:
        say("no machine holds anything of this host")
    return status.OK


def _plain(lease: LeaseInfo) -> dict[str, object]:
    plain = asdict(lease)
    for grant in plain["grants"]:
        # A list has no descriptors; the key would only puzzle.
        for key in ("fds", "vhost_fds"):
            grant.pop(key, None)
    return plain


def _rows(lease: LeaseInfo) -> list[tuple[str, ...]]:
    """One row for each grant; what belongs to the lease is in the first."""
    since = moment(lease.since)
    drops = ", ".join(f"{reason} {count}" for reason, count in lease.drops.items() if count)
    shared = (
        *(lease.name[:_SHORT], lease.vm, str(lease.uid)),
        *(str(lease.process or ""), "degraded" if lease.degraded else lease.state),
        *(since, lease.allowed),
    )
    rows: list[tuple[str, ...]] = []
    for number, grant in enumerate(lease.grants):
        head = shared if number == 0 else (" ",) * len(shared)
        rows.append((*head, *_grant(grant), (drops or "0") if number == 0 else " "))
    return rows or [(*shared, "", "", "", "", drops or "0")]


def _grant(grant: Grant) -> tuple[str, str, str, str]:
    """What it is on, what the host calls it, its MAC address, and what else tells it apart."""
    if isinstance(grant, PciGrant):
        others = len(grant.members) - 1
        name = f"{grant.name} and {others} more" if others else grant.name
        on = f"PCI group {grant.group}" + (f", VLAN {grant.vlan}" if grant.vlan else "")
        return on, grant.address, grant.mac, name
    if isinstance(grant, BandwidthGrant):
        return f"{grant.tap}, a limit", "", "", limit_words(grant)
    if isinstance(grant, FilterGrant):
        return f"filter of {grant.tap}", "", "", grant.words
    if isinstance(grant, PublishGrant):
        return grant.tap, grant.id, "", words(grant)
    on = grant.network or grant.bridge or grant.device
    if grant.mode:
        on = f"{on} {grant.mode}"
    if grant.vlan:
        on = f"{on} VLAN {grant.vlan}"
    if grant.isolated:
        on = f"{on} isolated"
    return on, grant.ifname, grant.mac, " ".join((*grant.ipv4, *grant.ipv6))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt leases``: what running machines hold of this host."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from sessionvirt.broker_client import BrokerClient

from . import status
from .output import print_json, print_table, say

if TYPE_CHECKING:
    import argparse

    from sessionvirt.broker_data import LeaseInfo

__all__ = ["main"]

_HEADS = ("VM", "USER", "STATE", "SINCE", "ALLOWED", "ON", "INTERFACE", "MAC", "ADDRESSES", "DROPS")


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
    else:
        say("no machine holds anything of this host")
    return status.OK


def _plain(lease: LeaseInfo) -> dict[str, object]:
    plain = asdict(lease)
    for grant in plain["grants"]:
        # A list has no descriptors; the key would only puzzle.
        del grant["fds"]
    return plain


def _rows(lease: LeaseInfo) -> list[tuple[str, ...]]:
    """One row for each grant; what belongs to the lease is in the first."""
    since = time.strftime("%F %T", time.localtime(lease.since))
    drops = ", ".join(f"{reason} {count}" for reason, count in lease.drops.items() if count)
    shared = (lease.vm, str(lease.uid), lease.state, since, lease.allowed)
    rows: list[tuple[str, ...]] = []
    for number, grant in enumerate(lease.grants):
        head = shared if number == 0 else (" ",) * len(shared)
        tail = (
            grant.network or grant.bridge,
            grant.ifname,
            grant.mac,
            " ".join((*grant.ipv4, *grant.ipv6)),
            (drops or "0") if number == 0 else " ",
        )
        rows.append((*head, *tail))
    return rows or [(*shared, "", "", "", "", drops or "0")]

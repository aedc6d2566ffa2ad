# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt filter``: what a running machine may not send and receive; shown, or changed."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from sessionvirt.broker_client import BrokerClient
from sessionvirt.broker_data import TapGrant
from sessionvirt.driver.filters import exchange
from sessionvirt.errors import UsageError

from . import status
from .definition import lists_of
from .output import print_json, print_table, say
from .whichlease import find_interface, find_running

if TYPE_CHECKING:
    import argparse

    from sessionvirt.broker_data import LeaseInfo

__all__ = ["main"]


def main(args: argparse.Namespace) -> int:
    """Change it where something is said, else show it."""
    return asyncio.run(_main(args))


async def _main(args: argparse.Namespace) -> int:
    lists = lists_of(args)
    if args.none and not lists.is_empty:
        raise UsageError("--none and a list contradict each other", advice="leave one of them out")
    async with await BrokerClient.connect() as client:
        lease = find_running(args.vm, await client.leases())
        if lists.is_empty and not args.none:
            return _show(lease, as_json=args.json)
        tap = find_interface(lease, args.interface)
        await exchange(client, lease.lease, tap.id, lists)
    say(f"{lease.vm}, {tap.mac}: " + ("no lists any more" if args.none else "the new lists hold"))
    return status.OK


def _show(lease: LeaseInfo, *, as_json: bool) -> int:
    rows = [
        (number, tap, lease.filters(tap.id)[-1:])
        for number, tap in enumerate(one for one in lease.grants if isinstance(one, TapGrant))
    ]
    if as_json:
        plain = [
            {
                "interface": n,
                "mac": tap.mac,
                "filter": dataclasses.asdict(held[0]) if held else None,
            }
            for n, tap, held in rows
        ]
        print_json({"vm": lease.vm, "interfaces": plain})
        return status.OK
    table = [(str(n), tap.mac, held[0].words if held else "none") for n, tap, held in rows]
    print_table(("INTERFACE", "MAC", "FILTER"), table)
    return status.OK

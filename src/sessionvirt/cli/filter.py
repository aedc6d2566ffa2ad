# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt filter``: what a running machine may not send and receive; shown, or changed."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from sessionvirt.broker_client import BrokerClient
from sessionvirt.broker_data import TapGrant
from sessionvirt.driver.filters import exchange
from sessionvirt.errors import NotFoundError, UsageError

from . import status
from .definition import lists_of
from .output import print_json, print_table, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

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
        lease = _machine(args.vm, await client.leases())
        if lists.is_empty and not args.none:
            return _show(lease, as_json=args.json)
        tap = _interface(args.interface, lease)
        await exchange(client, lease.lease, tap.id, lists)
    say(f"{lease.vm}, {tap.mac}: " + ("no lists any more" if args.none else "the new lists hold"))
    return status.OK


def _machine(word: str, leases: Sequence[LeaseInfo]) -> LeaseInfo:
    found = [
        one
        for one in leases
        if one.state == "held" and (one.vm == word or one.name.startswith(word))
    ]
    if not found:
        raise NotFoundError(
            f"no machine of yours {word!a} runs with an interface of the broker's",
            advice="'sessionvirt leases' lists them",
        )
    if len(found) > 1:
        rows = "\n".join(f"{one.name}  {one.vm} (uid {one.uid})" for one in found)
        raise UsageError(f"{word!a} is not the only one", evidence=rows, advice="write a lease")
    return found[0]


def _interface(word: str | None, lease: LeaseInfo) -> TapGrant:
    """By its number, from 0, or its MAC address.

    :raise UsageError: there are several, and none was named.
    :raise NotFoundError: there is no such one.
    """
    taps = [one for one in lease.grants if isinstance(one, TapGrant)]
    if word is None and len(taps) > 1:
        rows = "\n".join(f"{number}  {tap.mac}" for number, tap in enumerate(taps))
        raise UsageError(
            f"{lease.vm} has several interfaces", evidence=rows, advice="name one by --interface"
        )
    for number, tap in enumerate(taps):
        if word is None or word in (str(number), tap.mac):
            return tap
    had = ", ".join(f"{number} ({tap.mac})" for number, tap in enumerate(taps))
    raise NotFoundError(
        f"{lease.vm} has no such interface", evidence=f"it has {had or 'none'} of the broker's"
    )


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

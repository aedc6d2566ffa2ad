# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt limit``: how much a running machine receives and sends, shown and changed.

It goes to the broker by the machine's lease, so it need not be the program that runs the machine.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from sessionvirt.broker_client import BrokerClient
from sessionvirt.broker_data import BandwidthGrant, TapGrant
from sessionvirt.driver.limits import set_limit

from . import status
from .agent import terminal_agent
from .output import print_json
from .rates import parse_rate, rate_words
from .whichlease import find_interface, find_running

if TYPE_CHECKING:
    import argparse

    from sessionvirt.broker_data import LeaseInfo
    from sessionvirt.broker_requests import Rate

__all__ = ["main"]

#: The word that takes a limit away.
_NONE: Final = "none"


def main(args: argparse.Namespace) -> int:
    """Show it, or change it."""
    new = {
        way: None if text == _NONE else parse_rate(f"--{way}", text)
        for way in ("inbound", "outbound")
        if (text := getattr(args, way)) is not None
    }
    return asyncio.run(_main(args, new))


async def _main(args: argparse.Namespace, new: dict[str, Rate | None]) -> int:
    async with await BrokerClient.connect() as client:
        lease = find_running(args.vm, await client.leases())
        tap = find_interface(lease, args.interface, ("tap",))
        rates = {**_present(lease, tap), **new}
        if new:
            ask = not args.no_ask_password
            async with terminal_agent(wanted=ask):
                await set_limit(
                    *(client, lease.lease, tap.id, rates["inbound"], rates["outbound"]),
                    interactive=ask,
                )
    if args.json:
        plain = {way: asdict(rate) if rate else None for way, rate in rates.items()}
        print_json({"vm": lease.vm, "lease": lease.lease, "mac": tap.mac, **plain})
    else:
        for way, rate in rates.items():
            print(f"{way:<8}  {rate_words(rate) if rate else 'no limit'}")
    return status.OK


def _present(lease: LeaseInfo, tap: TapGrant) -> dict[str, Rate | None]:
    """What is in force: the newest."""
    rates: dict[str, Rate | None] = {"inbound": None, "outbound": None}
    for grant in lease.grants:
        if isinstance(grant, BandwidthGrant) and grant.tap == tap.id:
            rates = {"inbound": grant.inbound, "outbound": grant.outbound}
    return rates

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
from sessionvirt.errors import NotFoundError, UsageError

from . import status
from .agent import terminal_agent
from .output import print_json
from .rates import parse_rate, rate_words

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
        lease = _find(args.vm, await client.leases())
        tap = _interface(lease, args.interface)
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


def _find(word: str, leases: tuple[LeaseInfo, ...]) -> LeaseInfo:
    """The lease of a machine that has a TAP. Another user's is the broker's to refuse.

    :raise NotFoundError: there is none.
    :raise UsageError: there are several.
    """
    found = [
        one
        for one in leases
        if (one.vm == word or one.name.startswith(word)) and one.state == "held"
    ]
    if len(found) > 1:
        rows = "\n".join(f"{one.name}  {one.vm} (uid {one.uid})" for one in found)
        raise UsageError(f"'{word}' is not the only one", evidence=rows, advice="write a lease")
    if not found:
        raise NotFoundError(
            f"no running machine '{word}' has anything of the broker's",
            advice="'sessionvirt leases' lists those that have",
        )
    return found[0]


def _interface(lease: LeaseInfo, which: str | None) -> TapGrant:
    """The TAP that is meant.

    :raise NotFoundError: there is none.
    :raise UsageError: it is not said which.
    """
    taps = [one for one in lease.grants if isinstance(one, TapGrant) and one.kind == "tap"]
    rows = "\n".join(f"{n}  {tap.mac}  {tap.network or tap.bridge}" for n, tap in enumerate(taps))
    if which is not None:
        number = int(which) if which.isascii() and which.isdigit() and len(which) < 4 else None
        for place, tap in enumerate(taps):
            if place == number or tap.mac == which.lower():
                return tap
        raise NotFoundError(f"'{lease.vm}' has no such interface", evidence=rows)
    if len(taps) > 1:
        raise UsageError(
            f"'{lease.vm}' has several interfaces",
            evidence=rows,
            advice="write --interface and the number or MAC address of one",
        )
    if not taps:
        raise NotFoundError(f"'{lease.vm}' has no interface on a network or bridge")
    return taps[0]


def _present(lease: LeaseInfo, tap: TapGrant) -> dict[str, Rate | None]:
    """What is in force: the newest."""
    rates: dict[str, Rate | None] = {"inbound": None, "outbound": None}
    for grant in lease.grants:
        if isinstance(grant, BandwidthGrant) and grant.tap == tap.id:
            rates = {"inbound": grant.inbound, "outbound": grant.outbound}
    return rates

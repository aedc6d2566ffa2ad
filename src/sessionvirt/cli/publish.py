# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt publish``: ports of this host lead to a machine that runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sessionvirt.broker_client import BrokerClient
from sessionvirt.driver.publishing import choose_tap, publish, words
from sessionvirt.model.portforward import read_ports

from . import status
from .agent import terminal_agent
from .output import say
from .whichlease import find_lease

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]


def main(args: argparse.Namespace) -> int:
    """Publish them."""
    return asyncio.run(_main(args))


async def _main(args: argparse.Namespace) -> int:
    ports = [read_ports(text) for text in args.ports]
    async with await BrokerClient.connect() as client:
        lease = find_lease(args.machine, await client.leases())
        tap = choose_tap(lease, args.interface)
        ask = not args.no_ask_password
        async with terminal_agent(wanted=ask):
            grants = await publish(client, lease.lease, tap.id, ports, interactive=ask)
    for grant in grants:
        say(f"{lease.vm}: {words(grant)}")
    return status.OK

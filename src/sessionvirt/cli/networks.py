# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt networks``: the networks and bridges that machines can join."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

from sessionvirt.broker_client import BrokerClient

from . import status
from .output import print_json, print_table, say

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]


def main(args: argparse.Namespace) -> int:
    """Print the list."""
    return asyncio.run(_main(args))


async def _main(args: argparse.Namespace) -> int:
    async with await BrokerClient.connect() as client:
        networks = await client.networks()
    if args.json:
        print_json({"networks": [asdict(network) for network in networks]})
        return status.OK
    if not networks:
        say("there are no networks; an administrator adds them to /etc/sessionvirt/broker.toml")
        return status.OK
    heads = ("NAME", "TYPE", "MODE", "BRIDGE", "STATE", "IPV4", "IPV6", "LEASES")
    rows = [
        (
            network.name,
            network.type,
            network.mode,
            network.bridge,
            "up" if network.up else "down",
            network.ipv4,
            network.ipv6,
            str(network.leases),
        )
        for network in networks
    ]
    print_table(heads, rows)
    return status.OK

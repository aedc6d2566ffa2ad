# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt networks``: the networks and bridges that machines can join."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

from sessionvirt.broker_client import BrokerClient

from . import status
from .hurry import in_time
from .output import print_json, print_table, say

if TYPE_CHECKING:
    import argparse

    from sessionvirt.broker_data import NetworkInfo

__all__ = ["main"]


def main(args: argparse.Namespace) -> int:
    """Print the list."""
    return asyncio.run(_main(args))


async def _main(args: argparse.Namespace) -> int:
    if args.names:
        return await _print_names(args.names)
    networks = await _ask()
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
            " ".join(network.ipv4),
            " ".join(network.ipv6),
            str(network.leases),
        )
        for network in networks
    ]
    print_table(heads, rows)
    return status.OK


async def _ask() -> tuple[NetworkInfo, ...]:
    async with await BrokerClient.connect() as client:
        return await client.networks()


async def _print_names(kind: str) -> int:
    """Print the names of one type, one a line.

    A name that is not one line of print is none that the broker gives, and is left out: a reader
    would take it for two, or show it to a terminal.

    :raise BrokerUnavailableError: also where there is no answer in time.
    """
    for network in await in_time(_ask()):
        if network.type == kind and network.name.isprintable():
            print(network.name)
    return status.OK

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt unpublish``: ports of this host lead to a machine no longer."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from typing import TYPE_CHECKING, Final

from sessionvirt.broker_client import BrokerClient
from sessionvirt.driver.publishing import unpublish, words
from sessionvirt.errors import UsageError

from . import status
from .output import say
from .whichlease import find_lease

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]

#: An address, the first port, and whatever stood behind when it was published.
_WORD: Final = re.compile(
    r"(?:(?P<address>[0-9.]+|\[[0-9a-fA-F:.]+\]):)?(?P<port>[1-9][0-9]{0,4})(?:-[0-9]{1,5})?"
    r"(?::[0-9-]{1,11})?(?:/(?P<protocol>tcp|udp))?"
)


def main(args: argparse.Namespace) -> int:
    """Give them back."""
    return asyncio.run(_main(args))


async def _main(args: argparse.Namespace) -> int:
    wanted = [_read(text) for text in args.ports]
    async with await BrokerClient.connect() as client:
        lease = find_lease(args.machine, await client.leases())
        for grant in await unpublish(client, lease, wanted):
            say(f"{lease.vm}: no longer {words(grant)}")
    return status.OK


def _read(text: str) -> tuple[str, str | None, int]:
    found = _WORD.fullmatch(text) if text.isascii() else None
    if found is None:
        raise UsageError(
            f"{text[:60]!a} names no port", advice="write [ADDRESS:]PORT[/udp], like 8080"
        )
    address = found["address"]
    try:
        host = address and str(ipaddress.ip_address(address.strip("[]")))
    except ValueError as error:
        raise UsageError(f"{address[:60]!a} is no address") from error
    return found["protocol"] or "tcp", host, int(found["port"])

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt reclaim``: end a machine and take back what it has of this host."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from sessionvirt.broker_client import BrokerClient

from . import status
from .agent import terminal_agent
from .output import say
from .whichlease import find_lease, leases_called

if TYPE_CHECKING:
    import argparse

    from sessionvirt.broker_data import LeaseInfo

__all__ = ["main"]

#: What every lease's path begins with.
_PREFIX: Final = "/org/sessionvirt/Broker1/lease/"


def main(args: argparse.Namespace) -> int:
    """Reclaim it."""
    return asyncio.run(_main(args))


async def _main(args: argparse.Namespace) -> int:
    async with await BrokerClient.connect() as client:
        path, own = _find(args.lease, await client.leases())
        ask = not args.no_ask_password
        async with terminal_agent(wanted=ask and not own):
            await client.reclaim(path, interactive=ask)
    say("everything that it had of this host is given back")
    return status.OK


def _find(word: str, leases: tuple[LeaseInfo, ...]) -> tuple[str, bool]:
    """The path of the lease that is meant, and whether the caller can see it.

    Another user's is not listed, and so has to be named whole.

    :raise NotFoundError: there is none.
    :raise UsageError: there are several.
    """
    if (found := leases_called(word, leases)) is not None:
        return found.lease, True
    if re.fullmatch(r"[0-9a-f]{32}", word):
        return _PREFIX + word, False
    return find_lease(word, leases).lease, True

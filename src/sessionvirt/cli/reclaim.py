# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt reclaim``: end a machine and take back what it has of this host."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from sessionvirt.broker_client import BrokerClient
from sessionvirt.errors import NotFoundError, UsageError

from . import status
from .agent import terminal_agent
from .output import say

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
    found = {one.lease: one for one in leases if one.vm == word or one.name.startswith(word)}
    if len(found) > 1:
        rows = "\n".join(f"{one.name}  {one.vm} (uid {one.uid})" for one in found.values())
        raise UsageError(f"'{word}' is not the only one", evidence=rows, advice="write more of it")
    if found:
        return next(iter(found)), True
    if re.fullmatch(r"[0-9a-f]{32}", word):
        return _PREFIX + word, False
    raise NotFoundError(
        f"you have no lease or machine '{word}'",
        advice="'sessionvirt leases' lists yours, 'sudo sessionvirt leases' everybody's",
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Somebody else who takes the firewall's rules away, and when they are back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lab import host

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.client import Client

__all__ = ["degraded", "flush_until_given_up", "once"]


def once(there: Callable[[], bool], client: Client, seconds: float = 5) -> None:
    """Return once something is so; what passes the time is a question that the broker answers.

    :raise TimeoutError: it is not.
    """
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise TimeoutError("it did not become so")
        client.leases()


def degraded(client: Client) -> str:
    """Why the client's leases are said to be."""
    return "".join({str(lease["degraded"].value) for lease in client.leases()})


def flush_until_given_up(client: Client) -> int:
    """Flush the ruleset again and again until the client's leases are degraded, and unfiltered.

    :return: how often that was.
    """
    for number in range(1, 20):
        host.nft("flush", "ruleset")
        once(lambda: bool(host.tables() or degraded(client)), client)
        if degraded(client):
            assert host.tables() == []
            return number
    raise TimeoutError("it is put back for ever")

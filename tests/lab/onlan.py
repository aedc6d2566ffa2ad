# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that joins a LAN, by a bridge or without one: what it is refused, and its address."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.client import RefusalError

if TYPE_CHECKING:
    from dbus_fast import Variant

    from lab.client import Client
    from lab.tap import Tap

__all__ = ["refusal", "with_address"]


def refusal(client: Client, *requests: tuple[str, dict[str, Variant]]) -> RefusalError:
    """What Acquire says; nothing is done."""
    before = host.ours()
    with pytest.raises(RefusalError) as refused:
        client.acquire(*requests, vm="refused")
    assert host.ours() == before
    assert refused.value.text.isascii()
    return refused.value


def with_address(tap: Tap, address: str) -> Tap:
    """The guest has taken an address."""
    tap.facts = {**tap.facts, "ipv4": [address], "ipv6": ["2001:db8:49::" + tap.mac[-2:]]}
    return tap

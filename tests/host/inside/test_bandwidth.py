# SPDX-License-Identifier: LGPL-2.1-or-later
"""Limits of a guest's traffic on Debian's kernel, which has fq_codel, and with Debian's nft.

What of them needs no more than a namespace is in tests/kernel/test_traffic_limits.py.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.tap import HEADER
from lab.throttled import (
    GATEWAY,
    TABLE,
    WINDOW,
    flow,
    known_to_gateway,
    rate_of,
    settles_at,
    to_guest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.tap import Tap

pytestmark = pytest.mark.host

#: In 1000 bytes a second.
INBOUND, OUTBOUND = 1000, 500


@pytest.fixture
def tap() -> Iterator[Tap]:
    """A guest of user1's with both limits."""
    from host.inside.machines import permitted
    from host.inside.strangers import connection, holding
    from lab import rawbus

    limits = rawbus.bandwidth("tap0", inbound_average=INBOUND, outbound_average=OUTBOUND)
    with (
        permitted(),
        connection("user1") as client,
        holding(client, "limited", rawbus.tap(queues=2), limits) as held,
    ):
        (tap,) = held.taps
        with known_to_gateway(tap):
            yield tap


def test_what_a_guest_receives(tap: Tap) -> None:
    shown = subprocess.run(
        ["tc", "qdisc", "show", "dev", tap.ifname], capture_output=True, check=True, text=True
    ).stdout
    assert "qdisc htb 5356: root" in shown
    assert "qdisc fq_codel 5357: parent 5356:1" in shown
    # TCP is in the other file: fq_codel drops, which a TCP of a few lines does not recover from.
    with to_guest(tap):
        assert settles_at(lambda: rate_of(tap), INBOUND * 1000)


def test_what_a_guest_sends(tap: Tap) -> None:
    assert tap.ifname in host.nft("list", "table", *TABLE.split())
    gateway = str(host.link("svn_default")["address"])
    frame = HEADER + tap.udp4(gateway, GATEWAY, (7000, 7000), bytes(1372))
    counter = Path("/sys/class/net/svn_default/statistics/rx_bytes")

    def count() -> int:
        return int(counter.read_text(encoding="ascii"))

    def rate() -> float:
        begin, before = time.monotonic(), count()
        time.sleep(WINDOW)
        return (count() - before) / (time.monotonic() - begin)

    with flow(lambda: os.write(tap.fds[0], frame)):
        # A second's worth may go at once.
        deadline, first = time.monotonic() + 20, count()
        while count() - first < OUTBOUND * 1100 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert settles_at(rate, OUTBOUND * 1000)

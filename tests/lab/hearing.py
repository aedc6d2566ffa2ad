# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wait for a frame, whoever hears it: a guest by its TAP, another host by its card."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lab.frames import Packet

__all__ = ["until"]


def until(
    wanted: Callable[[Packet], bool],
    arrived: Callable[[], Iterable[Packet]],
    readable: Sequence[Any],
    timeout: float,
) -> list[Packet]:
    """Everything up to and with the first packet that is *wanted*.

    :param arrived: all that has come since it was called last.
    :param readable: what select(2) watches meanwhile.
    :raise TimeoutError: it did not come; the text has what did.
    """
    seen: list[Packet] = []
    deadline = time.monotonic() + timeout
    while True:
        for packet in arrived():
            seen.append(packet)
            if wanted(packet):
                return seen
        left = deadline - time.monotonic()
        if left <= 0 or not select.select(readable, [], [], left)[0]:
            raise TimeoutError(f"it did not arrive within {timeout} s; there were: {seen}")

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers for a shell that completes a word: in time, or not at all.

Somebody has pressed TAB and cannot type before it is done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from sessionvirt.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["in_time"]

T = TypeVar("T")

#: Seconds.
_PATIENCE: Final = 2.0


async def in_time(question: Awaitable[T]) -> T:
    """Wait for the broker's answer, but not for long.

    :raise BrokerUnavailableError: also where there is no answer in time.
    """
    try:
        async with asyncio.timeout(_PATIENCE):
            return await question
    except TimeoutError as error:
        raise BrokerUnavailableError(f"no answer within {_PATIENCE:.0f} seconds") from error

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What takes the place of a filter or a limit, while somebody else does the same."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from sessionvirt.broker_data import FilterGrant, LeaseInfo
from sessionvirt.broker_requests import FilterRequest
from sessionvirt.driver.replacing import replace
from sessionvirt.errors import BusyError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

pytestmark = pytest.mark.unit

LEASE = "/l/x"
REQUEST = FilterRequest("tap0", deny=("arp",))


class Broker:
    """One lease; each call lets others go on before it and after it."""

    def __init__(self, *held: str) -> None:
        self.held = list(held)
        self.made = 0
        self.fewest = len(held)
        #: What somebody else does before each of the next questions.
        self.meanwhile: list[tuple[str, ...]] = []

    def now(self, *held: str) -> None:
        self.held = list(held)
        self.fewest = min(self.fewest, len(self.held))

    async def add(self, lease: str, requests: Sequence[object], **_: bool) -> list[FilterGrant]:
        await asyncio.sleep(0)
        self.made += 1
        self.now(*self.held, f"new{self.made}")
        await asyncio.sleep(0)
        return [FilterGrant(f"new{self.made}", "filter", "tap0")]

    async def leases(self) -> list[LeaseInfo]:
        await asyncio.sleep(0)
        grants = tuple(FilterGrant(one, "filter", "tap0") for one in self.held)
        if self.meanwhile:
            self.now(*self.meanwhile.pop(0))
        await asyncio.sleep(0)
        return [LeaseInfo(LEASE, "vm", 1000, "held", 0, "yes", grants, {}, 0)]

    async def drop(self, lease: str, names: Sequence[str]) -> None:
        await asyncio.sleep(0)
        if not {*names} <= {*self.held}:
            raise NotFoundError("grants: the lease has no such grant")
        self.now(*(one for one in self.held if one not in names))
        await asyncio.sleep(0)


def replaced(broker: Broker, request: FilterRequest | None = REQUEST) -> Coroutine[Any, Any, None]:
    client = cast("Any", broker)
    return replace(client, LEASE, lambda info: info.filters("tap0"), request, interactive=False)


async def together(broker: Broker, first: int) -> None:
    """Two at once, the second so many steps of the loop behind the first."""

    async def later() -> None:
        for _ in range(first):
            await asyncio.sleep(0)
        await replaced(broker)

    await asyncio.gather(replaced(broker), later())


def test_what_was_there_before_goes() -> None:
    broker = Broker("old1", "old2")
    asyncio.run(replaced(broker))
    assert broker.held == ["new1"]
    asyncio.run(replaced(broker, None))
    assert broker.held == []


@pytest.mark.parametrize("steps", range(8))
def test_of_two_at_once_the_later_one_is_left(steps: int) -> None:
    broker = Broker("old")
    asyncio.run(together(broker, steps))
    assert broker.held == ["new2"]
    assert broker.fewest == 1  # at no time was there none


def test_one_that_was_taken_later_is_left_alone() -> None:
    broker = Broker("old")
    broker.meanwhile = [("old", "new1", "theirs")]
    asyncio.run(replaced(broker))
    assert broker.held == ["new1", "theirs"]  # whose business "new1" is
    broker = Broker("old")
    broker.meanwhile = [("theirs",)]
    asyncio.run(replaced(broker))
    assert broker.held == ["theirs"]


def test_nobody_looks_for_ever() -> None:
    broker = Broker("old0")
    broker.meanwhile = [(f"old{number}",) for number in range(1, 9)]
    with pytest.raises(BusyError):
        asyncio.run(replaced(broker, None))

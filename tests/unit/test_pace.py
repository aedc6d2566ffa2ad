# SPDX-License-Identifier: LGPL-2.1-or-later
"""Questions that take the worker long leave it to others most of the time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from sessionvirt_broker.pace import Pace
from sessionvirt_broker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.unit


def run(test: Callable[[World], Awaitable[None]]) -> None:
    async def inside() -> None:
        worker = Worker()
        try:
            await asyncio.wait_for(test(World(worker)), 10)
        finally:
            await worker.close()

    asyncio.run(inside())


class World:
    """A clock that only work and sleep move."""

    def __init__(self, worker: Worker) -> None:
        self.now = 100.0
        self.begun: list[tuple[str, float]] = []
        self.pace = Pace(worker, lambda: self.now)

    def work(self, name: str, seconds: float) -> str:
        self.begun.append((name, self.now))
        self.now += seconds
        return name

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)


def test_after_an_answer_there_is_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr("sessionvirt_broker.pace.asyncio.sleep", world.sleep)
        assert await world.pace.run(1, world.work, "first", 2.0) == "first"
        await world.pace.run(2, world.work, "second", 1.0)
        await world.pace.run(1, world.work, "third", 0.0)
        assert world.begun == [("first", 100.0), ("second", 110.0), ("third", 115.0)]

    run(test)


def test_who_asks_much_is_before_another_only_once() -> None:
    async def test(world: World) -> None:
        many = [world.pace.run(1, world.work, f"many{n}", 0.0) for n in range(9)]
        await asyncio.gather(*many, world.pace.run(2, world.work, "one", 0.0))
        names = [name for name, _ in world.begun]
        assert names.index("one") <= 2

    run(test)


def test_a_question_that_fails_or_is_left_has_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        def fail() -> None:
            world.work("fail", 1.0)
            raise OSError("no")

        monkeypatch.setattr("sessionvirt_broker.pace.asyncio.sleep", world.sleep)
        with pytest.raises(OSError, match="no"):
            await world.pace.run(1, fail)
        await world.pace.run(1, world.work, "next", 0.0)
        assert world.begun[-1] == ("next", 105.0)

    run(test)

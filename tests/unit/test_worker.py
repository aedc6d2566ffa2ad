# SPDX-License-Identifier: LGPL-2.1-or-later
"""The worker answers, whatever is raised on it."""

from __future__ import annotations

import asyncio

import pytest

from sessionvirt_broker.worker import Worker

pytestmark = pytest.mark.unit


def stumble() -> int:
    return next(iter(()))


@pytest.mark.parametrize("way", ["run", "run_or_orphan"])
def test_a_stop_iteration_is_told(way: str) -> None:
    """asyncio only logs it otherwise, and the call is never answered."""

    async def call() -> None:
        worker = Worker()
        try:
            answer = worker.run(stumble) if way == "run" else worker.run_or_orphan(stumble, print)
            with pytest.raises(RuntimeError, match="StopIteration"):
                await asyncio.wait_for(answer, 5)
        finally:
            await worker.close()

    asyncio.run(call())

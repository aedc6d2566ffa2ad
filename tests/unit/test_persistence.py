# SPDX-License-Identifier: LGPL-2.1-or-later
"""What would not go back is tried again, whatever it was left by: the broker's half of it.

The leases are a stub that keeps something; what really keeps a device is in the test host.
"""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pytest

from sessionvirt_broker import custody as custody_module
from sessionvirt_broker.broker import Broker, Call
from sessionvirt_broker.errors import Busy, HostFailure
from sessionvirt_broker.journal import Record
from sessionvirt_broker.steps import Step
from sessionvirt_broker.undo import Undo
from sessionvirt_broker.wire import Fields
from sessionvirt_broker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sessionvirt_broker.host import Host

pytestmark = pytest.mark.unit

CALL: Any = Call(SimpleNamespace(uid=1000, sender=":1.5"), interactive=False)  # type: ignore[arg-type]
LEASE = "0" * 32


class Stub:
    """Leases of which one thing waits, from the first call to the second try."""

    def __init__(self) -> None:
        self.waits = False
        self.tries = 0
        self.listing = SimpleNamespace(is_releasing=lambda _: self.waits)

    def is_ready(self, *_: object) -> bool:
        return True

    def survey(self, *_: object) -> list[object]:
        return []

    def owner(self, *_: object) -> object:
        return SimpleNamespace(uid=1000, vm="vm")

    def drop(self, *_: object) -> object:
        self.waits = True
        return self.owner()

    def release(self, *_: object) -> object:
        self.waits = True
        return self.owner()

    def acquire(self, *_: object) -> object:
        self.waits = True
        raise HostFailure("a step failed")

    def add(self, *_: object) -> object:
        return self.acquire()

    def changed(self, _: object) -> list[object]:
        self.waits = True
        return [SimpleNamespace(lease=LEASE, uid=1000, why="is gone", dropped=("pci0",))]

    def retry(self) -> bool:
        self.tries += 1
        self.waits = self.tries < 2
        return self.waits


def options(**values: Any) -> Fields:
    return Fields("options", values)


CAUSES: dict[str, Callable[[Broker], Awaitable[object]]] = {
    "drop": lambda one: one.drop(CALL, LEASE, ["pci0"], options()),
    "release": lambda one: one.release(CALL, LEASE, options()),
    "acquire": lambda one: one.acquire(CALL, [], options(vm=("s", "vm"))),
    "add": lambda one: one.add(CALL, LEASE, [], options()),
    "unplugged": lambda one: one.custody._look_at(frozenset({"0000:03:00.0"}), routes=False),
    "orphan": lambda one: one.custody._drop(LEASE, 1000, ["pci0"]),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_what_waits_is_tried_again_until_it_goes(
    cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custody_module, "FIRST_RETRY_SECONDS", 0.001)
    leases = Stub()

    async def nothing(*_: object, **__: object) -> str:
        return "yes"

    async def scenario() -> None:
        worker = Worker()
        parts: Any = {
            "bus": SimpleNamespace(identify=nothing),
            "consent": SimpleNamespace(obtain=nothing),
            "worker": worker,
            "leases": leases,
            "host": None,
            "config": SimpleNamespace(current=lambda: SimpleNamespace(limits=None)),
            "devices": None,
            "changed": lambda: None,
            "replace": lambda: None,
        }
        broker = Broker(**parts)
        with closing(broker.custody.holds):
            with suppress(HostFailure, Busy):
                await CAUSES[cause](broker)
            task = broker.custody._persistence
            assert task is not None
            await asyncio.wait_for(task, 10)
            await broker.custody.settle()
        await worker.close()

    asyncio.run(scenario())
    assert leases.tries == 2
    assert not leases.waits


@dataclass(frozen=True, slots=True)
class Reluctant(Step):
    """A step that will not go, for one reason or another."""

    NAME: ClassVar[str] = "reluctant"

    reason: str

    def describe(self) -> str:
        return "do"

    def describe_undo(self) -> str:
        return "undo"

    def execute(self, host: Host) -> Self:
        return self

    def undo(self, host: Host) -> None:
        if self.reason:
            raise Busy("somebody has it") if self.reason == "busy" else OSError("no")


@pytest.mark.parametrize("reason", ["busy", "broken"])
def test_what_waits_is_what_somebody_has_to_let_go_of(reason: str) -> None:
    """And nothing but that: a step that failed for another reason is not tried by the clock."""
    passes: list[str] = []
    host: Any = SimpleNamespace(
        waiting=[], stuck=set(), vfio=SimpleNamespace(let_go=lambda: passes.append("let go"))
    )
    journal: Any = SimpleNamespace(write=lambda _: None, remove=lambda _: None)
    undo = Undo(host, journal)
    record = Record("vfio-7", {}, {"": [Reluctant(reason)]})
    undo.record(record)
    assert (undo.waits, "vfio-7" in undo) == (reason == "busy", True)
    undo.retry()
    assert (undo.waits, "vfio-7" in undo) == (reason == "busy", True)
    record.parts[""] = [Reluctant("")]
    undo.retry()
    assert (undo.waits, "vfio-7" in undo, host.waiting) == (False, False, [])
    assert passes == ["let go"] * 3

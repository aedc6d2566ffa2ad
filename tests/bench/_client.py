# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ordinary user of the broker's benchmarks: runs as alice, takes orders on standard input.

One JSON value a line in, one out. ``["cycle"]`` acquires and releases one TAP and answers the two
times in ms; ``["hold", N]`` acquires N leases more and keeps them; ``["forget"]`` releases all;
``["ask"]`` answers the time of one ListLeases in ms, over a connection that exists already.
``["furnish", FIRST, KINDS]`` adds to every lease from that one on, counted from 0, what is in
KINDS, a dict of requests' fields; a ``host_port`` is the lease's number more.
``["change", KIND, FIELDS]`` adds one to the first lease, drops it again, and answers the two times
in ms.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from typing import Any

from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

NAME, PATH = "org.sessionvirt.Broker1", "/org/sessionvirt/Broker1"
LEASE = NAME + ".Lease"
TYPES = {int: "u", str: "s", list: "as"}


def typed(fields: dict[str, Any], number: int = 0) -> dict[str, Variant]:
    """What rests on a lease's first TAP; *number*: the lease's."""
    shifted = {k: v + number if k == "host_port" else v for k, v in fields.items()}
    return {k: Variant(TYPES[type(v)], v) for k, v in ({"tap": "tap0"} | shifted).items()}


class Client:
    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._held: list[tuple[str, list[int]]] = []
        self._number = 0

    async def _call(
        self, path: str, interface: str, member: str, signature: str, *body: object
    ) -> Message:
        message = Message(
            destination=NAME,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
        )
        reply = await self._bus.call(message)
        assert reply is not None
        if reply.message_type is not MessageType.METHOD_RETURN:
            raise SystemExit(f"{reply.error_name}: {reply.body}")
        return reply

    async def _acquire(self) -> tuple[str, list[int]]:
        self._number += 1
        request = ["tap", {"network": Variant("s", "default")}]
        options = {"vm": Variant("s", f"bench{self._number}")}
        reply = await self._call(PATH, NAME, "Acquire", "a(sa{sv})a{sv}", [request], options)
        return reply.body[0], list(reply.unix_fds)

    async def _release(self, lease: str, fds: list[int]) -> None:
        await self._call(lease, LEASE, "Release", "a{sv}", {})
        for descriptor in fds:
            os.close(descriptor)

    async def _add(self, lease: str, *requests: list[Any]) -> str:
        reply = await self._call(lease, LEASE, "Add", "a(sa{sv})a{sv}", list(requests), {})
        return str(reply.body[0][-1]["id"].value)

    async def _change(self, kind: str, fields: dict[str, Any]) -> list[float]:
        lease, _ = self._held[0]
        start = time.perf_counter()
        name = await self._add(lease, [kind, typed(fields)])
        added = time.perf_counter()
        await self._call(lease, LEASE, "Drop", "asa{sv}", [name], {})
        return [(added - start) * 1e3, (time.perf_counter() - added) * 1e3]

    async def _furnish(self, first: int, kinds: dict[str, dict[str, Any]]) -> None:
        for number, (lease, _) in enumerate(self._held[first:], first):
            await self._add(lease, *([kind, typed(f, number)] for kind, f in kinds.items()))

    async def order(self, order: list[Any]) -> object:
        if order[0] == "cycle":
            start = time.perf_counter()
            lease, fds = await self._acquire()
            acquired = time.perf_counter()
            await self._release(lease, fds)
            return [(acquired - start) * 1e3, (time.perf_counter() - acquired) * 1e3]
        if order[0] == "hold":
            self._held += [await self._acquire() for _ in range(order[1])]
            return len(self._held)
        if order[0] == "forget":
            for lease, fds in self._held:
                await self._release(lease, fds)
            self._held.clear()
            return 0
        if order[0] == "change":
            return await self._change(order[1], order[2])
        if order[0] == "furnish":
            await self._furnish(order[1], order[2])
            return 0
        start = time.perf_counter()
        await self._call(PATH, NAME, "ListLeases", "a{sv}", {})
        return (time.perf_counter() - start) * 1e3


async def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    client = Client(bus)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await client.order(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

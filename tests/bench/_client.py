# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ordinary user of the broker's benchmarks: runs as alice, takes orders on standard input.

One JSON value a line in, one out. ``["cycle"]`` acquires and releases one TAP and answers the two
times in ms; ``["hold", N]`` acquires N leases more and keeps them; ``["forget"]`` releases all;
``["ask"]`` answers the time of one ListLeases in ms, over a connection that exists already.
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

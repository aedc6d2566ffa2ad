# SPDX-License-Identifier: LGPL-2.1-or-later
"""The system bus: Debian's dbus-daemon with Debian's own configuration, at its own address.

Service activation works, through the setuid launch helper, as on a machine without systemd. Waiting
is by the bus's own signals (NameOwnerChanged), never by looking again and again.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus

from lab.daemon import Daemon, DaemonError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from types import TracebackType

__all__ = ["ENVIRONMENT", "SystemBus", "call", "connected", "in_thread", "wait_for_owner"]

#: What a daemon is started with.
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}

SOCKET = Path("/run/dbus/system_bus_socket")
BUS = "org.freedesktop.DBus"

T = TypeVar("T")


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* in a loop of its own, in a thread: a test may call this from inside its own loop.

    The caller waits, and with it the caller's loop: what is waited for is another process.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:  # handed to the caller below
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@asynccontextmanager
async def connected() -> AsyncIterator[MessageBus]:
    """A connection to the lab's system bus, as root."""
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    try:
        yield bus
    finally:
        bus.disconnect()
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


async def call(
    bus: MessageBus,
    destination: str,
    path: str,
    member: str,
    signature: str = "",
    body: list[Any] | None = None,
) -> list[Any]:
    """Call ``interface.Method`` (*member*) and give the reply's body.

    :raise DaemonError: the reply is an error.
    """
    interface, _, name = member.rpartition(".")
    message = Message(
        destination=destination,
        path=path,
        interface=interface,
        member=name,
        signature=signature,
        body=body or [],
    )
    reply = await bus.call(message)
    assert reply is not None
    if reply.message_type is MessageType.ERROR:
        raise DaemonError(f"{destination}: {member}: {reply.error_name}: {reply.body}")
    return list(reply.body)


async def _owner_comes(name: str, pid: int | None) -> str:
    loop = asyncio.get_running_loop()
    came: asyncio.Future[str] = loop.create_future()

    def changed(message: Message) -> None:
        if message.member == "NameOwnerChanged" and message.body[0] == name and not came.done():
            owner_now: str = message.body[2]
            if owner_now:
                came.set_result(owner_now)

    def ended() -> None:
        if not came.done():
            came.set_exception(DaemonError("ended"))

    async with connected() as bus:
        bus.add_message_handler(changed)
        rule = f"type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{name}'"
        await call(bus, BUS, "/", f"{BUS}.AddMatch", "s", [rule])
        if (await call(bus, BUS, "/", f"{BUS}.NameHasOwner", "s", [name]))[0]:
            owner: str = (await call(bus, BUS, "/", f"{BUS}.GetNameOwner", "s", [name]))[0]
            return owner
        if pid is None:
            return await came
        pidfd = os.pidfd_open(pid)
        try:
            loop.add_reader(pidfd, ended)
            return await came
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)


def wait_for_owner(name: str, *, pid: int | None = None, timeout: float = 15) -> str:
    """Wait until *name* is owned on the bus; its unique name.

    :param pid: a process that will own it: waiting ends when it does.
    :param timeout: seconds.
    :raise DaemonError: the process ended first.
    :raise TimeoutError: nobody came.
    """

    async def within() -> str:
        async with asyncio.timeout(timeout):
            return await _owner_comes(name, pid)

    return in_thread(within())


class SystemBus:
    """The bus, as a context manager."""

    def __init__(self) -> None:
        self.daemon = Daemon("dbus-daemon", [], ENVIRONMENT)

    def __enter__(self) -> Self:
        reading, writing = os.pipe()
        argv = ["dbus-daemon", "--system", "--nofork", "--nopidfile", f"--print-address={writing}"]
        self.daemon.argv = argv
        with os.fdopen(reading) as address:
            self.daemon.spawn(pass_fds=(writing,))
            os.close(writing)
            # Written once it listens; the end of the file instead: it did not come so far.
            if not address.readline().startswith("unix:"):
                self.daemon.kill()
                raise DaemonError(self.daemon.account("did not start"))
        return self

    def pid_of(self, name: str) -> int:
        """The process that owns *name*.

        :raise DaemonError: nobody does.
        """

        async def ask() -> int:
            async with connected() as bus:
                member = f"{BUS}.GetConnectionUnixProcessID"
                pid: int = (await call(bus, BUS, "/", member, "s", [name]))[0]
                return pid

        return in_thread(ask())

    def reload(self) -> None:
        """Have it read its configuration and service files again, and wait until it has."""

        async def ask() -> None:
            async with connected() as bus:
                await call(bus, BUS, "/", f"{BUS}.ReloadConfig")

        in_thread(ask())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.daemon.kill()
        SOCKET.unlink(missing_ok=True)

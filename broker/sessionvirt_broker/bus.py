# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's connection to the system bus, and who is at the other end of a call.

Identity is the caller's unique bus name: the bus gives it, never again to another connection, and
recorded the uid when it connected. A pid is not asked for: it can be somebody else's by the time it
is looked at.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbus_fast import BusType, Message, MessageFlag, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.errors import AuthError, InvalidAddressError

from .errors import HostFailure
from .intake import Intake
from .outlet import Outlet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_DBUS = "org.freedesktop.DBus"
#: The bus answers at once; this is for one that does not.
_BUS_SECONDS = 10.0


class CallerVanished(Exception):
    """The connection that asked is gone: there is nobody to answer or to give anything to."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A connection, and what the bus recorded of who made it.

    :param groups: the primary one and all others, as they were in the process that connected.
    """

    sender: str
    uid: int
    groups: frozenset[int] = frozenset()


class Bus:
    """One connection. The handler is called for every message, fds and all, before the library.

    There is none before :meth:`connect`: the bus drops whoever says nothing for five seconds (its
    auth_timeout), and a broker may have as much to do before.
    """

    _bus: MessageBus

    def __init__(self) -> None:
        self._outlet: Outlet | None = None
        self._watched: dict[str, set[asyncio.Task[Any]]] = {}

    async def connect(
        self, handler: Callable[[Message], bool], refuse: Callable[[Message, str], None]
    ) -> None:
        """Connect; ``handler`` says whether it has dealt with a message.

        :param refuse: gets the header of a message that was too large or not understood, and why.
        :raise HostFailure: there is no bus, or it does not let the broker in.
        """
        # negotiate_unix_fd: without it no fd can be sent.
        try:
            bus = self._bus = MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
            bus.add_message_handler(handler)
            await bus.connect()
        except (OSError, EOFError, InvalidAddressError, AuthError) as error:
            raise HostFailure(f"no way to the system bus: {error}") from error
        # From here on the library decodes what intake.py has read, and reads nothing itself.
        assert bus._sock is not None
        intake = Intake(bus._sock, bus._process_message, refuse, bus._finalize)
        writer: Any = bus._writer
        self._outlet = writer.sock = Outlet(bus._sock)
        loop = asyncio.get_running_loop()
        loop.remove_reader(bus._sock)
        loop.add_reader(bus._sock, intake.read)

    async def disconnected(self) -> None:
        """Return when the bus is gone."""
        wait: Callable[[], Awaitable[None]] = self._bus.wait_for_disconnect
        await wait()

    def disconnect(self) -> None:
        """Leave the bus."""
        self._bus.disconnect()

    async def send(self, message: Message) -> None:
        """Write it out; afterwards its fds may be closed."""
        await self._bus.send(message)

    async def call(
        self, destination: str, path: str, member: str, signature: str = "", *body: object
    ) -> list[Any]:
        """Call the bus itself.

        :raise HostFailure: it answered with an error, or not at all.
        """
        reply = await self.ask(
            Message(
                destination=destination,
                path=path,
                interface=destination,
                member=member,
                signature=signature,
                body=list(body),
            ),
            _BUS_SECONDS,
        )
        if reply is None and self._outlet is not None and self._outlet.unread():
            # dbus-daemon reads no more of a sender of whom 64 fds wait for somebody who does not
            # read them. A new connection starts at none.
            self._outlet = None
            self._bus._finalize(TimeoutError("the bus does not read"))
        if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
            raise HostFailure("the bus refused a call")
        return list(reply.body)

    async def ask(self, message: Message, seconds: float) -> Message | None:
        """Call somebody; None: no answer in time, or the connection is gone."""
        try:
            async with asyncio.timeout(seconds):
                return await self._bus.call(message)
        except (TimeoutError, OSError, EOFError):
            return None

    async def own(self, name: str) -> bool:
        """Own a name, or not at all (DBUS_NAME_FLAG_DO_NOT_QUEUE)."""
        for _ in range(2):
            if (await self._ask_bus("RequestName", "su", name, 4))[0] in (1, 4):
                return True
            # A bus that did not read from a broker (see call()) learns of its end by writing to it.
            await self.ask(
                Message(
                    destination=name,
                    path="/",
                    interface="org.freedesktop.DBus.Peer",
                    member="Ping",
                ),
                _BUS_SECONDS,
            )
        return False

    async def disown(self, name: str) -> None:
        """Give the name up; what was sent to it before has arrived when this returns."""
        await self._ask_bus("ReleaseName", "s", name)

    async def identify(self, sender: str) -> Caller:
        """Who a unique name is.

        :raise CallerVanished: nobody, any more.
        """
        try:
            (credentials,) = await self._ask_bus("GetConnectionCredentials", "s", sender)
        except HostFailure as error:
            raise CallerVanished(sender) from error
        uid = credentials.get("UnixUserID")
        if uid is None or uid.signature != "u":
            raise HostFailure("the bus does not say whose connection that is")
        # Of SO_PEERCRED and SO_PEERGROUPS (dbus-sysdeps-unix.c); a bus that does not tell them
        # has callers without a group.
        groups = credentials.get("UnixGroupIDs")
        known = groups.value if groups is not None and groups.signature == "au" else ()
        return Caller(sender, int(uid.value), frozenset(known))

    @asynccontextmanager
    async def cancelled_without(self, caller: Caller) -> AsyncIterator[None]:
        """While this is open, the current task is cancelled when the caller leaves the bus.

        For what may wait long (a prompt): one match rule each, gone with it.
        """
        task = asyncio.current_task()
        assert task is not None
        rule = (
            f"type='signal',sender='{_DBUS}',interface='{_DBUS}',member='NameOwnerChanged',"
            f"arg0='{caller.sender}'"
        )
        self._watched.setdefault(caller.sender, set()).add(task)
        try:
            await self._ask_bus("AddMatch", "s", rule)
            try:
                # It may have left between its call and the rule.
                await self.identify(caller.sender)
                yield
            finally:
                await asyncio.shield(self._ask_bus("RemoveMatch", "s", rule))
        finally:
            tasks = self._watched[caller.sender]
            tasks.discard(task)
            if not tasks:
                del self._watched[caller.sender]

    def on_signal(self, message: Message) -> None:
        """NameOwnerChanged of a watched caller."""
        if message.sender != _DBUS or message.member != "NameOwnerChanged":
            return
        if message.signature == "sss" and message.body[2] == "":
            for task in self._watched.get(message.body[0], ()):
                task.cancel("the caller left the bus")

    async def presence(self, name: str) -> str:
        """Whether somebody owns the name (``running``), could (``activatable``), or ``absent``."""
        if (await self._ask_bus("NameHasOwner", "s", name))[0]:
            return "running"
        activatable = (await self._ask_bus("ListActivatableNames", ""))[0]
        return "activatable" if name in activatable else "absent"

    async def _ask_bus(self, member: str, signature: str, *body: object) -> list[Any]:
        return await self.call(_DBUS, "/org/freedesktop/DBus", member, signature, *body)


def take_fds(message: Message) -> list[int]:
    """Take the fds out of a message; whoever calls this closes them: neither library ever does."""
    descriptors = list(message.unix_fds)
    message.unix_fds = []
    return descriptors


def wants_reply(message: Message) -> bool:
    """Whether the caller waits for an answer."""
    return not message.flags & MessageFlag.NO_REPLY_EXPECTED


def may_interact(message: Message) -> bool:
    """Whether the header allows a prompt; one bit, whatever the others are."""
    return bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)

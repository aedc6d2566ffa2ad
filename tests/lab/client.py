# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client of the broker that is nobody's: raw messages as an ordinary user, synchronously.

The bus records who connects, so the test's own process can be anybody: it connects with that user's
effective uid, and takes root's back before the first message. What the broker hands over are then
this process's fds, and the test is the hostile guest. (What only the lack of a capability shows is
done by a program that runs as the user, see ``tap.py``.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from dbus_fast import BusType, Message, MessageFlag, MessageType, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.auth import AuthExternal

from lab.broker import NAME
from lab.tap import Tap

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping
    from types import TracebackType

    from lab.users import User

__all__ = [
    "INTERFACE",
    "PATH",
    "Client",
    "Lease",
    "RefusalError",
    "direct",
    "frame_filter",
    "network_tap",
    "publish",
]

PATH = "/org/sessionvirt/Broker1"
INTERFACE = NAME
LEASE_INTERFACE = f"{NAME}.Lease"
ERROR = f"{NAME}.Error."
#: Kinds of grants that are a guest's card.
_CARDS = ("tap", "direct")
#: For an answer of the broker; a test that waits longer has found something.
SECONDS = 15.0


class RefusalError(Exception):
    """The broker, or the bus, answered with an error.

    :param name: the last word of the D-Bus error's name.
    """

    def __init__(self, full_name: str, text: str) -> None:
        super().__init__(f"{full_name}: {text}")
        self.full_name = full_name
        self.name = full_name.rpartition(".")[2]
        self.text = text


def network_tap(network: str = "default", **fields: Any) -> tuple[str, dict[str, Variant]]:
    """A request for a TAP: ``mac`` and ``bridge`` are text, ``queues`` a number, ``vhost``
        is a boolean.

    :param network: empty: none, for a request that names a bridge.
    """
    return "tap", _typed({"network": network, **fields} if network else fields)


def direct(**fields: Any) -> tuple[str, dict[str, Variant]]:
    """A request for a macvtap device."""
    return "direct", _typed(fields)


def frame_filter(tap: str = "tap0", **fields: Any) -> tuple[str, dict[str, Variant]]:
    """A request for a filter of a TAP's; its lists are lists of text."""
    return "filter", _typed({"tap": tap, **fields})


def publish(tap: str, host_port: int, guest_port: int, **fields: Any) -> tuple[str, Any]:
    """A request for published ports; TCP where no ``protocol`` is given."""
    ports = {"host_port": host_port, "guest_port": guest_port}
    return "publish", _typed({"tap": tap, "protocol": "tcp", **ports, **fields})


def _typed(values: dict[str, Any]) -> dict[str, Variant]:
    types = {bool: "b", int: "u", str: "s", list: "as"}
    return {key: Variant(types[type(value)], value) for key, value in values.items()}


@dataclass
class Lease:
    """What Acquire gave; a context manager that gives it back and closes every fd.

    :param hold: the FIFO's write end; -1 once it is closed.
    """

    client: Client
    path: str
    hold: int
    taps: list[Tap] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def tap(self) -> Tap:
        """The only one."""
        (tap,) = self.taps
        return tap

    def add(self, *requests: tuple[str, dict[str, Variant]]) -> list[Tap]:
        """Lease.Add."""
        reply = self.client.call("Add", "a(sa{sv})a{sv}", list(requests), {}, lease=self)
        added = _taps(reply.body[0], reply.unix_fds)
        self.taps += added
        return added

    def filter(self, **fields: Any) -> str:
        """Lease.Add of a filter; its id."""
        wanted = [frame_filter(**fields)]
        reply = self.client.call("Add", "a(sa{sv})a{sv}", wanted, {}, lease=self)
        return str(reply.body[0][0]["id"].value)

    def add_one(self, request: tuple[str, dict[str, Variant]]) -> dict[str, Any]:
        """Lease.Add of what has no descriptors: the grant."""
        reply = self.client.call("Add", "a(sa{sv})a{sv}", [request], {}, lease=self)
        ((grant,),) = reply.body
        assert not reply.unix_fds
        return {key: variant.value for key, variant in grant.items()}

    def drop(self, *names: str) -> None:
        """Lease.Drop."""
        self.client.call("Drop", "asa{sv}", list(names), {}, lease=self)

    def release(self) -> None:
        """Lease.Release; the fds stay open."""
        self.client.call("Release", "a{sv}", {}, lease=self)

    def let_go(self) -> None:
        """Close the hold, as the death of QEMU would; the TAPs' fds stay open."""
        if self.hold >= 0:
            os.close(self.hold)
            self.hold = -1

    def close(self) -> None:
        """Close every fd."""
        self.let_go()
        for tap in self.taps:
            tap.close()

    def drops(self) -> dict[str, int]:
        """Frames dropped, by reason."""
        return dict(self.listed()["drops"].value)

    def listed(self) -> Mapping[str, Variant]:
        """This lease in ListLeases.

        :raise KeyError: it is not there.
        """
        for lease in self.client.leases():
            if lease["lease"].value == self.path:
                return lease
        raise KeyError(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with contextlib.suppress(RefusalError):
                self.release()
        finally:
            self.close()


class Client:
    """One connection to the bus, as a context manager.

    :param user: None: root.
    """

    def __init__(self, user: User | None = None) -> None:
        self.user = user
        self.loop = asyncio.new_event_loop()
        self.bus: MessageBus | None = None

    def __enter__(self) -> Self:
        self.loop.run_until_complete(self._connect())
        return self

    async def _connect(self) -> None:
        uid, gid = (self.user.uid, self.user.gid) if self.user else (0, 0)
        bus = MessageBus(bus_type=BusType.SYSTEM, auth=AuthExternal(uid), negotiate_unix_fd=True)
        with _effective(uid, gid):
            self.bus = await bus.connect()

    @property
    def name(self) -> str:
        """The unique bus name."""
        assert self.bus is not None
        assert self.bus.unique_name is not None
        return self.bus.unique_name

    def run(self, work: Coroutine[Any, Any, Any], seconds: float = SECONDS) -> Any:
        """Run *work* on this connection's loop."""
        return self.loop.run_until_complete(asyncio.wait_for(work, seconds))

    async def ask(
        self,
        member: str,
        signature: str,
        *body: object,
        lease: Lease | None = None,
        interactive: bool = False,
    ) -> Message:
        """Call a method of the contract; its fds are the caller's to close.

        :raise RefusalError: the answer is an error.
        """
        message = Message(
            destination=NAME,
            path=lease.path if lease else PATH,
            interface=LEASE_INTERFACE if lease else INTERFACE,
            member=member,
            signature=signature,
            body=list(body),
        )
        if interactive:
            message.flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
        assert self.bus is not None
        reply = await self.bus.call(message)
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            text = str(reply.body[0]) if reply.body else ""
            raise RefusalError(str(reply.error_name), text)
        return reply

    def call(
        self, member: str, signature: str, *body: object, lease: Lease | None = None
    ) -> Message:
        """As :meth:`ask`, and wait.

        :raise TimeoutError: no answer came.
        """
        reply: Message = self.run(self.ask(member, signature, *body, lease=lease))
        return reply

    def acquire(self, *requests: tuple[str, dict[str, Variant]], vm: str = "vm") -> Lease:
        """A lease; without *requests* one TAP of the network default."""
        wanted = list(requests) or [network_tap()]
        reply = self.call("Acquire", "a(sa{sv})a{sv}", wanted, {"vm": Variant("s", vm)})
        path, hold, grants = reply.body
        return Lease(self, path, reply.unix_fds[hold], _taps(grants, reply.unix_fds))

    def plan(self, *requests: tuple[str, dict[str, Variant]], vm: str = "vm") -> dict[str, Variant]:
        """Plan."""
        reply = self.call("Plan", "a(sa{sv})a{sv}", list(requests), {"vm": Variant("s", vm)})
        found: dict[str, Variant] = reply.body[0]
        return found

    def leases(self) -> list[dict[str, Variant]]:
        """ListLeases."""
        found: list[dict[str, Variant]] = self.call("ListLeases", "a{sv}", {}).body[0]
        return found

    def networks(self) -> dict[str, dict[str, Any]]:
        """ListNetworks, by name."""
        rows = self.call("ListNetworks", "a{sv}", {}).body[0]
        plain = [{key: variant.value for key, variant in row.items()} for row in rows]
        return {str(row["name"]): row for row in plain}

    def diagnose(self) -> dict[str, Any]:
        """Diagnose."""
        facts = self.call("Diagnose", "a{sv}", {}).body[0]
        return {key: variant.value for key, variant in facts.items()}

    def settle(self) -> None:
        """Return when the broker has dealt with everything that the kernel has told it so far.

        What it was told is begun before the first of these calls is, and ended before the second.
        """
        self.leases()
        self.leases()

    def close(self) -> None:
        """Leave the bus; leases stay."""
        bus, self.bus = self.bus, None
        if bus is not None:
            with contextlib.suppress(OSError):
                bus.disconnect()
            self.run(_ended(bus))
        self.loop.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def _ended(bus: MessageBus) -> None:
    # Whether it ended well is not the question: the bus may have been killed.
    with contextlib.suppress(Exception):
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _effective(uid: int, gid: int) -> Iterator[None]:
    """Be somebody for the eyes of whom is connected to."""
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def _taps(grants: list[dict[str, Variant]], fds: list[int]) -> list[Tap]:
    taps = []
    for grant in grants:
        facts = {key: variant.value for key, variant in grant.items()}
        if facts["kind"] in _CARDS:
            taps.append(Tap([fds[index] for index in facts.pop("fds")], facts))
    return taps

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The session's end of ``org.sessionvirt.Broker1``: the only user of the system bus on this side.

Imported when a VM needs something of the broker, or somebody asks about it; user-mode networking
never comes here. One connection, raw messages of dbus-fast (1.84 and later), one handler that
takes every descriptor that arrives into an owner before anything else looks at the message: the
library closes none. An answer for a call that was given up, and a message that nobody asked for,
are closed there.

Every error is worded by :mod:`sessionvirt.broker_errors`. No reply time-out is set: a prompt may
take minutes, and the bus itself tells when the broker dies.

A broker that has to start anew before it can act says so, and has done nothing; then the call is
made again, a few times.

What this never does: retry after any other error, interpret a grant, decide whether a prompt is
allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Final, Self

from . import broker_data as data
from .broker_errors import INSTALL, RESTARTING, error_for
from .broker_values import Descriptors, Fields, malformed, read_rows
from .descriptors import Fd
from .errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from dbus_fast import Message
    from dbus_fast.aio import MessageBus

__all__ = ["BrokerClient"]

BUS_NAME: Final = "org.sessionvirt.Broker1"
PATH: Final = "/org/sessionvirt/Broker1"
INTERFACE: Final = "org.sessionvirt.Broker1"
LEASE_INTERFACE: Final = "org.sessionvirt.Broker1.Lease"

#: SCM_MAX_FD of the kernel.
_MAX_FDS: Final = 253

#: Seconds before each further call of a broker that starts anew. The bus keeps a call for the one
#: that comes; what is waited out is that the former one still has the name.
_PAUSES: Final = (0.0, 0.05, 0.1, 0.2, 0.2)

_DEFAULT_BUS: Final = "unix:path=/run/dbus/system_bus_socket"


class _FdSocket(socket.socket):
    """The library's socket, made to receive all descriptors of a message.

    dbus-fast 1.84 (Debian 12) has room for one descriptor in a message, and the kernel closes the
    others without a word. A change of class, because the library makes the socket itself and keeps
    a stream on it.
    """

    __slots__ = ()

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        room = max(ancbufsize, socket.CMSG_SPACE(_MAX_FDS * 4))
        return super().recvmsg(bufsize, room, flags)


class BrokerClient:
    """A connection to the broker; an async context manager that closes it.

    Made by :meth:`connect` alone. Leases outlive it.
    """

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._pending: dict[int, asyncio.Future[tuple[Message, list[Fd]]]] = {}
        bus.add_message_handler(self._receive)
        self._watch = asyncio.ensure_future(self._fail_pending())

    @classmethod
    async def connect(cls, address: str | None = None) -> Self:
        """Connect to the system bus.

        :param address: D-Bus address; by default ``$DBUS_SYSTEM_BUS_ADDRESS`` or the usual one.
        :raise BrokerUnavailableError: there is no bus.
        """
        from dbus_fast import BusType
        from dbus_fast.aio import MessageBus

        address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or _DEFAULT_BUS
        _check_address(address)
        try:
            bus = MessageBus(address, BusType.SYSTEM, negotiate_unix_fd=True)
            if bus._sock is not None:
                # Before connect(), which hands the socket to the reader. Versions that make the
                # socket later have room for 16 descriptors.
                bus._sock.__class__ = _FdSocket
            await bus.connect()
        except Exception as error:
            # The library has no common root: OSError, AuthError, InvalidAddressError, EOFError.
            raise _no_bus(address, str(error)) from error
        return cls(bus)

    async def close(self) -> None:
        """Close the connection; calls that are open fail."""
        if not self._watch.done():
            self._bus.disconnect()
        await self._watch
        # 1.84 leaves the connection open until the garbage collector comes by.
        for end in (self._bus._stream, self._bus._sock):
            if end is not None:
                end.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def plan(self, requests: Sequence[data.Request], vm: str) -> data.Plan:
        """Ask what :meth:`acquire` would do. No side effect, no prompt.

        :raise SessionvirtError: as :func:`error_for` says.
        """
        body = [_encode_requests(requests), _options(vm=("s", vm))]
        (fields,) = await self._ask("Plan", "a(sa{sv})a{sv}", body, "a{sv}")
        return data.read_plan(Fields(fields, "plan"))

    async def acquire(
        self, requests: Sequence[data.Request], vm: str, *, interactive: bool
    ) -> data.Lease:
        """Take everything that one start of a VM needs; all or nothing.

        :param vm: the name that a prompt shows.
        :param interactive: a prompt may be shown, and waited for.
        :raise SessionvirtError: as :func:`error_for` says.
        """
        body = [
            _encode_requests(requests),
            _options(vm=("s", vm), interactive=("b", interactive)),
        ]
        reply, owned = await self._call(
            "Acquire", "a(sa{sv})a{sv}", body, interactive=interactive, answers="ohaa{sv}"
        )
        fds = Descriptors(owned)
        try:
            path, hold_index, rows = reply.body
            hold = fds.take(hold_index, "hold")
            return data.Lease(path, hold, _read_grants(requests, rows, fds))
        finally:
            fds.close()

    async def add(
        self, lease: str, requests: Sequence[data.Request], *, interactive: bool
    ) -> tuple[data.Grant, ...]:
        """Take more for a VM that runs; all or nothing.

        :param lease: its object path.
        :param interactive: a prompt may be shown, and waited for.
        :return: one for each request, in order; the descriptors in them are the caller's.
        :raise SessionvirtError: as :func:`error_for` says.
        """
        body = [_encode_requests(requests), _options(interactive=("b", interactive))]
        reply, owned = await self._call(
            "Add",
            "a(sa{sv})a{sv}",
            body,
            interactive=interactive,
            answers="aa{sv}",
            path=lease,
            interface=LEASE_INTERFACE,
        )
        fds = Descriptors(owned)
        try:
            (rows,) = reply.body
            return _read_grants(requests, rows, fds)
        finally:
            fds.close()

    async def drop(self, lease: str, grants: Sequence[str]) -> None:
        """Give back some grants of a lease.

        :param lease: its object path.
        :param grants: their ids.
        :raise NotFoundError: the lease has not all of them, and nothing was given back.
        """
        body = [list(grants), {}]
        await self._ask("Drop", "asa{sv}", body, "", path=lease, interface=LEASE_INTERFACE)

    async def release(self, lease: str) -> None:
        """Give back everything of a lease now, whoever holds it open.

        :param lease: its object path.
        """
        await self._ask("Release", "a{sv}", [{}], "", path=lease, interface=LEASE_INTERFACE)

    async def reclaim(self, lease: str, *, interactive: bool) -> None:
        """End the machine that has a lease, which may be another user's, and take all of it back.

        :param lease: its object path.
        :param interactive: a prompt may be shown, and waited for.
        """
        body: list[object] = [_options(interactive=("b", interactive))]
        await self._ask(
            "Reclaim", "a{sv}", body, "",
            path=lease, interface=LEASE_INTERFACE, interactive=interactive,
        )  # fmt: skip

    async def trace(
        self, lease: str, to: str, *, port: int, seconds: int, interactive: bool
    ) -> tuple[data.TraceStep, ...]:
        """Follow what a lease's guest sends to an address, and the answers, while this waits.

        :param lease: its object path.
        :param port: 0: any.
        :param interactive: a prompt may be shown, and waited for.
        """
        options = _options(to=("s", to), seconds=("u", seconds), interactive=("b", interactive))
        if port:
            options |= _options(port=("u", port))
        (rows,) = await self._ask(
            "Trace", "a{sv}", [options], "aa{sv}",
            path=lease, interface=LEASE_INTERFACE, interactive=interactive,
        )  # fmt: skip
        return tuple(data.read_trace(row) for row in read_rows(rows, "steps"))

    async def lock_memory(self, lease: str, process: int, amount: int) -> None:
        """Let a process lock memory; for a lease with a PCI device.

        :param lease: its object path.
        :param process: a pidfd, which stays the caller's.
        :param amount: bytes: its soft and its hard limit, which are never lowered.
        """
        body: list[object] = [0, amount, {}]
        await self._ask(
            "LockMemory", "hta{sv}", body, "", path=lease, interface=LEASE_INTERFACE, fds=[process]
        )

    async def devices(self) -> tuple[data.DeviceInfo, ...]:
        """List the host's PCI functions, in the order of their addresses."""
        (rows,) = await self._ask("ListDevices", "a{sv}", [{}], "aa{sv}")
        return tuple(data.read_device(row) for row in read_rows(rows, "devices"))

    async def networks(self) -> tuple[data.NetworkInfo, ...]:
        """List managed networks and permitted bridges."""
        (rows,) = await self._ask("ListNetworks", "a{sv}", [{}], "aa{sv}")
        return tuple(data.read_network(row) for row in read_rows(rows, "networks"))

    async def leases(self) -> tuple[data.LeaseInfo, ...]:
        """List this user's leases; root's answer has everybody's."""
        (rows,) = await self._ask("ListLeases", "a{sv}", [{}], "aa{sv}")
        return tuple(data.read_lease(row) for row in read_rows(rows, "leases"))

    async def obstacles(self, vm: str | None = None) -> tuple[data.Obstacle, ...]:
        """List the rules of others' that stop packets of this user's guests, or of one of them."""
        options = {} if vm is None else _options(vm=("s", vm))
        (rows,) = await self._ask("ListObstacles", "a{sv}", [options], "aa{sv}")
        return tuple(data.read_obstacle(row) for row in read_rows(rows, "obstacles"))

    async def diagnose(self) -> data.Diagnosis:
        """Ask for facts about the host."""
        (fields,) = await self._ask("Diagnose", "a{sv}", [{}], "a{sv}")
        return data.read_diagnosis(Fields(fields, "facts"))

    # --- messages

    async def _ask(
        self,
        member: str,
        signature: str,
        body: Sequence[object],
        answers: str,
        *,
        path: str = PATH,
        interface: str = INTERFACE,
        interactive: bool = False,
        fds: Sequence[int] = (),
    ) -> list[object]:
        """Call what answers without descriptors."""
        reply, owned = await self._call(
            *(member, signature, body),
            answers=answers,
            path=path,
            interface=interface,
            interactive=interactive,
            fds=fds,
        )
        received = Descriptors(owned)
        try:
            received.finish()
        finally:
            received.close()
        return list(reply.body)

    async def _call(
        self,
        member: str,
        signature: str,
        body: Sequence[object],
        *,
        answers: str,
        path: str = PATH,
        interface: str = INTERFACE,
        interactive: bool = False,
        fds: Sequence[int] = (),
    ) -> tuple[Message, list[Fd]]:
        """Call, again where the broker starts anew; the descriptors of the answer are the caller's.

        :param fds: what goes along; stays the caller's.
        """
        from dbus_fast import Message, MessageFlag, MessageType

        flag = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
        pauses = iter(_PAUSES)
        while True:
            message = Message(
                destination=BUS_NAME,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
                flags=flag,
                serial=self._bus.next_serial(),
                unix_fds=list(fds),
            )
            reply, received = await self._exchange(message)
            if reply.message_type is MessageType.METHOD_RETURN and reply.signature == answers:
                return reply, received
            for fd in received:
                fd.close()
            if reply.message_type is not MessageType.ERROR:
                raise malformed(f"{member} answers {reply.signature!r}, not {answers!r}")
            pause = next(pauses, None)
            if reply.error_name != RESTARTING or pause is None:
                text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
                raise error_for(reply.error_name or "", text)
            await asyncio.sleep(pause)

    async def _exchange(self, message: Message) -> tuple[Message, list[Fd]]:
        """Send a call and wait for its answer, whose descriptors are the caller's."""
        if self._watch.done():
            raise _disconnected()
        future: asyncio.Future[tuple[Message, list[Fd]]]
        future = asyncio.get_running_loop().create_future()
        self._pending[message.serial] = future
        try:
            await self._send(message)
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                # The answer and the cancellation came in the same turn of the loop.
                for fd in future.result()[1]:
                    fd.close()
            raise
        finally:
            self._pending.pop(message.serial, None)

    async def _send(self, message: Message) -> None:
        try:
            await self._bus.send(message)
        except Exception as error:
            raise _disconnected() from error

    def _receive(self, message: Message) -> bool:
        """Own the descriptors of every message; hand an answer to who waits for it."""
        from dbus_fast import MessageType

        fds = [Fd.received(number) for number in message.unix_fds or ()]
        if message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR):
            future = self._pending.pop(message.reply_serial or 0, None)
            if future is not None and not future.done():
                future.set_result((message, fds))
                return True
        for fd in fds:
            fd.close()
        # A call to us is answered by the library: there is no such object.
        return message.message_type is not MessageType.METHOD_CALL

    async def _fail_pending(self) -> None:
        """When the connection ends, so does every call."""
        with contextlib.suppress(Exception):
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        for future in self._pending.values():
            if not future.done():
                future.set_exception(_disconnected())


def _no_bus(address: str, reason: str) -> BrokerUnavailableError:
    return BrokerUnavailableError(
        "cannot connect to the system bus", evidence=f"{address}: {reason}", advice=INSTALL
    )


def _check_address(address: str) -> None:
    """Look for a Unix socket first: older libraries leave theirs open when they cannot connect.

    :raise BrokerUnavailableError: it is not there.
    """
    path = address.removeprefix("unix:path=").partition(",")[0]
    if address.startswith("unix:path=") and not os.path.exists(path):
        raise _no_bus(address, os.strerror(errno.ENOENT))


def _disconnected() -> BrokerUnavailableError:
    return BrokerUnavailableError("the connection to the system bus ended")


def _options(**values: tuple[str, str | bool | int]) -> dict[str, object]:
    from dbus_fast import Variant

    return {name: Variant(signature, value) for name, (signature, value) in values.items()}


def _encode_requests(requests: Sequence[data.Request]) -> list[object]:
    from dbus_fast import Variant

    return [
        [request.kind, {name: Variant(*typed) for name, typed in request.parameters().items()}]
        for request in requests
    ]


def _read_grants(
    requests: Sequence[data.Request], rows: object, fds: Descriptors
) -> tuple[data.Grant, ...]:
    """Read what was given, and check that each request got what it asked for.

    :raise BrokerUnavailableError: it did not, or more descriptors came than belong to it.
    """
    grants = tuple(data.read_grant(row, fds) for row in read_rows(rows, "grants"))
    if len(grants) != len(requests):
        raise malformed(f"{len(grants)} grants for {len(requests)} requests")
    for request, grant in zip(requests, grants, strict=True):
        if grant.kind != request.kind:
            raise malformed(f"{grant.id}: a grant of the kind {grant.kind}, not {request.kind}")
        if isinstance(request, data.BandwidthRequest):
            if not isinstance(grant, data.BandwidthGrant) or grant.tap != request.tap:
                raise malformed(f"{grant.id}: of another TAP than was asked for")
            continue
        if isinstance(request, data.PciRequest | data.FilterRequest | data.PublishRequest):
            continue
        assert isinstance(grant, data.TapGrant)  # by its kind
        if len(grant.fds) != request.queues:
            raise malformed(f"{grant.id}: {len(grant.fds)} queues, not {request.queues}")
        if grant.vhost and not request.vhost:
            raise malformed(f"{grant.id}: vhost, and nobody asked for it")
    fds.finish()
    return grants

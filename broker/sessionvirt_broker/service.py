# SPDX-License-Identifier: LGPL-2.1-or-later
"""The edge: one handler for every message, one table for every member.

fds are taken out of a message before anything else is looked at, in calls, answers and signals
alike, and closed at once; but for that of a LockMemory, which is closed with the call. A member
that is not in the table, another signature, a call nobody could receive the answer of: refused.
Nothing of an exception leaves the process but the sentence of a :class:`BrokerError`; what is
unexpected is a number to look up in the journal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NewType

from dbus_fast import Message, MessageType, Variant

from .audit import audit
from .broker import Call
from .bus import CallerVanished, may_interact, take_fds, wants_reply
from .errors import BrokerError, InvalidRequest, LimitsExceeded, NotFound, UnknownMethod
from .lease import close_grants
from .wire import Fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from .broker import Broker
    from .bus import Bus
    from .lease import Granted
    from .leases import RawRequest
    from .limits import Limits, Usage

log = logging.getLogger(__name__)

NAME = "org.sessionvirt.Broker1"
PATH = "/org/sessionvirt/Broker1"
LEASE_INTERFACE = NAME + ".Lease"
LEASE_PATH = PATH + "/lease/"

LeaseId = NewType("LeaseId", str)

#: Calls of everybody together that are looked at at once; limits.py has those of each.
_CALLS_AT_ONCE = 1024
_NO_FDS = "no file descriptor belongs in this call"
_ONE_FD = "one file descriptor belongs in this call"
_LEASE_PATH = re.compile(re.escape(LEASE_PATH) + r"([0-9a-f]{32})")
#: D-Bus types of the contract's dictionary values that do not follow from the Python type.
_SIGNATURES = {
    "lease": "o",
    "since": "t",
    "fds": "ah",
    "steps": "a(ss)",
    "drops": "a{st}",
    "handle": "t",
    "priority": "i",
    "requests": "aa{sv}",
    "grants": "aa{sv}",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back. ``sent`` runs when it has been written, ``failed`` when it could not be."""

    body: Sequence[object]
    fds: Sequence[int] = ()
    sent: Callable[[], None] | None = None
    failed: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One method of the contract.

    :param needs_reply: refused with NO_REPLY_EXPECTED.
    :param fds: how many file descriptors belong in a call.
    """

    in_signature: str
    out_signature: str
    handler: Callable[[Service, Call, Sequence[Any], LeaseId], Awaitable[Reply]]
    needs_reply: bool = False
    fds: int = 0


class Service:
    """Decodes calls, has the broker do them, encodes the answers."""

    def __init__(
        self, bus: Bus, broker: Broker, usage: Usage, limits: Callable[[], Limits]
    ) -> None:
        self._bus = bus
        self.broker = broker
        self._usage = usage
        self._limits = limits
        #: What a call is told that is ended before it has an answer.
        self.cancelled: BrokerError = BrokerError("the call was cancelled")
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._tasks)

    def on_message(self, message: Message) -> bool:
        """For every message. False leaves it to the library: answers to our own calls only."""
        fds = take_fds(message)
        # A signal may have the names of a method; nobody would ever close what comes with it.
        is_call = message.message_type is MessageType.METHOD_CALL
        kept = fds if is_call and len(fds) == _fds_of(message) else []
        for descriptor in fds if not kept else ():
            os.close(descriptor)
        if message.message_type is MessageType.SIGNAL:
            self._bus.on_signal(message)
            return True
        if not is_call:
            return False
        self._start(message, self._serve(message, len(fds), kept), kept)
        return True

    def on_fault(self, message: Message, why: str) -> None:
        """For the header of a message whose body was too large or not understood."""
        if message.message_type is MessageType.METHOD_CALL:
            self._start(message, self._error(message, InvalidRequest(why)))

    def _start(
        self, message: Message, work: Coroutine[object, object, None], fds: Sequence[int] = ()
    ) -> None:
        """Serve a call in a task, as long as neither its sender nor everybody has too many.

        At the door, before the bus is asked who it is: somebody may send faster than that. So it
        has no line in the journal either.
        """
        counted = ExitStack()
        for descriptor in fds:
            counted.callback(os.close, descriptor)
        try:
            counted.enter_context(self._usage.message(message.sender or "", self._limits()))
            if len(self._tasks) >= _CALLS_AT_ONCE:
                raise LimitsExceeded("the broker has too much to do")
        except LimitsExceeded as error:
            counted.close()
            work.close()
            work = self._error(message, error)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._done(task, counted))

    def _done(self, task: asyncio.Task[None], counted: ExitStack) -> None:
        self._tasks.discard(task)
        counted.close()

    async def settle(self, *, cancel: bool, seconds: float | None = None) -> bool:
        """Wait for the calls under way, or (``cancel``) end them: prompts are withdrawn.

        :param seconds: no longer than this.
        :return: whether all have ended.
        """
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        while self._tasks:
            left = None if end is None else end - loop.time()
            if left is not None and left <= 0:
                return False
            if cancel:
                for task in self._tasks:
                    task.cancel()
            await asyncio.wait(set(self._tasks), timeout=left)
        return True

    async def _serve(self, message: Message, fds: int, kept: Sequence[int]) -> None:
        try:
            member, reply = await self._answer(message, fds, kept)
        except CallerVanished:
            return
        except asyncio.CancelledError:
            # The caller left, or the broker ends; what is under way on the worker is looked after.
            await self._error(message, self.cancelled)
            return
        except BrokerError as error:
            await self._error(message, error)
            return
        except Exception:
            number = secrets.token_hex(4)
            log.exception("incident %s", number)
            await self._error(message, BrokerError(f"internal error {number}; see the journal"))
            return
        await self._send(message, member, reply)

    async def _answer(
        self, message: Message, fds: int, kept: Sequence[int]
    ) -> tuple[Member, Reply]:
        if not message.sender:
            raise InvalidRequest("the message has no sender")
        caller = await self._bus.identify(message.sender)
        # The user's rate comes first, so that a line in the journal is within it too.
        with self._usage.call(caller.uid, self._limits()):
            try:
                member, lease = find(message)
                if fds != member.fds:
                    raise InvalidRequest(_NO_FDS if not member.fds else _ONE_FD)
                if message.signature != member.in_signature:
                    raise InvalidRequest(
                        f"arguments: must have the signature {member.in_signature}"
                    )
                if member.needs_reply and not wants_reply(message):
                    raise InvalidRequest("nobody would receive the answer (NO_REPLY_EXPECTED)")
                call = Call(caller, may_interact(message), tuple(kept))
                return member, await member.handler(self, call, message.body, lease)
            except BrokerError as error:
                audit(
                    "refusal",
                    uid=caller.uid,
                    sender=caller.sender,
                    what=(message.member or "")[:64],
                    error=type(error).__name__,
                    why=str(error),
                )
                raise

    async def _send(self, message: Message, member: Member, reply: Reply) -> None:
        try:
            if wants_reply(message):
                answer = Message.new_method_return(
                    message, member.out_signature, list(reply.body), list(reply.fds)
                )
                await self._bus.send(answer)
        except Exception:
            log.exception("an answer could not be sent")
            if reply.failed is not None:
                await reply.failed()
        finally:
            # Only now: the library copies the numbers, so closing earlier could send another file.
            if reply.sent is not None:
                reply.sent()

    async def _error(self, message: Message, error: BrokerError) -> None:
        if wants_reply(message):
            try:
                await self._bus.send(Message.new_error(message, error.dbus_name, str(error)))
            except Exception:
                log.exception("an error could not be sent")


def find(message: Message) -> tuple[Member, LeaseId]:
    """The table's entry for a call, and the lease that its path names.

    :raise UnknownMethod, NotFound: there is none.
    """
    path, interface, name = message.path or "", message.interface or "", message.member or ""
    found = MEMBERS.get((interface, name))
    if found is None:
        raise UnknownMethod("there is no such method")
    lease = _LEASE_PATH.fullmatch(path)
    if interface == LEASE_INTERFACE:
        if lease is None:
            raise NotFound("there is no such lease")
        return found, LeaseId(lease[1])
    if interface == NAME and path != PATH:
        raise UnknownMethod("there is no such method")
    return found, LeaseId(lease[1] if lease else "")


def _fds_of(message: Message) -> int:
    """Before anything of a call is trusted: how many fds could belong in it."""
    member = MEMBERS.get((message.interface or "", message.member or ""))
    return 0 if member is None else member.fds


def _requests(raw: Any) -> list[RawRequest]:
    return [(kind, _typed(values)) for kind, values in raw]


def _options(raw: Any) -> Fields:
    return Fields("options", _typed(raw))


def _typed(values: Mapping[str, Variant]) -> dict[str, tuple[str, object]]:
    return {key: (variant.signature, variant.value) for key, variant in values.items()}


def encode(facts: Mapping[str, object]) -> dict[str, Variant]:
    """Plain facts as a{sv}."""
    return {key: _variant(key, value) for key, value in facts.items()}


def _variant(key: str, value: Any) -> Variant:
    if isinstance(value, tuple):
        return Variant("as", list(value))
    if key in _SIGNATURES:
        signature = _SIGNATURES[key]
        if key == "lease":
            value = LEASE_PATH + value
        elif signature == "aa{sv}":
            value = [encode(facts) for facts in value]
        elif key == "steps":
            value = [list(pair) for pair in value]
        return Variant(signature, value)
    if isinstance(value, bool):
        return Variant("b", value)
    return Variant("u" if isinstance(value, int) else "s", value)


def _grants(grants: Sequence[Granted], fds: list[int]) -> list[dict[str, Variant]]:
    """Encode grants; their fds are appended to ``fds`` and referred to by index."""
    encoded = []
    for grant in grants:
        first = len(fds)
        fds.extend(grant.fds)
        encoded.append(encode({**grant.facts, "fds": list(range(first, len(fds)))}))
    return encoded


async def _plan(service: Service, call: Call, body: Sequence[Any], _: LeaseId) -> Reply:
    plan = await service.broker.plan(call, _requests(body[0]), _options(body[1]))
    return Reply([encode(plan)])


async def _acquire(service: Service, call: Call, body: Sequence[Any], _: LeaseId) -> Reply:
    acquired = await service.broker.acquire(call, _requests(body[0]), _options(body[1]))
    fds = [acquired.hold]
    grants = _grants(acquired.grants, fds)
    return Reply(
        [LEASE_PATH + acquired.lease, 0, grants],
        fds,
        sent=acquired.close,
        failed=lambda: service.broker.custody.undelivered(acquired),
    )


async def _list_networks(service: Service, call: Call, body: Sequence[Any], _: LeaseId) -> Reply:
    networks = await service.broker.list_networks(call, _options(body[0]))
    return Reply([[encode(network) for network in networks]])


async def _list_leases(service: Service, call: Call, body: Sequence[Any], _: LeaseId) -> Reply:
    leases = await service.broker.list_leases(call, _options(body[0]))
    return Reply([[encode(lease) for lease in leases]])


async def _list_devices(service: Service, call: Call, body: Sequence[Any], _: LeaseId) -> Reply:
    devices = await service.broker.list_devices(call, _options(body[0]))
    return Reply([[encode(device) for device in devices]])


async def _list_obstacles(service: Service, call: Call, body: Sequence[Any], _: LeaseId) -> Reply:
    obstacles = await service.broker.list_obstacles(call, _options(body[0]))
    return Reply([[encode(obstacle) for obstacle in obstacles]])


async def _diagnose(service: Service, call: Call, body: Sequence[Any], _: LeaseId) -> Reply:
    return Reply([encode(await service.broker.diagnose(call, _options(body[0])))])


async def _add(service: Service, call: Call, body: Sequence[Any], lease: LeaseId) -> Reply:
    grants = await service.broker.add(call, lease, _requests(body[0]), _options(body[1]))
    fds: list[int] = []
    return Reply([_grants(grants, fds)], fds, sent=lambda: close_grants(grants))


async def _drop(service: Service, call: Call, body: Sequence[Any], lease: LeaseId) -> Reply:
    await service.broker.drop(call, lease, body[0], _options(body[1]))
    return Reply([])


async def _release(service: Service, call: Call, body: Sequence[Any], lease: LeaseId) -> Reply:
    await service.broker.release(call, lease, _options(body[0]))
    return Reply([])


async def _reclaim(service: Service, call: Call, body: Sequence[Any], lease: LeaseId) -> Reply:
    await service.broker.reclaim(call, lease, _options(body[0]))
    return Reply([])


async def _lock_memory(service: Service, call: Call, body: Sequence[Any], lease: LeaseId) -> Reply:
    if body[0] != 0:
        raise InvalidRequest("process: is not the descriptor that came along")
    await service.broker.lock_memory(call, lease, body[1], _options(body[2]))
    return Reply([])


async def _trace(service: Service, call: Call, body: Sequence[Any], lease: LeaseId) -> Reply:
    steps = await service.broker.trace(call, lease, _options(body[0]))
    return Reply([[encode(step) for step in steps]])


async def _ping(_: Service, _call: Call, _body: Sequence[Any], _lease: LeaseId) -> Reply:
    return Reply([])


async def _introspect(_: Service, _call: Call, _body: Sequence[Any], lease: LeaseId) -> Reply:
    return Reply([introspection(LEASE_INTERFACE if lease else NAME)])


#: Every member there is, and nothing that is not here.
MEMBERS: Mapping[tuple[str, str], Member] = {
    (NAME, "Plan"): Member("a(sa{sv})a{sv}", "a{sv}", _plan),
    (NAME, "Acquire"): Member("a(sa{sv})a{sv}", "ohaa{sv}", _acquire, needs_reply=True),
    (NAME, "ListNetworks"): Member("a{sv}", "aa{sv}", _list_networks),
    (NAME, "ListDevices"): Member("a{sv}", "aa{sv}", _list_devices),
    (NAME, "ListLeases"): Member("a{sv}", "aa{sv}", _list_leases),
    (NAME, "ListObstacles"): Member("a{sv}", "aa{sv}", _list_obstacles),
    (NAME, "Diagnose"): Member("a{sv}", "a{sv}", _diagnose),
    (LEASE_INTERFACE, "Add"): Member("a(sa{sv})a{sv}", "aa{sv}", _add, needs_reply=True),
    (LEASE_INTERFACE, "Drop"): Member("asa{sv}", "", _drop),
    (LEASE_INTERFACE, "LockMemory"): Member("hta{sv}", "", _lock_memory, fds=1),
    (LEASE_INTERFACE, "Reclaim"): Member("a{sv}", "", _reclaim),
    (LEASE_INTERFACE, "Release"): Member("a{sv}", "", _release),
    (LEASE_INTERFACE, "Trace"): Member("a{sv}", "aa{sv}", _trace),
    ("org.freedesktop.DBus.Peer", "Ping"): Member("", "", _ping),
    ("org.freedesktop.DBus.Introspectable", "Introspect"): Member("", "s", _introspect),
}

_TYPE = re.compile(r"a*(?:[a-z]|\([^()]*(?:\([^()]*\)[^()]*)*\)|\{[^{}]*\})")


def introspection(interface: str) -> str:
    """The interface as the table has it: the same for every caller and every path."""
    methods = []
    for (of, name), member in MEMBERS.items():
        if of == interface:
            arguments = [
                f'<arg type="{type_}" direction="{direction}"/>'
                for direction, signature in (
                    ("in", member.in_signature),
                    ("out", member.out_signature),
                )
                for type_ in _TYPE.findall(signature)
            ]
            methods.append(f'<method name="{name}">{"".join(arguments)}</method>')
    return f'<node><interface name="{interface}">{"".join(methods)}</interface></node>'

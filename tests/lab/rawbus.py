# SPDX-License-Identifier: LGPL-2.1-or-later
"""A user's connection to the lab's bus: blocking, message by message, with the descriptors.

A test says in which order things happen: it sends for alice, reads what arrived at polkit, answers,
reads alice's reply. Nothing runs in between, so nothing has to be waited for but a message.

The bus records who connected when the socket did, so the connection is made with the user's
effective uid and is theirs from then on. What arrives with a message is owned by its
:class:`Answer`; what a test does not take is closed with the :class:`Client`.
"""

from __future__ import annotations

import array
import io
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dbus_fast import Message, MessageFlag, MessageType, Variant
from dbus_fast._private.unmarshaller import Unmarshaller

from lab.bus import BUS, SOCKET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from lab.users import User

__all__ = [
    "INTERFACE",
    "LEASE",
    "PATH",
    "Answer",
    "BusError",
    "Client",
    "Lease",
    "assert_serves",
    "bandwidth",
    "direct",
    "marshalled",
    "options",
    "pci",
    "tap",
]

PATH = "/org/sessionvirt/Broker1"
INTERFACE = "org.sessionvirt.Broker1"
LEASE = "org.sessionvirt.Broker1.Lease"

#: What the contract's members take.
SIGNATURES = {
    "Plan": "a(sa{sv})a{sv}",
    "Acquire": "a(sa{sv})a{sv}",
    "Add": "a(sa{sv})a{sv}",
    "Drop": "asa{sv}",
    "Release": "a{sv}",
    "LockMemory": "hta{sv}",
    "Reclaim": "a{sv}",
    "Trace": "a{sv}",
    "ListObstacles": "a{sv}",
    "ListDevices": "a{sv}",
    "ListNetworks": "a{sv}",
    "ListLeases": "a{sv}",
    "Diagnose": "a{sv}",
}
MAX_FDS = 253  # SCM_MAX_FD of the kernel
#: Seconds. A message that does not come in this time does not come: in the test host, which is
#: emulated, and where the call may have to start the broker; or here.
PATIENCE = 90.0 if Path("/usr/local/lib/testhost").is_dir() else 10.0


class BusError(Exception):
    """The answer was an error."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text

    @property
    def short(self) -> str:
        """The last word of the name: ``NotFound``."""
        return self.name.rpartition(".")[2]


@dataclass
class Answer:
    """One message that arrived, and its descriptors, which it owns."""

    message: Message
    fds: list[int] = field(default_factory=list)

    @property
    def body(self) -> list[Any]:
        """The arguments; an error is raised.

        :raise BusError: it is one.
        """
        if self.message.message_type is MessageType.ERROR:
            text = self.message.body[0] if self.message.body else ""
            raise BusError(str(self.message.error_name), str(text))
        return list(self.message.body)

    @property
    def error(self) -> BusError:
        """The error that this must be.

        :raise AssertionError: it is none.
        """
        try:
            body = self.body
        except BusError as error:
            return error
        raise AssertionError(f"no error: {body}")

    def close(self) -> None:
        """Close what was not taken out of :attr:`fds`."""
        while self.fds:
            os.close(self.fds.pop())


@dataclass
class Lease:
    """What Acquire gave: the path, the hold's fd and the grants, with the fds of each."""

    path: str
    hold: int
    grants: list[dict[str, Any]]
    fds: list[int]

    def close(self) -> None:
        """Close all of it: the broker takes it back."""
        for descriptor in (self.hold, *self.fds):
            os.close(descriptor)


class Client:
    """One connection; a context manager that closes it, and everything that came by it.

    :param user: whose; a number is a uid, for users that have no home here.
    """

    def __init__(self, user: User | int = 0) -> None:
        uid, gid, groups = (
            (user, os.getegid(), os.getgroups())
            if isinstance(user, int)
            else (user.uid, user.gid, user.groups)
        )
        self._backlog: list[Answer] = []
        self._serial = 0
        self.name = ""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.socket.settimeout(PATIENCE)
            self._connect(uid, gid, groups)
            self.name = str(self.bus_call("Hello")[0])
            self._read(PATIENCE)  # NameAcquired, which always follows
        except BaseException:
            self.close()
            raise

    def _connect(self, uid: int, gid: int, groups: list[int]) -> None:
        own = os.getegid(), os.getgroups()
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)  # recorded by the kernel at connect(2), see unix(7), SO_PEERCRED
        try:
            self.socket.connect(str(SOCKET))
        finally:
            os.seteuid(0)
            os.setegid(own[0])
            os.setgroups(own[1])
        self.socket.sendall(b"\0AUTH EXTERNAL " + str(uid).encode().hex().encode() + b"\r\n")
        assert self._line().startswith(b"OK ")
        self.socket.sendall(b"NEGOTIATE_UNIX_FD\r\n")
        assert self._line() == b"AGREE_UNIX_FD\r\n"
        self.socket.sendall(b"BEGIN\r\n")

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = self.socket.recv(1)
            if not byte:
                raise ConnectionError(f"the bus hung up after {line!r}")
            line += byte
        return line

    # Section: sending

    def next_serial(self) -> int:
        """A serial for a message that a test makes itself."""
        self._serial += 1
        return self._serial

    def message(
        self,
        member: str,
        body: Sequence[Any] = (),
        *,
        signature: str | None = None,
        destination: str = INTERFACE,
        path: str = PATH,
        interface: str | None = INTERFACE,
        flags: int = 0,
    ) -> Message:
        """A method call; by default to the broker, with the signature of the contract."""
        return Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=SIGNATURES.get(member, "") if signature is None else signature,
            body=list(body),
            flags=MessageFlag(flags),
            serial=self.next_serial(),
        )

    def send(self, message: Message, fds: Sequence[int] = ()) -> int:
        """Send a message; its serial, for :meth:`answer`. ``fds`` stay the caller's."""
        message.unix_fds = list(fds)
        self.send_bytes(bytes(marshalled(message)), fds)
        return int(message.serial)

    def send_bytes(self, raw: bytes, fds: Sequence[int] = ()) -> None:
        """Send what no library would make."""
        ancillary = []
        if fds:
            rights = array.array("i", fds)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        sent = self.socket.sendmsg([raw], ancillary)
        self.socket.sendall(raw[sent:])

    def ask(self, member: str, *body: Any, fds: Sequence[int] = (), **header: Any) -> int:
        """Send a method call and do not wait; its serial."""
        return self.send(self.message(member, body, **header), fds)

    # Section: receiving

    def receive(self, timeout: float = PATIENCE) -> Answer:
        """The next message, whatever it is.

        :raise TimeoutError: none came.
        :raise ConnectionError: the bus closed the connection.
        """
        if self._backlog:
            return self._backlog.pop(0)
        return self._read(timeout)

    def _read(self, timeout: float) -> Answer:
        self.socket.settimeout(timeout)
        fds: list[int] = []
        raw = self._exactly(16, fds)
        order = "<" if raw[:1] == b"l" else ">"
        body, _, fields = struct.unpack(f"{order}III", raw[4:])
        raw += self._exactly(fields + -fields % 8 + body, fds)
        message = Unmarshaller(io.BytesIO(raw)).unmarshall()  # type: ignore[arg-type]  # it reads
        assert message is not None
        return Answer(message, fds)

    def _exactly(self, count: int, fds: list[int]) -> bytes:
        raw = b""
        while len(raw) < count:
            space = socket.CMSG_SPACE(MAX_FDS * 4)
            part, rights, _, _ = self.socket.recvmsg(
                count - len(raw), space, socket.MSG_CMSG_CLOEXEC
            )
            for _, _, data in rights:
                fds += array.array("i", data[: len(data) - len(data) % 4])
            if not part:
                raise ConnectionError("the bus closed the connection")
            raw += part
        return raw

    def answer(self, serial: int, timeout: float = PATIENCE) -> Answer:
        """The reply to the call of this serial; what else comes is kept for later.

        :raise TimeoutError: none came.
        """
        for position, kept in enumerate(self._backlog):
            if kept.message.reply_serial == serial:
                return self._backlog.pop(position)
        deadline = time.monotonic() + timeout
        while True:
            came = self._read(max(deadline - time.monotonic(), 0.001))
            if came.message.reply_serial == serial:
                return came
            self._backlog.append(came)

    def call(self, member: str, *body: Any, timeout: float = PATIENCE, **header: Any) -> list[Any]:
        """Call and wait: the reply's arguments.

        :raise BusError: it is an error.
        """
        answer = self.answer(self.ask(member, *body, **header), timeout)
        self._backlog_fds(answer)
        return answer.body

    def error(self, member: str, *body: Any, timeout: float = PATIENCE, **header: Any) -> BusError:
        """Call and wait: the error that must come."""
        return self.answer(self.ask(member, *body, **header), timeout).error

    @staticmethod
    def _backlog_fds(answer: Answer) -> None:
        # Whoever wants descriptors takes the answer itself.
        answer.close()

    def bus_call(self, member: str, signature: str = "", *body: Any) -> list[Any]:
        """Call the bus itself; when it answers, it has dealt with all that was sent before.

        :raise BusError: it refuses.
        """
        path = "/org/freedesktop/DBus"
        return self.call(
            member, *body, signature=signature, destination=BUS, path=path, interface=BUS
        )

    def owner(self, name: str = INTERFACE) -> str:
        """Who owns a name."""
        return str(self.bus_call("GetNameOwner", "s", name)[0])

    # Section: the broker

    def acquire(self, requests: Sequence[Any], *, vm: str = "vm", flags: int = 0) -> Lease:
        """Acquire.

        :raise BusError: it was refused.
        """
        return self.lease(self.ask("Acquire", list(requests), options(vm=vm), flags=flags))

    def lease(self, serial: int) -> Lease:
        """The lease that an Acquire of this serial was answered with."""
        answer = self.answer(serial)
        path, hold, grants = answer.body
        plain = [{key: value.value for key, value in grant.items()} for grant in grants]
        fds = list(answer.fds)
        return Lease(path, fds.pop(hold), plain, fds)

    def release(self, lease: str) -> None:
        """Lease.Release."""
        self.call("Release", {}, path=lease, interface=LEASE)

    def leases(self) -> list[dict[str, Any]]:
        """ListLeases, without the D-Bus types."""
        return self._rows("ListLeases")

    def networks(self) -> list[dict[str, Any]]:
        """ListNetworks, likewise."""
        return self._rows("ListNetworks")

    def _rows(self, member: str) -> list[dict[str, Any]]:
        return [
            {key: value.value for key, value in row.items()} for row in self.call(member, {})[0]
        ]

    # Section: end

    def close(self) -> None:
        """Leave the bus, with whatever was not read."""
        for answer in self._backlog:
            answer.close()
        self._backlog.clear()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def assert_serves(user: User | int) -> None:
    """Assert that the broker answers a new connection of this user."""
    with Client(user) as client:
        assert client.call("ListNetworks", {})[0][0]["name"].value == "default"


def marshalled(message: Message) -> bytearray:
    """The bytes of a message, to be changed by a test."""
    return bytearray(message._marshall(bool(message.unix_fds)))


def tap(network: str | None = "default", **parameters: Variant | str | int) -> list[Any]:
    """One request; a text is a ``s``, a number a ``u``."""
    given: Mapping[str, Variant | str | int | None] = {"network": network, **parameters}
    return ["tap", {key: _variant(value) for key, value in given.items() if value is not None}]


def bandwidth(on: str, **parameters: Variant | str | int) -> list[Any]:
    """One request for a limit of a TAP's traffic."""
    given: Mapping[str, Variant | str | int] = {"tap": on, **parameters}
    return ["bandwidth", {key: _variant(value) for key, value in given.items()}]


def publish(on: str, host_port: int, **parameters: Variant | str | int) -> list[Any]:
    """One request for a TCP port of the host that leads to port 80 of a guest."""
    given: Mapping[str, Variant | str | int] = {
        "tap": on,
        "protocol": "tcp",
        "host_port": host_port,
        "guest_port": 80,
        **parameters,
    }
    return ["publish", {key: _variant(value) for key, value in given.items()}]


def direct(device: str, **parameters: Variant | str | int) -> list[Any]:
    """One request for a macvtap device."""
    given: Mapping[str, Variant | str | int] = {"device": device, **parameters}
    return ["direct", {key: _variant(value) for key, value in given.items()}]


def pci(address: str, **parameters: Variant | str | bool) -> list[Any]:
    """One request for a device."""
    given: Mapping[str, Variant | str | int] = {"address": address, **parameters}
    return ["pci", {key: _variant(value) for key, value in given.items()}]


def options(**values: Variant | str | bool) -> dict[str, Variant]:
    """An a{sv}; a text is a ``s``, a truth a ``b``."""
    return {key: _variant(value) for key, value in values.items()}


def _variant(value: Variant | str | int) -> Variant:
    if isinstance(value, Variant):
        return value
    if isinstance(value, bool):
        return Variant("b", value)
    return Variant("u" if isinstance(value, int) else "s", value)

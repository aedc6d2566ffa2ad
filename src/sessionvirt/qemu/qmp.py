# SPDX-License-Identifier: LGPL-2.1-or-later
"""One QMP conversation, typed: the library qemu.qmp on a socket that we made and QEMU inherited.

The socket is a pair's half, so nobody else can connect, there is no path to clean up, and its end
is QEMU's end. qemu.qmp 0.0.3 and later take a connected socket; the library is imported when the
first conversation starts, while QEMU is still starting itself. A distribution that does not package
it may put it where nobody else's program sees it, see :data:`PRIVATE`.

What this never does: interpret an event, retry a command, let an exception of the library through.

Source: QEMU, docs/interop/qmp-spec.rst and the QMP reference manual.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Self, TypeVar

from sessionvirt.errors import QemuError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from types import TracebackType

    from qemu.qmp import EventListener, QMPClient

__all__ = ["Event", "Monitor", "expect"]

_T = TypeVar("_T")

#: Where a package of sessionvirt has the library for us alone. It is looked at where there is no
#: other, so it never hides one that the user has installed, which may be newer.
PRIVATE: Final = "/usr/share/sessionvirt"

#: Seconds for the answer to a command. QEMU's main loop may be busy, not that busy.
_PATIENCE: Final = 60.0


@dataclass(frozen=True)
class Event:
    """An asynchronous message of QEMU.

    :param name: SHUTDOWN, RESET, STOP, RESUME, GUEST_PANICKED, ...
    :param data: its arguments; empty where it has none.
    """

    name: str
    data: Mapping[str, object]

    def text(self, key: str) -> str:
        """Return an argument that is a string; empty where there is none."""
        value = self.data.get(key)
        return value if isinstance(value, str) else ""

    def flag(self, key: str) -> bool:
        """Return an argument that is a boolean; false where there is none."""
        return self.data.get(key) is True


def expect(kind: type[_T], value: object, what: str) -> _T:
    """Return a value of a reply, of the type it has to have.

    :param what: names the value in the message: "query-machines[3].name".
    :raise QemuError: it has another type.
    """
    if not isinstance(value, kind):
        found = type(value).__name__
        raise QemuError(f"QEMU's {what} is a {found}, not a {kind.__name__}", evidence=repr(value))
    return value


class Monitor:
    """A conversation in which commands can be sent; an async context manager that ends it.

    Made by :meth:`connect` alone.
    """

    def __init__(self, client: QMPClient, listener: EventListener) -> None:
        self._client = client
        self._listener = listener
        self.version = _version(client)

    @classmethod
    async def connect(cls, connection: socket.socket) -> Self:
        """Wait for QEMU's greeting and negotiate.

        Sets no time limit; a QEMU that says nothing is waited for.

        :param connection: connected; belongs to the conversation from now on, also on failure.
        :raise QemuError: end of file, no greeting, or one that is none.
        """
        _find_library()
        from qemu.qmp import ConnectError, EventListener, QMPClient

        client = QMPClient()
        # Before the session exists, so that no event is missed.
        listener = EventListener()
        client.register_listener(listener)
        try:
            await client.connect(connection)
        except ConnectError as error:
            raise QemuError(f"QEMU did not greet: {error}") from error
        finally:
            # connect() leaves an open session on success only.
            if client.runstate.name != "RUNNING":
                connection.close()
        try:
            return cls(client, listener)
        except QemuError:
            await client.disconnect()
            raise

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Run a command and return its answer.

        :raise QemuError: QEMU refuses it, the conversation ends before the answer, or no answer
            comes within a minute.
        """
        from qemu.qmp import ExecuteError, QMPError

        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise QemuError(f"QEMU did not answer {command} within {_PATIENCE:g} s") from None
        except ExecuteError as error:
            refusal = str(error)
            raise QemuError(f"QEMU refused {command}: {refusal}") from error
        except QMPError as error:
            raise QemuError(f"QEMU went away during {command}", evidence=str(error)) from error

    async def give(self, fd: int, name: str) -> None:
        """Give QEMU a copy of a descriptor, which it keeps until it is told to close it, or ends.

        Over a Unix socket only, which is what :func:`~.launch.monitor_pair` makes.

        :param fd: stays the caller's.
        :param name: by which commands refer to it (``getfd``); another of that name is closed.
        :raise QemuError: it cannot be sent, or QEMU refuses it.
        """
        from qemu.qmp import QMPError

        try:
            # With a blank between two commands.
            self._client.send_fd_scm(fd)
        except (OSError, QMPError) as error:
            raise QemuError("QEMU cannot be given a descriptor", evidence=str(error)) from error
        await self.execute("getfd", {"fdname": name})

    async def next_event(self) -> Event:
        """Wait for the next event. Cancel the wait when QEMU has ended: none will come."""
        return _event(await self._listener.get())

    async def ended(self, patience: float) -> None:
        """Wait until QEMU has closed its side and all that it said has been read.

        :param patience: seconds; then it is as good as over.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._client.runstate.name == "RUNNING":
                    await self._client.runstate_changed()

    def pending_events(self) -> list[Event]:
        """Return the events that have been received and not been waited for."""
        return [_event(message) for message in self._listener.clear()]

    async def close(self) -> None:
        """End the conversation, whatever state it is in."""
        # disconnect() tells once more why the session ended; whoever needed that has seen it.
        with contextlib.suppress(Exception):
            await self._client.disconnect()
        self._client.remove_listener(self._listener)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _find_library() -> None:
    """Have :data:`PRIVATE` on the path, as the last, where qemu.qmp is nowhere else.

    The directory holds nothing but the library. ``qemu`` is a namespace package: the rest of it may
    be somewhere else.
    """
    try:
        found = find_spec("qemu.qmp")
    except ModuleNotFoundError:  # not even qemu
        found = None
    if found is None and PRIVATE not in sys.path:
        sys.path.append(PRIVATE)


def _event(message: Mapping[str, object]) -> Event:
    data = message.get("data")
    return Event(str(message.get("event", "")), data if isinstance(data, dict) else {})


def _version(client: QMPClient) -> tuple[int, int, int]:
    greeting = client.greeting
    if greeting is None:
        raise QemuError("QEMU did not greet")
    numbers = expect(dict, greeting.QMP.version.get("qemu"), "greeting")
    major, minor, micro = (
        expect(int, numbers.get(part), f"version {part}") for part in ("major", "minor", "micro")
    )
    return major, minor, micro

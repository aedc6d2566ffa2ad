# SPDX-License-Identifier: LGPL-2.1-or-later
"""A way into a running test host: commands with their output and status, files in and out.

A host has a few channels, so that a shell, a test run and a look at something go side by side; each
is one process's at a time (a lock beside the socket). No network is involved.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import queue
import secrets
import socket
import tarfile
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from host import channel
from host.channel import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from host.board import Files

__all__ = ["CommandFailedError", "Completed", "Connection", "HostError", "Job"]

#: A port that no agent has opened yet swallows what is sent: ask again after this time.
ASK_SECONDS = 2.0
#: What may pass between a command's last output and its status.
STATUS_SECONDS = 30.0


class HostError(Exception):
    """The host does not answer; the text has the evidence."""


class CommandFailedError(HostError):
    """A command in the host ended with another status than 0."""

    def __init__(self, argv: Sequence[str], done: Completed) -> None:
        self.done = done
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        super().__init__(f"{' '.join(argv)}: status {done.status}\n{said}")


@dataclass(frozen=True)
class Completed:
    """A command that has ended in the host; a negative status is a signal's number."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Its output, without the last line's end."""
        return self.stdout.decode(errors="replace").rstrip("\n")


@dataclass
class Job:
    """A command that runs in the host."""

    number: int
    _connection: Connection
    _events: queue.SimpleQueue[tuple[Kind, bytes]] = field(default_factory=queue.SimpleQueue)

    def send(self, data: bytes) -> None:
        """Bytes for its standard input."""
        for start in range(0, len(data), channel.CHUNK):
            part = data[start : start + channel.CHUNK]
            self._connection.send(self.number, Kind.INPUT, part)

    def end_input(self) -> None:
        self._connection.send(self.number, Kind.INPUT)

    def signal(self, number: int) -> None:
        """To it and what it has started."""
        self._connection.send(self.number, Kind.SIGNAL, str(number).encode())

    def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size now."""
        self._connection.send(self.number, Kind.RESIZE, f"{rows} {columns}".encode())

    def output(
        self, timeout: float | None = None, silence: float | None = None
    ) -> Iterator[tuple[Kind, bytes]]:
        """What it says, as it says it; the last is its exit status.

        :param timeout: seconds from now to its end.
        :param silence: seconds in which it must say something.
        :raise HostError: the channel is gone, or it took longer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = silence if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                kind, data = self._events.get(timeout=left)
            except queue.Empty:
                said = "not done" if deadline is not None else "nothing was said"
                raise HostError(f"{said} after {timeout or silence:.0f} s") from None
            if kind is Kind.START:
                raise HostError("the channel closed: the host was reset, or QEMU has ended")
            yield kind, data
            if kind is Kind.EXIT:
                return

    def take(self, kind: Kind, data: bytes) -> None:
        """An event for it. START: there will be no more."""
        self._events.put((kind, data))


class Connection:
    """One channel of a host, from the first answer of its agent to the end."""

    def __init__(self, files: Files, timeout: float) -> None:
        """Take the first channel that nobody has, and wait for the agent.

        :raise HostError: no agent has answered in time, or all channels are taken.
        :raise OSError: there is no QEMU behind the socket.
        """
        self._jobs: dict[int, Job] = {}
        self._writing = threading.Lock()
        self._next = 1
        with contextlib.ExitStack() as stack:
            path = self._claim(files, stack)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            stack.callback(self._socket.close)
            self._socket.connect(os.fspath(path))
            self._greet(time.monotonic() + timeout)
            self._reader = threading.Thread(target=self._read, name="testhost", daemon=True)
            self._reader.start()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it; commands that still run in the host are hung up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._stack.close()

    @staticmethod
    def _claim(files: Files, stack: contextlib.ExitStack) -> Path:
        for number in range(channel.PORTS):
            path = files.channel(number)
            lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                stack.callback(os.close, lock)
                return path
        raise HostError(f"all {channel.PORTS} channels of the test host are in use")

    def _greet(self, deadline: float) -> None:
        token = channel.MARK + secrets.token_bytes(channel.TOKEN_BYTES)
        seen = b""
        asked = 0.0
        while not seen.endswith(token):
            now = time.monotonic()
            if now >= deadline:
                raise HostError("the agent in the host does not answer")
            if now - asked > ASK_SECONDS:
                # QEMU reads nothing while no guest does: a long boot fills the socket.
                with contextlib.suppress(TimeoutError):
                    self._socket.sendall(token)
                asked = now
            self._socket.settimeout(min(deadline - now, ASK_SECONDS))
            with contextlib.suppress(TimeoutError):
                part = self._socket.recv(1)
                if not part:
                    raise HostError("QEMU closed the channel")
                seen = seen[-len(token) :] + part
        self._socket.settimeout(None)

    # Frames

    def send(self, job: int, kind: Kind, payload: bytes = b"") -> None:
        """One frame to the agent."""
        with self._writing:
            try:
                self._socket.sendall(channel.pack(job, kind, payload))
            except OSError as error:
                raise HostError(f"the channel to the host is gone: {error}") from error

    def _read_exactly(self, length: int) -> bytes:
        parts = []
        while length:
            part = self._socket.recv(length)
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _read(self) -> None:
        try:
            while True:
                number, kind, data = channel.read_frame(self._read_exactly, lambda _: None)
                if job := self._jobs.get(number):
                    job.take(kind, data)
                    if kind is Kind.EXIT:
                        del self._jobs[number]
        except (EOFError, OSError, ValueError):
            for job in list(self._jobs.values()):
                job.take(Kind.START, b"")

    # Commands and files

    def start(self, argv: Sequence[str], **more: Any) -> Job:
        """Start a command as root.

        :param more: ``env`` (dict), ``cwd``, ``terminal`` ([rows, columns]).
        """
        job = self._jobs[self._next] = Job(self._next, self)
        self._next += 1
        self.send(job.number, Kind.START, json.dumps({"argv": list(argv), **more}).encode())
        return job

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 120.0, check: bool = True
    ) -> Completed:
        """Run a command as root to its end.

        :raise CommandFailedError: its status is not 0, and *check*.
        :raise HostError: it did not end in time, or the host is gone.
        """
        job = self.start(argv)
        job.send(stdin)
        job.end_input()
        parts: dict[Kind, list[bytes]] = {Kind.OUTPUT: [], Kind.ERRORS: [], Kind.EXIT: []}
        try:
            for kind, data in job.output(timeout):
                parts[kind].append(data)
        except HostError as error:
            said = b"".join(parts[Kind.OUTPUT] + parts[Kind.ERRORS]).decode(errors="replace")
            raise HostError(f"{' '.join(argv)}: {error}\n{said}") from error
        output, errors = b"".join(parts[Kind.OUTPUT]), b"".join(parts[Kind.ERRORS])
        done = Completed(int(parts[Kind.EXIT][0]), output, errors)
        if check and done.status:
            raise CommandFailedError(argv, done)
        return done

    def put(self, sources: dict[str, Path]) -> None:
        """Copy files and directories in: where in the host, and what. Owners become root."""

        def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            return None if "__pycache__" in entry.name else entry

        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w") as tar:
            for target, source in sources.items():
                tar.add(source, target.lstrip("/"), filter=plain)
        self.run(["tar", "-C", "/", "-xf", "-"], stdin=held.getvalue())

    def get(self, source: str, target: Path) -> None:
        """Copy a file or a directory out, below *target*."""
        done = self.run(["tar", "-C", "/", "-cf", "-", source.lstrip("/")])
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(target, filter="data")
            else:  # the Python of Debian 12; what is in there is the tests' own
                tar.extractall(target)

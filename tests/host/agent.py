# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest's end of the channel: starts what the outside asks for, as root, and reports on it.

systemd runs it from early boot to shutdown. It depends on no bus and no network, so that a test may
restart either. When the outside goes away its jobs are ended, and it waits for the next to come.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from host import channel
from host.channel import Kind

#: Between two looks whether somebody has connected: a read of the port does not wait for that.
POLL_SECONDS = 0.2


class Port:
    """The character device, read by one thread and written by many."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._writing = threading.Lock()

    def read_exactly(self, length: int) -> bytes:
        """That many bytes.

        :raise EOFError: the outside has gone.
        """
        parts = []
        while length:
            part = os.read(self._fd, min(length, channel.CHUNK))
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def write(self, data: bytes) -> None:
        """All of it; what nobody reads any more is lost."""
        with self._writing, contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._fd, data) :]

    def wait_for_outside(self) -> bytes:
        """Until somebody has said :data:`channel.MARK`; then it is said back.

        :return: the token that came with it.
        """
        seen = b""
        while not seen.endswith(channel.MARK):
            try:
                seen = seen[-len(channel.MARK) :] + self.read_exactly(1)
            except EOFError:
                time.sleep(POLL_SECONDS)
        token = self.read_exactly(channel.TOKEN_BYTES)
        self.write(channel.MARK + token)
        return token


class Job:
    """One command, from its start to its exit status."""

    def __init__(self, port: Port, number: int, request: dict[str, Any]) -> None:
        self._port = port
        self._number = number
        self._terminal: int | None = None
        argv, rows_columns = request["argv"], request.get("terminal")
        environment = os.environ | request.get("env", {})
        common: dict[str, Any] = {"cwd": request.get("cwd", "/"), "env": environment}
        outputs: list[tuple[int, Kind]] = []
        if rows_columns:
            ours, theirs = pty.openpty()
            self._terminal = self._input = ours
            self.resize(*rows_columns)
            self._process = subprocess.Popen(
                ["/usr/bin/setsid", "--ctty", *argv],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                **common,
            )
            os.close(theirs)
            outputs.append((os.dup(ours), Kind.OUTPUT))
        else:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                **common,
            )
            assert self._process.stdin
            assert self._process.stdout
            assert self._process.stderr
            self._input = os.dup(self._process.stdin.fileno())
            self._process.stdin.close()
            outputs.append((os.dup(self._process.stdout.fileno()), Kind.OUTPUT))
            outputs.append((os.dup(self._process.stderr.fileno()), Kind.ERRORS))
            self._process.stdout.close()
            self._process.stderr.close()
        self._pumps = [
            threading.Thread(target=self._pump, args=one, daemon=True) for one in outputs
        ]
        for pump in self._pumps:
            pump.start()
        threading.Thread(target=self._wait, daemon=True).start()

    def feed(self, data: bytes) -> None:
        """Bytes for standard input; none: it ends."""
        with contextlib.suppress(OSError):  # it reads no more
            if data:
                while data:
                    data = data[os.write(self._input, data) :]
            elif self._terminal is None:
                os.close(self._input)

    def resize(self, rows: int, columns: int) -> None:
        if self._terminal is not None:
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)

    def signal(self, number: int) -> None:
        """To the job and what it started in its session's first process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _pump(self, source: int, kind: Kind) -> None:
        with contextlib.suppress(OSError):  # EIO: a terminal that its last program has closed
            while data := os.read(source, channel.CHUNK):
                self._port.write(channel.pack(self._number, kind, data))
        os.close(source)

    def _wait(self) -> None:
        status = self._process.wait()
        # A daemon that it left behind may keep its output open for ever.
        for pump in self._pumps:
            pump.join(0.5)
        self._port.write(channel.pack(self._number, Kind.EXIT, str(status).encode()))


def serve(port: Port, token: bytes) -> None:
    """One conversation, from the mark to the moment when the outside has gone."""
    jobs: dict[int, Job] = {}

    def marked(again: bytes) -> None:
        nonlocal token
        if again != token:  # another outside, whose coming was not noticed
            token = again
            hang_up(jobs)
            port.write(channel.MARK + token)

    try:
        while True:
            number, kind, payload = channel.read_frame(port.read_exactly, marked)
            if kind is Kind.START:
                try:
                    jobs[number] = Job(port, number, json.loads(payload))
                except OSError as error:
                    port.write(channel.pack(number, Kind.ERRORS, f"{error}\n".encode()))
                    port.write(channel.pack(number, Kind.EXIT, b"127"))
            elif job := jobs.get(number):
                if kind is Kind.INPUT:
                    job.feed(payload)
                elif kind is Kind.SIGNAL:
                    job.signal(int(payload))
                elif kind is Kind.RESIZE:
                    job.resize(*map(int, payload.split()))
    except (EOFError, ValueError):
        pass
    finally:
        hang_up(jobs)


def hang_up(jobs: dict[int, Job]) -> None:
    """Tell what still runs that nobody listens any more."""
    for job in jobs.values():
        job.signal(signal.SIGHUP)
    jobs.clear()


def converse(number: int) -> None:
    """Serve one port, for one outside after the other."""
    port = Port(f"/dev/virtio-ports/{channel.port_name(number)}")
    while True:
        try:
            token = port.wait_for_outside()
        except EOFError:
            continue
        serve(port, token)


def main() -> None:
    ports = range(channel.PORTS)
    threads = [threading.Thread(target=converse, args=(number,)) for number in ports]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A command of the test host on the developer's terminal: keys in, output out, its exit status.

With a terminal on standard input it has one in the host, too, of the same size; without one it has
pipes, so that ``./dev host run -- tar -c DIR > file`` is exact.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import threading
import tty
from typing import TYPE_CHECKING

from host.channel import CHUNK, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from host.connection import Connection, Job

__all__ = ["attach"]

#: A signal's number is added to it, as a shell says it.
SIGNALLED = 128


def attach(host: Connection, argv: Sequence[str]) -> int:
    """Run *argv* in the host on this terminal.

    :return: its exit status; 128 and a signal's number where one ended it.
    """
    interactive = os.isatty(0) and os.isatty(1)
    environment = {"TERM": os.environ.get("TERM", "dumb"), "HOME": "/root"}
    size = list(_size()) if interactive else None
    job = host.start(argv, env=environment, cwd="/root", terminal=size)
    threading.Thread(target=_feed, args=(job,), daemon=True).start()
    with _raw(job) if interactive else _signals(job):
        for kind, data in job.output():
            if kind is Kind.EXIT:
                status = int(data)
                return status if status >= 0 else SIGNALLED - status
            stream = sys.stdout.buffer if kind is Kind.OUTPUT else sys.stderr.buffer
            try:
                stream.write(data)
                stream.flush()
            except BrokenPipeError:
                # As where the command were here: "| head" ends it, without a word.
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGPIPE)
    return 1


def _feed(job: Job) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, CHUNK):
            job.send(data)
        job.end_input()


def _size() -> tuple[int, int]:
    columns, rows = os.get_terminal_size(0)
    return rows, columns


@contextlib.contextmanager
def _raw(job: Job) -> Iterator[None]:
    """Every key goes to the host, ^C too; the terminal is as it was afterwards."""
    before = termios.tcgetattr(0)
    resized = signal.signal(signal.SIGWINCH, lambda *_: job.resize(*_size()))
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, resized)


@contextlib.contextmanager
def _signals(job: Job) -> Iterator[None]:
    """What would end this process ends the command in the host, which then says its status."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.signal(one, lambda number, _: job.signal(number)) for one in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

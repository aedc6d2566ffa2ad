# SPDX-License-Identifier: LGPL-2.1-or-later
"""One look after the other: what is shown is replaced on a terminal, and follows elsewhere.

A screen of its own, as less(1) has it, without curses: the cursor goes home, each line and then
the rest are cleared, and nothing wraps, so a frame that is too wide or too high is cut. The
terminal is put back however it ends, short of SIGKILL. ^C is the interpreter's; q, SIGTERM and
SIGHUP are taken here.

What this never does: know what is shown.

Source: console_codes(4); xterm's ctlseqs for ?1049, ?7 and ?25.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Final

from . import status
from .console import raw_terminal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

__all__ = ["show", "until_ended"]

#: Seconds between two looks.
INTERVAL: Final = 1.0

_ENTER: Final = "\x1b[?1049h\x1b[?7l\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?7h\x1b[?1049l"
_HINT: Final = "q or ^C ends it"


class _Ending:
    """Whether somebody wants it to end, and the exit status of that.

    :param task: what is ended, wherever it waits: a broker that does not answer is not waited for.
    """

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.code: int | None = None
        self._task = task

    def end(self, code: int) -> None:
        """End it; who is first says how."""
        if self.code is None:
            self.code = code
            self._task.cancel()


async def until_ended(look: Callable[[], Awaitable[None]], *, drawn: bool) -> int:
    """Look again and again, until somebody ends it.

    :param look: takes a look and shows it, by :func:`show` or otherwise.
    :param drawn: on a terminal, the looks are a screen.
    :return: the exit status.
    """
    task = asyncio.current_task()
    assert task is not None
    ending = _Ending(task)
    screen = drawn and _can_draw()
    with _signals(ending), _keys(ending, wanted=screen), _screen(wanted=screen):
        try:
            while True:
                await look()
                await asyncio.sleep(INTERVAL)
        except asyncio.CancelledError:
            if ending.code is None:
                raise
            task.uncancel()
            return ending.code


def show(lines: Sequence[str]) -> None:
    """Write a frame."""
    if not _can_draw():
        print("\n".join((*lines, "")), flush=True)
        return
    height = shutil.get_terminal_size().lines
    shown = list(lines)
    if len(shown) > height - 1:
        kept = max(height - 2, 0)
        shown = [*shown[:kept], f"... and {len(shown) - kept} lines more"]
    text = "".join(f"{line}\x1b[K\n" for line in shown)
    sys.stdout.write(f"\x1b[H{text}{_HINT}\x1b[K\x1b[J")
    sys.stdout.flush()


def _can_draw() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextlib.contextmanager
def _signals(ending: _Ending) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, ending.end, status.SIGNAL + number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _keys(ending: _Ending, *, wanted: bool) -> Iterator[None]:
    """Have q end it, where there is a keyboard that is ours."""
    stdin = 0
    if not wanted:
        yield
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            keys = os.read(stdin, 64)
        except OSError:
            keys = b""
        if not keys:
            loop.remove_reader(stdin)
        elif b"q" in keys.lower():
            ending.end(status.OK)

    with raw_terminal(stdin) as ours:
        if ours:
            loop.add_reader(stdin, read)
        try:
            yield
        finally:
            if ours:
                loop.remove_reader(stdin)


@contextlib.contextmanager
def _screen(*, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    try:
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        yield
    finally:
        # A terminal that is gone need not be put back.
        with contextlib.suppress(OSError):
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()

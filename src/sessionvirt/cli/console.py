# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's console on this terminal: bytes between a socket and stdin and stdout.

On a terminal the keys go to the guest one by one, all but ^C, which stays a signal to this
program. Otherwise the guest's output is copied to stdout, and stdin is left alone. A reader that
is slow slows the guest down, as a serial line does; one that is gone does not.

The terminal's settings are put back however it ends, short of SIGKILL. They are not touched by a
process in the background, which would be stopped for it.

Source: termios(3), tty_ioctl(4).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import termios
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

__all__ = ["ConsoleCopy", "raw_terminal"]

#: A write of this size to a pipe that poll calls writable does not block (pipe(7)).
_CHUNK: Final = 4096
_DISABLED: Final = b"\0"  # _POSIX_VDISABLE


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[bool]:
    """Have a terminal's keys one by one, without echo; yields whether ``fd`` is one of ours."""
    if not os.isatty(fd) or os.tcgetpgrp(fd) != os.getpgrp():
        yield False
        return
    before = termios.tcgetattr(fd)
    settings = termios.tcgetattr(fd)
    settings[0] &= ~(termios.ICRNL | termios.INLCR | termios.IXON | termios.ISTRIP)
    settings[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
    # ^\ and ^Z are the guest's; ^C is not.
    for key in (termios.VQUIT, termios.VSUSP):
        settings[6][key] = _DISABLED
    settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSADRAIN, settings)
    try:
        yield True
    finally:
        # At once: output that a vanished terminal cannot take must not hold us up.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, before)


class ConsoleCopy:
    """Copies until the guest's end closes; a context manager.

    :param connection: the guest's console; stays the caller's.
    :param stdin: where keys come from; None: nothing is sent.
    :param stdout: where output goes.
    """

    def __init__(self, connection: socket.socket, stdin: int | None, stdout: int) -> None:
        self._connection = connection
        self._stdin = stdin
        self._stdout: int | None = stdout
        # Files and /dev/null cannot be waited for, and never block.
        mode = os.fstat(stdout).st_mode
        self._waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(stdout)
        self._loop = asyncio.get_running_loop()
        self._output = b""
        self._ended = asyncio.Event()
        connection.settimeout(0)

    def __enter__(self) -> Self:
        self._loop.add_reader(self._connection, self._read_guest)
        if self._stdin is not None:
            self._loop.add_reader(self._stdin, self._read_keys)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.remove_reader(self._connection)
        if self._stdin is not None:
            self._loop.remove_reader(self._stdin)
        if self._stdout is not None and self._waits:
            self._loop.remove_writer(self._stdout)

    async def ended(self) -> None:
        """Wait until everything that the guest wrote has been copied, after its end."""
        await self._ended.wait()

    def _read_guest(self) -> None:
        try:
            data = self._connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._connection)
            self._ended.set()
        elif self._stdout is None:
            return
        elif self._waits:
            self._output = data
            self._loop.remove_reader(self._connection)
            self._loop.add_writer(self._stdout, self._write_output)
        else:
            try:
                os.write(self._stdout, data)
            except OSError:
                # No room for it; the guest goes on.
                self._stdout = None

    def _write_output(self) -> None:
        assert self._stdout is not None
        try:
            self._output = self._output[os.write(self._stdout, self._output) :]
        except BlockingIOError:
            return
        except OSError:
            # Nobody reads any more; the guest goes on.
            self._loop.remove_writer(self._stdout)
            self._output, self._stdout = b"", None
            self._loop.add_reader(self._connection, self._read_guest)
            return
        if not self._output:
            self._loop.remove_writer(self._stdout)
            self._loop.add_reader(self._connection, self._read_guest)

    def _read_keys(self) -> None:
        assert self._stdin is not None
        try:
            keys = os.read(self._stdin, _CHUNK)
        except OSError:
            keys = b""
        if not keys:
            self._loop.remove_reader(self._stdin)
            self._stdin = None
            return
        # A guest that does not read loses keys, as on a serial line.
        with contextlib.suppress(OSError):
            self._connection.send(keys)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""polkit's prompt on this terminal: ``pkttyagent``, for as long as something may be asked.

Only where stdin is a terminal. A desktop's own agent comes first (``--fallback``) where there is a
login session that could have one; without a session polkitd never comes to look for a fallback
(get_authentication_agent_for_subject() in polkitbackendinteractiveauthority.c, 122 to 127). We wait
until it has registered, or has ended because it could not, so that no prompt comes too early.

Source: pkttyagent(1).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
from typing import TYPE_CHECKING, Final

from sessionvirt.descriptors import Fd
from sessionvirt.host.logind import Presence, presence
from sessionvirt.host.paths import find_program
from sessionvirt.qemu.process import Child

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["terminal_agent"]

_NO_SESSION: Final = (Presence.NONE, Presence.UNKNOWN)
#: Seconds until it has registered; then polkit goes without it.
_READY_PATIENCE: Final = 10.0
_END_PATIENCE: Final = 2.0


@contextlib.asynccontextmanager
async def terminal_agent(*, wanted: bool) -> AsyncIterator[None]:
    """Have an agent on the terminal, where one is wanted, installed, and there is a terminal."""
    program = find_program("pkttyagent") if wanted and sys.stdin.isatty() else None
    if program is None:
        yield
        return
    theirs, ours = (Fd(number) for number in reversed(os.pipe()))
    with ours:
        with theirs:
            child = Child.spawn(
                (
                    program,
                    "--process",
                    _subject(),
                    *(() if presence() in _NO_SESSION else ("--fallback",)),
                    "--notify-fd",
                    str(theirs.fileno()),
                ),
                environment=_bus_address(),
                pass_fds=(theirs.fileno(),),
            )
        async with child:
            await _until_closed(ours)
            before = _settings()
            try:
                yield
            finally:
                # However the question ended: an agent that still waits for a password has turned
                # the echo off, and turns it on again only when it is asked to end.
                cut_off = _settings() not in (None, before)
                await child.terminate(_END_PATIENCE)
                if cut_off:
                    with contextlib.suppress(OSError):
                        print(file=sys.stderr)


def _settings() -> list[object] | None:
    """The terminal's; None once it is hung up."""
    try:
        return termios.tcgetattr(sys.stdin)
    except termios.error:
        return None


def _subject() -> str:
    """This process as polkit names it: pid and start time, so that the number is not enough."""
    with open("/proc/self/stat") as file:
        # The name in parentheses may contain blanks and parentheses; field 22 is the start time.
        fields = file.read().rpartition(")")[2].split()
    return f"{os.getpid()},{fields[19]}"


def _bus_address() -> dict[str, str]:
    address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")
    return {} if address is None else {"DBUS_SYSTEM_BUS_ADDRESS": address}


async def _until_closed(fd: Fd) -> None:
    """Wait until the other end is closed: it is ready, or it has ended."""
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()
    loop.add_reader(fd.fileno(), closed.set)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READY_PATIENCE):
                await closed.wait()
    finally:
        loop.remove_reader(fd.fileno())

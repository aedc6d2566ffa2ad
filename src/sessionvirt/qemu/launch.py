# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU started and its monitor answering, as one step that succeeds or leaves nothing.

The socket pair of the monitor is made here; QEMU inherits one half and our copy of it is closed as
soon as QEMU has it, so that the end of QEMU is the end of file for us. Whoever knows best why QEMU
did not come up is asked: its exit status and what it wrote, then the monitor, then the clock.

What this never does: build an argv beyond the monitor's own two options.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sessionvirt.errors import LaunchError, QemuError

from .process import Child, describe_exit
from .qmp import Monitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = ["Running", "connect_monitor", "launch", "monitor_pair"]

#: Seconds in which a QEMU that closed its monitor is expected to end.
_EXIT_PATIENCE: Final = 5.0


@dataclass(frozen=True)
class Running:
    """A QEMU process and the conversation with it."""

    child: Child
    monitor: Monitor


def monitor_pair() -> tuple[socket.socket, socket.socket]:
    """Make the socket pair of a monitor: ours, QEMU's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return ours, theirs


@contextlib.asynccontextmanager
async def launch(argv: Sequence[str], *, patience: float) -> AsyncIterator[Running]:
    """Start a QEMU for a short conversation; it is killed at the end.

    :param argv: without a monitor.
    :param patience: seconds until the monitor has to answer.
    :raise LaunchError: it did not come up.
    """
    ours, theirs = monitor_pair()
    with theirs:
        number = theirs.fileno()
        full = (
            *argv, "-chardev", f"socket,id=monitor,fd={number}",
            "-mon", "chardev=monitor,mode=control",
        )  # fmt: skip
        try:
            child = Child.spawn(full, pass_fds=(number,))
        except LaunchError:
            ours.close()
            raise
    async with child:
        monitor = await connect_monitor(child, ours, patience)
        async with monitor:
            yield Running(child, monitor)


async def connect_monitor(child: Child, ours: socket.socket, patience: float) -> Monitor:
    """Wait until the monitor answers, QEMU ends, or the time is up.

    :param ours: our half of the pair; belongs to the monitor from now on, also on failure.
    :param patience: seconds.
    :raise LaunchError: it did not come up. The child is left to the caller.
    """
    connecting = asyncio.ensure_future(Monitor.connect(ours))
    ending = asyncio.ensure_future(child.wait())
    try:
        first = asyncio.FIRST_COMPLETED
        done, _ = await asyncio.wait((connecting, ending), timeout=patience, return_when=first)
        if connecting in done and connecting.exception() is None:
            return connecting.result()
        if not done:
            raise _launch_error(child, f"QEMU's monitor did not answer within {patience:g} s")
        # End of file comes a moment before the exit status, which says more.
        await asyncio.wait((ending,), timeout=_EXIT_PATIENCE)
        raise _launch_error(child, _verdict(child, connecting))
    except BaseException:
        await _abandon(connecting)
        raise
    finally:
        ending.cancel()
        await asyncio.wait((ending,))


def _verdict(child: Child, connecting: asyncio.Future[Monitor]) -> str:
    if child.returncode is not None:
        return f"QEMU {describe_exit(child.returncode)} before its monitor answered"
    reason = connecting.exception() if connecting.done() else None
    said = reason.cause if isinstance(reason, QemuError) else repr(reason)
    return f"QEMU runs and its monitor does not work: {said}"


def _launch_error(child: Child, cause: str) -> LaunchError:
    return LaunchError(
        cause, exit_code=child.returncode, command=child.command, stderr=child.stderr
    )


async def _abandon(connecting: asyncio.Future[Monitor]) -> None:
    """End an attempt to connect, whatever has become of it."""
    connecting.cancel()
    await asyncio.wait((connecting,))
    if not connecting.cancelled() and connecting.exception() is None:
        await connecting.result().close()

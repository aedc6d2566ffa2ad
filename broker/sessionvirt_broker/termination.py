# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ends a process that has a device which is taken back: asked first, then not asked.

By pidfd, so that nobody else is ever meant, and on the loop, which it never blocks. QEMU flushes
its guest's disks on SIGTERM; one that does not end in time is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal

__all__ = ["end"]

#: For QEMU to flush what its guest has written.
_ASKED_SECONDS = 10.0
#: For the kernel to unpin the memory of one that was killed.
_KILLED_SECONDS = 10.0


async def end(pidfd: int) -> None:
    """Return when the process has ended, or cannot be ended in time.

    :param pidfd: stays the caller's.
    """
    for number, seconds in ((signal.SIGTERM, _ASKED_SECONDS), (signal.SIGKILL, _KILLED_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            # PRIVILEGE: CAP_KILL; the process of a lease, whose end was asked for.
            signal.pidfd_send_signal(pidfd, number)
        if await _ended(pidfd, seconds):
            return


async def _ended(pidfd: int, seconds: float) -> bool:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
    return True

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A lease is an fd: a FIFO whose write end QEMU holds, and the watch for its end.

The broker makes the FIFO below its own directory with mode 0600, so that a holder cannot open it
anew through /proc, keeps the read end and hands out the write end. When the last copy of that is
closed, by whatever death, the kernel says so. After its own crash the broker opens the FIFO again.

Two traps (both measured): poll alone stays silent for ever on a FIFO that was opened when its
writer was gone already, so :func:`reopen` reads once; and a byte written by the holder makes an
ordinary reader spin, so the watch is an epoll with an *empty* mask, which reports hang-ups and
nothing else, nested in the loop's own.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What is thrown away at :func:`reopen`: more than a holder can have left in a pipe (1 MiB,
#: pipe(7)).
_DRAIN_BYTES = 128 * 1024
_DRAIN_READS = 16


def create(path: Path) -> tuple[int, int]:
    """Make the FIFO.

    :return: read end, write end; both close-on-exec, owned by the caller of this function.
    """
    os.mkfifo(path, 0o600)
    try:
        read_end = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return read_end, os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(read_end)
            raise
    except BaseException:
        path.unlink()
        raise


def reopen(path: Path) -> int | None:
    """The read end again, after a restart.

    :return: None: nobody holds it any more, or it is not there.
    """
    try:
        read_end = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        for _ in range(_DRAIN_READS):
            if not os.read(read_end, _DRAIN_BYTES):
                os.close(read_end)
                return None
    except BlockingIOError:
        pass
    # Nothing to read, or somebody writes as fast as this reads: either way it is held.
    return read_end


class HoldWatch:
    """Which holds have ended. Give :meth:`fileno` to the loop; when readable, iterate
    :meth:`ended`.

    Owns the read ends that it watches.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._leases: dict[int, str] = {}

    def fileno(self) -> int:
        """What the loop watches for reading."""
        return self._epoll.fileno()

    def add(self, lease_id: str, read_end: int) -> None:
        """Watch one more; takes ``read_end`` over."""
        self._epoll.register(read_end, 0)
        self._leases[read_end] = lease_id

    def remove(self, lease_id: str) -> None:
        """Stop watching and close; unknown is in order."""
        for read_end, watched in list(self._leases.items()):
            if watched == lease_id:
                del self._leases[read_end]
                os.close(read_end)

    def ended(self) -> Iterator[str]:
        """The leases whose last holder is gone; each is reported once and no longer watched."""
        for read_end, _ in self._epoll.poll(0):
            lease_id = self._leases.pop(read_end, None)
            if lease_id is not None:
                self._epoll.unregister(read_end)
                os.close(read_end)
                yield lease_id

    def close(self) -> None:
        """Close everything; the leases stay, for the next broker."""
        for read_end in self._leases:
            os.close(read_end)
        self._leases.clear()
        self._epoll.close()

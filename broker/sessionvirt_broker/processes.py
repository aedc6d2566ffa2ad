# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which process has what a lease gave, so that it can be ended before a device is taken back.

A process is remembered by pid and start time, which a journal can hold and the next broker can look
at again; it is signalled by pidfd only, after both were found to be its own. It was named by the
lease's own user (LockMemory), and is that user's: nobody makes the broker end a stranger's process.

Source: proc_pid_stat(5), pidfd_open(2).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "of_pid", "open_pidfd"]

_PROC = Path("/proc")
#: starttime, among the fields of stat after the name, which may have blanks and parentheses in it.
_STARTTIME = 19


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this boot.

    :param started: in the kernel's ticks since boot.
    """

    pid: int
    uid: int
    started: int

    def encode(self) -> list[int]:
        return [self.pid, self.uid, self.started]

    @classmethod
    def decode(cls, raw: object) -> Process | None:
        """From a record; None: there is none, or it is not understood."""
        if isinstance(raw, list) and len(raw) == 3 and all(type(one) is int for one in raw):
            return cls(*raw)
        return None


def of_pid(pid: int) -> Process | None:
    """The process that has this pid now; None: nobody."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
        uid = (_PROC / str(pid)).stat().st_uid
    except OSError:
        return None
    return Process(pid, uid, int(stat.rpartition(")")[2].split()[_STARTTIME]))


def open_pidfd(process: Process) -> int | None:
    """A pidfd of it, the caller's to close; None: it has ended."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return None
    # Looked at while the pidfd is open: it is that process's, or of one that came after it.
    if of_pid(process.pid) == process:
        return pidfd
    os.close(pidfd)
    return None

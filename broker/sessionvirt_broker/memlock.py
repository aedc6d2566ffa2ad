# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory that a process of the caller's may lock (RLIMIT_MEMLOCK), raised by pidfd.

VFIO pins all memory of a guest when QEMU opens the device, so the limit is up before that. The
process is named by a pidfd, which cannot come to mean another one; that it is the caller's is read
from /proc, and believed only because the process is alive before and after.

What stays: prlimit(2) takes a pid. Who ends and reaps the process in the microseconds between the
last look and the limit, and has its pid come round in them, raises the limit of whoever has the pid
then; the call fails all the same, and nothing is lowered.
"""

from __future__ import annotations

import re
import resource
import select
from pathlib import Path

from .errors import HostFailure, InvalidRequest, NotFound

__all__ = ["raise_limit"]

_PROC = Path("/proc")


def raise_limit(pidfd: int, uid: int, size_bytes: int) -> int:
    """Let a process lock ``size_bytes``; a limit that is higher already stays.

    :param uid: its real, effective and saved uid, or it is nobody's business.
    :return: its pid, for the audit line.
    :raise InvalidRequest: the descriptor is no pidfd.
    :raise NotFound: it has ended, or is another user's: one sentence for both.
    """
    pid = _pid_of(pidfd)
    if _ended(pidfd) or _uids_of(pid) != {uid}:
        raise NotFound("process: there is no such process of this user")
    try:
        _raise(pid, pidfd, size_bytes)
    except ProcessLookupError as error:
        raise NotFound("process: there is no such process of this user") from error
    except OSError as error:
        raise HostFailure("the host refused to raise the limit of the process") from error
    # The pid was the pidfd's during all of this only if that process has not been reaped.
    if _ended(pidfd):
        raise NotFound("process: there is no such process of this user")
    return pid


def _raise(pid: int, pidfd: int, size_bytes: int) -> None:
    former = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
    limits = (_higher(former[0], size_bytes), _higher(former[1], size_bytes))
    if limits != former and not _ended(pidfd):
        # PRIVILEGE: CAP_SYS_RESOURCE; a hard limit goes up.
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, limits)


def _higher(limit: int, size_bytes: int) -> int:
    return limit if limit == resource.RLIM_INFINITY else max(limit, size_bytes)


def _pid_of(pidfd: int) -> int:
    text = (_PROC / f"self/fdinfo/{pidfd}").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^Pid:\t(-?[0-9]+)$", text, re.MULTILINE)
    if found is None:
        raise InvalidRequest("process: is not a pidfd")
    pid = int(found[1])
    if pid <= 0:  # ended, or of a pid namespace that is not below ours
        raise NotFound("process: there is no such process of this user")
    return pid


def _ended(pidfd: int) -> bool:
    """A pidfd is readable from the moment when its process is a zombie (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _uids_of(pid: int) -> set[int]:
    """Real, effective and saved uid; empty: it cannot be read."""
    try:
        text = (_PROC / f"{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return set()
    found = re.search(r"^Uid:\t([0-9]+)\t([0-9]+)\t([0-9]+)\t", text, re.MULTILINE)
    return set(map(int, found.groups())) if found else set()

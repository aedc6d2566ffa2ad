# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory that a process of the caller's may lock (RLIMIT_MEMLOCK), raised by pidfd.

VFIO pins all memory of a guest when QEMU opens the device, so the limit is up before that. The
process is named by a pidfd, which cannot come to mean another one; that it is the caller's is read
from /proc, and believed only because the process is alive before and after.

What was allowed to a user's processes that are alive counts together (:class:`Allowance`), whatever
became of the leases that it was allowed for. It is honest programs that this keeps from asking for
more than the host has: a limit is inherited by fork(2), so each child may lock as much again, and
who must be held to less needs a limit of his cgroup (memory.max).

What stays: prlimit(2) takes a pid. Who ends and reaps the process in the microseconds between the
last look and the limit, and has its pid come round in them, raises the limit of whoever has the pid
then; the call fails all the same, and nothing is lowered.
"""

from __future__ import annotations

import re
import resource
import select
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import HostFailure, InvalidRequest, LimitsExceeded, NotFound
from .processes import Process, of_pid

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Allowance", "process_of", "raise_limit"]

_PROC = Path("/proc")
#: Processes of one user that are looked at at each call.
_MOST_PROCESSES = 64


class Allowance:
    """How much each process was allowed to lock, as long as it is alive. Worker thread.

    :param look: the process that has a pid now.
    """

    def __init__(self, look: Callable[[int], Process | None] = of_pid) -> None:
        self._look = look
        #: Whose, by the lease: /proc says otherwise of a process that may not be dumped.
        self._known: dict[Process, tuple[int, int]] = {}

    def check(self, uid: int, process: Process, size_bytes: int, most: int) -> None:
        """Whether a process may have so much, with the others of its user.

        :raise LimitsExceeded: names the limit.
        """
        total = max(size_bytes, self._known.get(process, (uid, 0))[1])
        others = [one for one, (whose, _) in self._known.items() if whose == uid and one != process]
        for one in others:
            if self._look(one.pid) != one:
                del self._known[one]
            else:
                total += self._known[one][1]
        if total > most:
            raise LimitsExceeded(f"lock_memory_gib: {most / (1 << 30):.1f}")
        if len(self._known.keys() & set(others)) >= _MOST_PROCESSES:
            raise LimitsExceeded(f"{_MOST_PROCESSES} processes of this user may lock memory")

    def note(self, uid: int, process: Process, size_bytes: int) -> int:
        """A process has it.

        :return: what it has: no limit goes down.
        """
        most = max(size_bytes, self._known.get(process, (uid, 0))[1])
        self._known[process] = uid, most
        return most


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


def process_of(pidfd: int) -> Process:
    """The process that a pidfd is of, for the account; whose it is is not said.

    :raise InvalidRequest, NotFound: as of :func:`raise_limit`.
    """
    process = of_pid(_pid_of(pidfd))
    if process is None or _ended(pidfd):
        raise NotFound("process: there is no such process of this user")
    return process


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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory that a process may lock: real pidfds of real children.

To raise a hard limit takes CAP_SYS_RESOURCE, which is proved in the test host; here a child has
lowered its soft limit itself, and gets it back.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessionvirt_broker import memlock
from sessionvirt_broker.errors import HostFailure, InvalidRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

LIMIT = resource.RLIMIT_MEMLOCK
SOFT = 4096
ABSENT = "process: there is no such process of this user"


def lowered() -> None:
    resource.setrlimit(LIMIT, (SOFT, resource.getrlimit(LIMIT)[1]))


@contextmanager
def child(first: str = "pass") -> Iterator[tuple[int, int]]:
    """A process that waits, with a low soft limit, and its pidfd.

    :param first: what it does before that.
    """
    argv = [sys.executable, "-IBc", f"import os; {first}; print(flush=True); input()"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=lowered
    ) as process:
        pidfd = os.pidfd_open(process.pid)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid, pidfd
        finally:
            os.close(pidfd)
            process.kill()


def end(pid: int) -> None:
    """Kill it, and leave it a zombie."""
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_the_soft_limit_goes_up_to_what_was_asked_for() -> None:
    with child() as (pid, pidfd):
        hard = resource.prlimit(pid, LIMIT)[1]
        assert memlock.raise_limit(pidfd, os.getuid(), 2 * SOFT) == pid
        assert resource.prlimit(pid, LIMIT) == (2 * SOFT, hard)


def test_no_limit_goes_down() -> None:
    with child() as (pid, pidfd):
        before = resource.prlimit(pid, LIMIT)
        memlock.raise_limit(pidfd, os.getuid(), 1)
        assert resource.prlimit(pid, LIMIT) == before


@pytest.mark.parametrize(
    ("former", "size", "after"),
    [
        ((8, 8), 16, (16, 16)),
        ((8, 32), 16, (16, 32)),
        ((8, resource.RLIM_INFINITY), 16, (16, resource.RLIM_INFINITY)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 16, None),
        ((32, 64), 16, None),
    ],
)
def test_both_limits_go_up_and_infinite_ones_stay(
    former: tuple[int, int],
    size: int,
    after: tuple[int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is asked of the kernel; a soft limit alone decides what may be locked."""
    asked: list[tuple[int, int]] = []

    def prlimit(_pid: int, _which: int, limits: tuple[int, int] | None = None) -> tuple[int, int]:
        if limits is not None:
            asked.append(limits)
        return former

    with child() as (_, pidfd):
        monkeypatch.setattr(resource, "prlimit", prlimit)
        memlock.raise_limit(pidfd, os.getuid(), size)
    assert asked == ([] if after is None else [after])


def test_a_process_that_has_ended_is_refused_zombie_or_reaped() -> None:
    with child() as (pid, pidfd):
        end(pid)
        with pytest.raises(NotFound, match=ABSENT):
            memlock.raise_limit(pidfd, os.getuid(), 2 * SOFT)
        os.waitpid(pid, 0)
        with pytest.raises(NotFound, match=ABSENT):
            memlock.raise_limit(pidfd, os.getuid(), 2 * SOFT)


def test_a_process_that_ends_meanwhile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pid may be another's by now: nothing may be set after the last look says so."""
    with child() as (pid, pidfd):
        before = resource.prlimit(pid, LIMIT)
        uids_of = memlock._uids_of

        def and_ends(of: int) -> set[int]:
            found = uids_of(of)
            end(pid)
            return found

        monkeypatch.setattr(memlock, "_uids_of", and_ends)
        with pytest.raises(NotFound, match=ABSENT):
            memlock.raise_limit(pidfd, os.getuid(), 2 * SOFT)
        assert resource.prlimit(pid, LIMIT) == before


def test_a_process_of_another_user_is_refused_in_the_same_words() -> None:
    with child() as (pid, pidfd):
        before = resource.prlimit(pid, LIMIT)
        with pytest.raises(NotFound, match=ABSENT):
            memlock.raise_limit(pidfd, os.getuid() + 1, 2 * SOFT)
        assert resource.prlimit(pid, LIMIT) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a process of several uids")
@pytest.mark.parametrize("which", [0, 1, 2])
def test_all_three_uids_count(which: int) -> None:
    """As of a set-uid program: whoever has one uid of root's has more than its user."""

    uids = [65533, 65533, 65533]
    uids[which] = 0
    with child(f"os.setresuid(*{uids})") as (_, pidfd):
        for uid in (0, 65533):
            with pytest.raises(NotFound, match=ABSENT):
                memlock.raise_limit(pidfd, uid, 2 * SOFT)


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [(ProcessLookupError, NotFound, ABSENT), (PermissionError, HostFailure, "refused")],
)
def test_what_the_kernel_refuses_is_told_and_is_no_incident(
    error: type[OSError],
    expected: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was reaped in between; or this process lacks CAP_SYS_RESOURCE."""

    def prlimit(*_: object) -> tuple[int, int]:
        raise error

    with child() as (_, pidfd):
        monkeypatch.setattr(resource, "prlimit", prlimit)
        with pytest.raises(expected, match=words):
            memlock.raise_limit(pidfd, os.getuid(), 2 * SOFT)


def test_what_is_no_pidfd_is_refused(tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    forged.write_text(f"Pid:\t{os.getpid()}\n")
    reader, writer = os.pipe()
    files = [os.open(path, os.O_RDONLY) for path in (forged, Path("/dev/null"), tmp_path)]
    try:
        for descriptor in (reader, writer, *files):
            with pytest.raises(InvalidRequest, match="process: is not a pidfd"):
                memlock.raise_limit(descriptor, os.getuid(), SOFT)
    finally:
        for descriptor in (reader, writer, *files):
            os.close(descriptor)

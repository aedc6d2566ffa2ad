# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a test may leave behind: nothing.

A :class:`Snapshot` is what is there; two of them compared are what was left. The fixed part of the
broker's rules and its empty directories stay by design and are not counted; elements of sets and
maps, which are what a guest has, are.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lab.namespaces import LAB

__all__ = [
    "APART",
    "Snapshot",
    "adopt_orphans",
    "descendants",
    "left_behind",
    "reap_orphans",
    "snapshot",
]

PR_SET_CHILD_SUBREAPER = 36

#: Children that go their own way beside all tests, with whatever they start.
APART: set[int] = set()

#: Directories that the broker makes once and keeps, and its lock.
KEPT = Path("/run/sessionvirt-broker")
LOCK = KEPT / "lock"


@dataclass(frozen=True)
class Snapshot:
    """What is there, in words that a person can read."""

    descriptors: frozenset[str]
    processes: frozenset[int]
    interfaces: frozenset[str] = frozenset()
    elements: frozenset[str] = frozenset()
    namespaces: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()


def adopt_orphans() -> None:
    """Become the parent of whatever our children leave behind, so that it is seen."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(expected: frozenset[int]) -> None:
    """Take the exit statuses of adopted children that ended, which nobody else will ask for.

    :param expected: children whose status somebody will ask for.
    """
    for pid in set(_children(os.getpid())) - expected - APART:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def snapshot(*, privileged: bool) -> Snapshot:
    """What is there now.

    :param privileged: look at the network and /run, too; for root in the lab.
    """
    if not privileged:
        return Snapshot(_descriptors(), _processes())
    return Snapshot(
        _descriptors(),
        _processes(),
        frozenset(os.listdir("/sys/class/net")),
        _elements(),
        frozenset(os.listdir("/run/netns")),
        _files(),
    )


def left_behind(
    before: Snapshot, after: Snapshot, expected: frozenset[int] = frozenset()
) -> list[str]:
    """A line for each thing that is in *after* and not in *before*.

    Processes have 2 s to end, for what was killed may still be on its way; then they are killed.

    :param expected: processes that may be there.
    """
    lines = []
    for field in fields(Snapshot):
        left = getattr(after, field.name) - getattr(before, field.name)
        if field.name == "processes":
            described = {pid: _describe(pid) for pid in left - expected}
            left = {words for pid, words in described.items() if _still_runs(pid)}
        lines += [f"{field.name}: {one}" for one in sorted(left)]
    return lines


def _descriptors() -> frozenset[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listed the directory
            continue
        found.add(f"{name} -> {target}")
    return frozenset(found)


def _processes() -> frozenset[int]:
    return descendants(os.getpid())


def descendants(ancestor: int) -> frozenset[int]:
    """The processes that came from one, without itself."""
    found: set[int] = set()
    parents = [ancestor]
    while parents:
        for pid in set(_children(parents.pop())) - APART:
            found.add(pid)
            parents.append(pid)
    return frozenset(found)


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it ended meanwhile
        return []


def _describe(pid: int) -> str:
    # In the middle of an exec there is no command line for a moment; a zombie never has one.
    for _ in range(50):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            return str(pid)
        if command:
            return f"{pid} {command}"
        time.sleep(0.002)
    return str(pid)


def _still_runs(pid: int) -> bool:
    """Whether it does after 2 s; it is killed then, so that only the test that left it fails."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        runs = not select.select([pidfd], [], [], 2.0)[0]
        if runs:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 2.0)
    finally:
        os.close(pidfd)
    return runs


def _elements() -> frozenset[str]:
    """Elements of all sets and maps, and every table that is not the broker's."""
    listing = subprocess.run(
        ["nft", "--json", "list", "ruleset"], stdout=subprocess.PIPE, check=True
    ).stdout
    found = set()
    for entry in json.loads(listing)["nftables"]:
        for kind, what in entry.items():
            name = f"{what.get('family')} {what.get('table')} {what.get('name')}"
            if kind == "table" and what["name"] != "sessionvirt":
                found.add(f"table {name}")
            if kind in ("set", "map"):
                found |= {f"{name} {_plain(element)}" for element in what.get("elem", ())}
    return frozenset(found)


def _plain(element: Any) -> str:
    """An element without what it has counted."""
    if isinstance(element, dict) and isinstance(element.get("elem"), dict):
        element = element["elem"]["val"]
    return json.dumps(element)


def _files() -> frozenset[str]:
    found = set()
    for directory, directories, files in os.walk("/run"):
        here = Path(directory)
        if here == LAB.parent:
            directories.remove(LAB.name)
        found |= {str(here / name) for name in files if here / name != LOCK}
        if not here.is_relative_to(KEPT):
            found |= {str(here / name) for name in directories if here / name != KEPT}
    return frozenset(found)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guard against leaks sees each kind of thing that a test can leave behind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.leaks import left_behind, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.kernel

TABLE = "add table inet stranger; add set inet stranger s { type ipv4_addr; }"
ELEMENT = "add element inet stranger s { 192.0.2.7 }"


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def leave_a_descriptor() -> Callable[[], None]:
    reading, writing = os.pipe()

    def undo() -> None:
        os.close(reading)
        os.close(writing)

    return undo


def leave_a_process() -> Callable[[], None]:
    child = subprocess.Popen(["sleep", "60"])

    def undo() -> None:
        assert child.wait() == -9  # the guard killed it, so that the next test does not meet it

    return undo


def leave_an_orphan() -> Callable[[], None]:
    shell = ["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"]
    orphan = int(subprocess.run(shell, stdout=subprocess.PIPE, check=True).stdout)

    def undo() -> None:
        assert os.waitpid(orphan, 0)[1] == 9

    return undo


def leave_an_interface() -> Callable[[], None]:
    run("ip", "link", "add", "left0", "type", "bridge")
    return lambda: run("ip", "link", "delete", "left0")


def leave_an_element() -> Callable[[], None]:
    run("nft", f"{TABLE}; {ELEMENT}")
    return lambda: run("nft", "delete", "table", "inet", "stranger")


def leave_a_namespace() -> Callable[[], None]:
    run("ip", "netns", "add", "left")
    return lambda: run("ip", "netns", "delete", "left")


def leave_a_file() -> Callable[[], None]:
    path = Path("/run/left")
    path.touch()
    return path.unlink


@pytest.mark.parametrize(
    ("leave", "words"),
    [
        (leave_a_descriptor, ["descriptors", "descriptors"]),
        (leave_a_process, ["processes"]),
        (leave_an_orphan, ["processes"]),
        (leave_an_interface, ["interfaces"]),
        (leave_an_element, ["elements", "elements"]),
        (leave_a_namespace, ["namespaces", "files"]),
        (leave_a_file, ["files"]),
    ],
)
def test_the_guard_names(leave: Callable[[], Callable[[], None]], words: list[str]) -> None:
    before = snapshot(privileged=True)
    undo = leave()
    try:
        left = left_behind(before, snapshot(privileged=True))
    finally:
        undo()
    assert [line.partition(":")[0] for line in left] == words
    assert left_behind(before, snapshot(privileged=True)) == []

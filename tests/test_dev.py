# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev`` says what is wrong, with the evidence, before it has changed anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534


@pytest.fixture
def machine() -> Iterator[Path]:
    """A directory that everybody can read, with ./dev and a bin/ where nothing is installed."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "bin").mkdir()
        for source in ("dev", "pyproject.toml"):
            shutil.copy(ROOT / source, directory)
        program(directory, "dpkg-query", "exit 1")
        yield directory


def program(machine: Path, name: str, body: str) -> None:
    """Put a fake program there, which misbehaves as *body* says."""
    path = machine / "bin" / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def run_dev(
    machine: Path, *arguments: str, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/python3", machine / "dev", *arguments],
        env={"PATH": f"{machine}/bin", "CI": "true", "LANG": "C.UTF-8"},
        user=user,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--help"], 0, "usage: ./dev"),
        ([], 2, "usage: ./dev"),
        (["tset"], 2, "no command 'tset'"),
        (["bench"], 2, "bench needs a name"),
        (["bench", "nothing"], 2, "bench needs a name"),
        (["demo", "--nothing"], 2, "nothing but --network or --pci"),
        (["demo", "--network", "--pci"], 2, "nothing but --network or --pci"),
        (["stage"], 2, "stage needs a directory"),
    ],
)
def test_a_wrong_command_line_installs_nothing(
    machine: Path, arguments: list[str], status: int, words: str
) -> None:
    done = run_dev(machine, *arguments)
    assert done.returncode == status
    assert words in done.stdout + done.stderr
    assert "installing" not in done.stdout


BENCHES = sorted((ROOT / "tests/bench").glob("[a-z]*.py"))


@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.stem)
def test_a_bench_gets_the_test_hosts_tools_where_it_boots_one(machine: Path, bench: Path) -> None:
    (machine / "tests/bench").mkdir(parents=True)
    shutil.copy(bench, machine / "tests/bench")
    program(machine, "apt-get", "exit 100")
    program(machine, "sudo", '[ "$1" = -v ] || exec "$@"')
    program(machine, "env", 'exec /usr/bin/env "$@"')
    done = run_dev(machine, "bench", bench.stem)
    assert "apt-get update failed" in done.stderr
    boots_it = "from host import" in bench.read_text()
    assert ("mmdebstrap" in done.stdout) is boots_it


def test_apts_last_lines_are_shown_when_it_fails(machine: Path) -> None:
    body = 'echo "$@" >>"$0.log"; echo "dlstatus:1:40.0:Half"; echo "E: the disk is full"; exit 100'
    program(machine, "apt-get", body)
    program(machine, "sudo", '[ "$1" = -v ] || exec "$@"')
    program(machine, "env", 'exec /usr/bin/env "$@"')
    done = run_dev(machine, "demo")
    assert done.returncode == 1
    assert "apt-get update failed" in done.stderr
    assert "E: the disk is full" in done.stderr
    assert "dlstatus" not in done.stdout + done.stderr
    assert "40% Half" in done.stdout
    log = (machine / "bin/apt-get.log").read_text().splitlines()
    assert log[-1].endswith(" update")


def test_without_root_and_sudo_it_says_so(machine: Path) -> None:
    done = run_dev(machine, "test", user=None if os.geteuid() else NOBODY)
    assert done.returncode == 1
    assert "needs root, and there is no sudo" in done.stderr

# SPDX-License-Identifier: LGPL-2.1-or-later
"""conftest.py itself: who leaves something fails, tiers are enforced, CI takes no excuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent

HEAD = """\
import asyncio, os, subprocess, pytest
pytestmark = pytest.mark.unit
"""
LEAVES_A_TASK = """\
def test_it():
    async def main():
        main.task = asyncio.create_task(asyncio.sleep(60))
    asyncio.run(main())
"""
LEAVES_A_DESCRIPTOR = """\
def test_it():
    os.open("/dev/null", os.O_RDONLY)
"""
LEAVES_A_PROCESS = """\
child = []
def test_it():
    child.append(subprocess.Popen(["sleep", "60"]))
"""
SAW_A_FRAME = """\
from pathlib import Path
from lab import capture
def test_before():
    capture.note("svt0", capture.OUTBOUND, bytes(60))
def test_it():
    capture.DIRECTORY = Path(__file__).with_name("captures")
    capture.note("svt1", capture.INBOUND, b"only this one" + bytes(60))
    assert not "all is well"
"""
LEAVES_NOTHING = """\
def test_it():
    asyncio.run(asyncio.sleep(0))
    subprocess.run(["true"], check=True)
"""
SKIPS_FOR_ROOT = """\
def test_it():
    pytest.skip("needs root")
"""
SKIPS_FOR_ANOTHER_REASON = """\
def test_it():
    pytest.skip("this kernel has no bonding")
"""


def run_pytest(directory: Path, text: str, *, ci: bool = False) -> tuple[int, str]:
    """Run one test file under the project's own conftest.py; status and output."""
    (directory / "test_it.py").write_text(text)
    argv = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "conftest"]
    done = subprocess.run(
        [*argv, "-p", "no:cacheprovider", "-q", str(directory)],
        env={"PATH": os.environ["PATH"], "CI": "true" if ci else ""},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (LEAVES_A_TASK, "task: <Task"),
        (LEAVES_A_DESCRIPTOR, "-> /dev/null"),
        (LEAVES_A_PROCESS, "sleep 60"),
    ],
)
def test_a_test_that_leaves_something_fails_and_says_what(
    tmp_path: Path, body: str, words: str
) -> None:
    status, output = run_pytest(tmp_path, HEAD + body)
    assert status == 1
    assert "left behind:" in output
    assert words in output


def test_a_test_that_leaves_nothing_passes_and_its_tier_has_a_line(tmp_path: Path) -> None:
    status, output = run_pytest(tmp_path, HEAD + LEAVES_NOTHING)
    assert status == 0, output
    assert "unit: 1 passed" in output.splitlines()


@pytest.mark.parametrize("marks", ["", "pytestmark = [pytest.mark.unit, pytest.mark.bus]\n"])
def test_a_test_without_exactly_one_tier_is_refused(tmp_path: Path, marks: str) -> None:
    status, output = run_pytest(tmp_path, f"import pytest\n{marks}def test_it(): pass\n")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "exactly one of the marks" in output


def test_with_ci_a_privilege_is_no_excuse(tmp_path: Path) -> None:
    assert run_pytest(tmp_path, HEAD + SKIPS_FOR_ROOT)[0] == 0
    status, output = run_pytest(tmp_path, HEAD + SKIPS_FOR_ROOT, ci=True)
    assert status == 1
    assert "with CI=true everything that this needs must be there" in output


def test_with_ci_what_the_kernel_has_not_is_a_skip_with_its_reason(tmp_path: Path) -> None:
    status, output = run_pytest(tmp_path, HEAD + SKIPS_FOR_ANOTHER_REASON, ci=True)
    assert status == 0
    assert "unit: 1 skipped (this kernel has no bonding: 1)" in output.splitlines()


def test_a_failure_keeps_the_packets_of_its_test(tmp_path: Path) -> None:
    status, output = run_pytest(tmp_path, HEAD + SAW_A_FRAME)
    assert status == 1
    (path,) = (tmp_path / "captures").iterdir()
    assert str(path) in output
    captured = path.read_bytes()
    assert captured.startswith(bytes.fromhex("0a0d0d0a"))
    assert b"only this one" in captured
    assert b"svt1" in captured
    assert b"svt0" not in captured

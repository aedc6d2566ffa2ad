# SPDX-License-Identifier: LGPL-2.1-or-later
"""The linters as tests. A tool that is missing skips on a developer's machine and fails in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
CODE = ("src", "broker", "tests", "dev", "hatch_build.py")


def run_linter(module: str, *arguments: str) -> None:
    """Run ``python -m module`` over the tree; what it prints is the failure."""
    if find_spec(module) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{module} is not installed", pytrace=False)
        pytest.skip(f"{module} is not installed; ./dev installs it")
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{module} {' '.join(arguments)}\n{done.stdout}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    run_linter("ruff", "check", "--quiet", *CODE)


def test_ruff_would_format_nothing() -> None:
    run_linter("ruff", "format", "--check", "--quiet", *CODE)


def test_mypy_is_strict_about_everything() -> None:
    # The interpreter by its path: the packages it sees are those the code runs with.
    run_linter("mypy", "--strict", "--python-executable", sys.executable, *CODE)


def test_codespell_finds_nothing() -> None:
    words = "conectix,iif,nd,passt,re-used"
    prose = ("docs", *(path.name for path in ROOT.glob("*.rst")))
    where = (*CODE, "completions", "polkit", "systemd", *prose)
    run_linter("codespell_lib", "--ignore-words-list", words, "--skip", "*.pyc", *where)


def test_every_source_file_names_its_licence() -> None:
    sources = [path for name in CODE[:3] for path in (ROOT / name).rglob("*.py")]
    silent = [
        str(path.relative_to(ROOT))
        for path in sources
        if path.stat().st_size and "SPDX-License-Identifier" not in path.read_text()[:300]
    ]
    assert silent == []

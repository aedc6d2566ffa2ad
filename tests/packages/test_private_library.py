# SPDX-License-Identifier: LGPL-2.1-or-later
"""A package's own qemu.qmp is found where there is no other, and hides none."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from lab.stage import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

PROGRAM = """\
import sys
private, *user = sys.argv[1:]
sys.path[:0] = user
sys.path.append({source!r})
before = list(sys.path)
from sessionvirt.qemu import qmp
qmp.PRIVATE = private
qmp._find_library()
qmp._find_library()
import qemu.qmp
print(qemu.qmp.where, *(one for one in sys.path if one not in before))
"""


def library(directory: Path, name: str) -> str:
    """A library that says where it is."""
    package = directory / name / "qemu/qmp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"where = {name!r}\n")
    return str(directory / name)


def imported(*directories: str) -> str:
    # -S: neither Debian's packages nor the virtual environment's.
    return subprocess.run(
        ["/usr/bin/python3", "-ISB", "-c", PROGRAM.format(source=str(ROOT / "src")), *directories],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()


def test_the_private_one_is_used_where_there_is_no_other(tmp_path: Path) -> None:
    private = library(tmp_path, "private")
    assert imported(private) == f"private {private}"


def test_the_users_own_is_not_hidden_and_the_path_stays_as_it_is(tmp_path: Path) -> None:
    assert imported(library(tmp_path, "private"), library(tmp_path, "own")) == "own"


def test_another_part_of_the_namespace_does_not_hide_it(tmp_path: Path) -> None:
    """QEMU's own tree and python3-qemu-machine have ``qemu`` directories, too."""
    (tmp_path / "other/qemu/machine").mkdir(parents=True)
    private = library(tmp_path, "private")
    assert imported(private, str(tmp_path / "other")) == f"private {private}"

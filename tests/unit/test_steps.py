# SPDX-License-Identifier: LGPL-2.1-or-later
"""A journal that somebody else has written, and its steps: what is read leads nowhere else."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from sessionvirt_broker.__main__ import _locked
from sessionvirt_broker.dnsmasq import HostEntry, NetworkFiles
from sessionvirt_broker.errors import HostFailure
from sessionvirt_broker.host import Host, Paths
from sessionvirt_broker.kinds import STEPS
from sessionvirt_broker.steps import decode

if TYPE_CHECKING:
    from pathlib import Path

    from sessionvirt_broker.steps import Step

pytestmark = pytest.mark.unit

#: What the code puts into a path, wherever a step has it.
NAMES = ("address", "bridge", "group", "ifname", "physical")
PLAIN = {"str": "name", "int": 1, "tuple[str, ...]": ["name"]}


def written(cls: type[Step]) -> dict[str, object]:
    return {"step": cls.NAME, **{item.name: PLAIN[str(item.type)] for item in fields(cls)}}


@pytest.mark.parametrize("cls", STEPS.values(), ids=STEPS.keys())
def test_no_name_in_a_record_leads_out_of_its_directory(cls: type[Step]) -> None:
    raw = written(cls)
    assert decode(raw, STEPS).encode() == {
        key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()
    }
    for name in raw.keys() & set(NAMES):
        for text in ("..", ".", "../../../etc", "/etc", "a/b", "eth0\0"):
            with pytest.raises(ValueError, match=f"{cls.NAME}.{name}: not a name"):
                decode({**raw, name: text}, STEPS)
        for text in ("eth0.100", "0000:03:00.0", "svn_default", "..."):
            decode({**raw, name: text}, STEPS)


@pytest.mark.parametrize("name", ["records", "holds", "networks"])
def test_no_directory_of_the_journal_is_elsewhere(name: str, tmp_path: Path) -> None:
    runtime, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    runtime.mkdir()
    elsewhere.mkdir(mode=0o755)
    paths = Paths(runtime, tmp_path / "none", tmp_path / "none", tmp_path / "none")
    with _locked(paths, patience=0):
        pass
    (runtime / name).rmdir()
    (runtime / name).symlink_to(elsewhere)
    with pytest.raises(HostFailure, match=f"{name} is a symbolic link"), _locked(paths, patience=0):
        pytest.fail("it was taken")
    assert elsewhere.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("link", ["networks/svn_lab", "networks/svn_lab/hosts"])
@pytest.mark.parametrize(
    "step",
    [
        HostEntry("svn_lab", "svt0", "52:54:00:00:00:01", "10.64.0.5", ()),
        NetworkFiles("svn_lab", ("10.64.0.1/24",), (), 1500),
    ],
    ids=["entry", "network"],
)
def test_nothing_is_removed_through_a_link(link: str, step: Step, tmp_path: Path) -> None:
    lacking: Any = None
    paths = Paths(tmp_path, tmp_path, tmp_path, tmp_path)
    host = Host(lacking, lacking, paths, None, lacking)
    elsewhere = tmp_path / "elsewhere"
    kept = [elsewhere / name for name in ("svt0", "hosts/svt0", "names/svt0", ".svt0.part")]
    for file in kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / link).parent.mkdir(parents=True)
    (tmp_path / link).symlink_to(elsewhere)
    step.undo(host)
    assert [file.exists() for file in kept] == [True] * 4

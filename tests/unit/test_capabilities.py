# SPDX-License-Identifier: LGPL-2.1-or-later
"""Starting a QEMU and asking it: every way in which it can fail, and what is remembered."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessionvirt.errors import LaunchError, NotFoundError
from sessionvirt.qemu import capabilities
from sessionvirt.qemu.launch import launch

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessionvirt.qemu.capabilities import Capabilities

pytestmark = pytest.mark.unit

FAKE = Path(__file__).resolve().parents[1] / "fakes/qemu.py"


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str], str]:
    """Makes a binary that misbehaves as a word says, and writes a line whenever it is started."""

    def make(mode: str) -> str:
        path = tmp_path / f"qemu-{mode}"
        log = tmp_path / "starts"
        path.write_text(
            f'#!/bin/sh\necho {mode} >>{log}\nexec {sys.executable} {FAKE} {mode} "$@"\n'
        )
        path.chmod(0o755)
        return str(path)

    return make


def starts(tmp_path: Path) -> int:
    log = tmp_path / "starts"
    return len(log.read_text().splitlines()) if log.exists() else 0


def load(binary: str, cache: Path) -> Capabilities:
    return asyncio.run(capabilities.load(binary, cache=str(cache)))


# --- a QEMU that does not come up


async def start(binary: str, patience: float) -> None:
    async with launch([binary, "-S"], patience=patience):
        pass


@pytest.mark.parametrize(
    ("mode", "exit_code", "words", "stderr"),
    [
        ("exits-at-once", 1, "exited with status 1", "unsupported machine type"),
        ("kills-itself", -signal.SIGSEGV, "was killed by SIGSEGV", ""),
        ("half-a-greeting", 0, "exited with status 0", ""),
        ("floods-stderr", 3, "exited with status 3", "the last line"),
    ],
)
def test_one_that_ends_tells_why(
    fake: Callable[[str], str], mode: str, exit_code: int, words: str, stderr: str
) -> None:
    with pytest.raises(LaunchError, match=words) as caught:
        asyncio.run(start(fake(mode), 20))
    assert caught.value.exit_code == exit_code
    assert stderr in caught.value.stderr
    assert len(caught.value.stderr) <= 64 * 1024
    assert caught.value.command[:2] == (fake(mode), "-S")


def test_one_that_says_nothing_is_given_up_and_killed(fake: Callable[[str], str]) -> None:
    with pytest.raises(LaunchError, match=r"did not answer within 0\.5 s"):
        asyncio.run(start(fake("silent"), 0.5))


@pytest.mark.parametrize("mode", ["closes-monitor", "garbage", "not-a-greeting"])
def test_one_that_runs_on_without_a_monitor_is_killed(
    fake: Callable[[str], str], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessionvirt.qemu.launch._EXIT_PATIENCE", 0.2)
    with pytest.raises(LaunchError, match="its monitor does not work"):
        asyncio.run(start(fake(mode), 20))


def test_giving_up_in_the_middle_leaves_nothing(fake: Callable[[str], str]) -> None:
    async def run() -> None:
        task = asyncio.create_task(start(fake("silent"), 20))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


# --- a QEMU that is asked


def test_what_is_asked_for_is_found(fake: Callable[[str], str]) -> None:
    found = asyncio.run(capabilities.probe(fake("behaves")))
    assert found == capabilities.Capabilities(
        binary=fake("behaves"),
        version=(9, 8, 7),
        machines={"pc": "pc-9.8", "pc-9.8": "pc-9.8", "none": "none"},
        default_machine="pc-9.8",
        devices=frozenset({"some-type"}),
        objects=frozenset({"some-type"}),
        netdevs=frozenset({"user"}),
        cpu_models=frozenset({"max"}),
    )


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("dies-after-capabilities", "does not answer as QEMU does: QEMU went away"),
        ("wrong-types", "query-machines is a dict, not a list"),
        ("refuses", "QEMU refused query-qmp-schema: no"),
    ],
)
def test_one_that_answers_wrongly_is_not_believed(
    fake: Callable[[str], str], mode: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(LaunchError, match=words):
        load(fake(mode), tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_one_that_greets_and_then_stalls_is_given_up(
    fake: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "_PROBE_PATIENCE", 0.5)
    with pytest.raises(LaunchError, match=r"no answer within 0\.5 s"):
        load(fake("stalls"), tmp_path)


def test_a_binary_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot find QEMU at"):
        load(str(tmp_path / "qemu"), tmp_path)


# --- what is remembered


def test_it_is_asked_once(fake: Callable[[str], str], tmp_path: Path) -> None:
    binary = fake("behaves")
    first = load(binary, tmp_path)
    assert load(binary, tmp_path) == first
    assert starts(tmp_path) == 1
    (path,) = tmp_path.glob("*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_binary_under_the_same_name_is_asked(
    fake: Callable[[str], str], tmp_path: Path
) -> None:
    binary = fake("behaves")
    load(binary, tmp_path)
    os.utime(binary, ns=(1, 1))
    load(binary, tmp_path)
    assert starts(tmp_path) == 2


def test_modules_that_come_or_go_make_it_asked_again(
    fake: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = fake("behaves")
    modules = tmp_path / "modules"
    modules.mkdir()
    monkeypatch.setenv("QEMU_MODULE_DIR", str(modules))
    load(binary, tmp_path)
    load(binary, tmp_path)
    assert starts(tmp_path) == 1
    (modules / "ui-gtk.so").touch()
    os.utime(modules, ns=(1, 1))
    load(binary, tmp_path)
    assert starts(tmp_path) == 2


def test_forgotten_is_asked_again(fake: Callable[[str], str], tmp_path: Path) -> None:
    binary = fake("behaves")
    load(binary, tmp_path)
    capabilities.forget(binary, cache=str(tmp_path))
    load(binary, tmp_path)
    assert starts(tmp_path) == 2


def damage(path: Path, how: str) -> None:
    content = json.loads(path.read_text())
    match how:
        case "truncated":
            path.write_text(path.read_text()[:-20])
        case "empty":
            path.write_bytes(b"")
        case "binary":
            path.write_bytes(b"\xff\xfe\0\0")
        case "other format":
            path.write_text(json.dumps({**content, "format": 0}))
        case "not an object":
            path.write_text("[]")
        case "field missing":
            del content["capabilities"]["netdevs"]
            path.write_text(json.dumps(content))
        case "wrong type":
            content["capabilities"]["devices"] = "virtio-net-pci"
            path.write_text(json.dumps(content))
        case "wrong version":
            content["capabilities"]["version"] = [9, "x", 7]
            path.write_text(json.dumps(content))
        case "a directory":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize(
    "how",
    ["truncated", "empty", "binary", "other format", "not an object", "field missing",
     "wrong type", "wrong version", "a directory"],
)  # fmt: skip
def test_a_damaged_cache_is_no_cache(fake: Callable[[str], str], tmp_path: Path, how: str) -> None:
    binary = fake("behaves")
    first = load(binary, tmp_path)
    (path,) = tmp_path.glob("*.json")
    damage(path, how)
    assert load(binary, tmp_path) == first
    assert starts(tmp_path) == 2
    assert not list(tmp_path.glob("*.json.*"))


def test_without_a_cache_directory_it_works_all_the_same(
    fake: Callable[[str], str], tmp_path: Path
) -> None:
    found = load(fake("behaves"), tmp_path / "absent")
    assert found.version == (9, 8, 7)


def test_capabilities_survive_being_written(tmp_path: Path) -> None:
    fields = {field.name for field in dataclasses.fields(capabilities.Capabilities)}
    everything = capabilities.Capabilities(
        binary="/usr/bin/qemu",
        version=(1, 2, 3),
        machines={"a": "b"},
        default_machine="b",
        devices=frozenset("cd"),
        objects=frozenset("ef"),
        netdevs=frozenset("gh"),
        cpu_models=frozenset("ij"),
    )
    assert fields == set(dataclasses.asdict(everything))
    path = str(tmp_path / "file")
    capabilities._write(path, [["x", 1]], everything)
    assert capabilities._read(path, [["x", 1]]) == everything
    assert capabilities._read(path, [["x", 2]]) is None

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts about the host: KVM, login sessions, directories, programs."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from sessionvirt.host import kvm, logind, paths
from sessionvirt.host.kvm import KvmVerdict
from sessionvirt.host.logind import Presence

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit


# --- KVM. That a working one is believed, and an emulated one not, needs hardware: docs tell.


def test_no_device_is_no_kvm(tmp_path: Path) -> None:
    found = kvm.probe(str(tmp_path / "kvm"))
    assert found.verdict is KvmVerdict.ABSENT
    assert str(tmp_path) in found.reason
    assert not found.usable


def test_a_device_that_is_not_kvm_is_broken_kvm() -> None:
    found = kvm.probe(os.devnull)
    assert found.verdict is KvmVerdict.BROKEN
    assert "Inappropriate ioctl" in found.reason


def test_no_permission_says_which_group(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0)
    uid = os.geteuid()
    if uid == 0:
        # Root may open everything; nobody may not.
        os.seteuid(65534)
    try:
        found = kvm.probe(str(device))
    finally:
        os.seteuid(uid)
    assert found.verdict is KvmVerdict.DENIED
    assert "kvm" in found.advice


def test_the_code_fits_between_the_reset_vector_and_the_end_of_the_page() -> None:
    assert kvm._RESET_OFFSET + len(kvm._CODE) <= kvm._PAGE
    # The jump back ends where the code ends, and its distance is the whole of it.
    assert 256 - kvm._CODE[-1] == len(kvm._CODE)


# --- logind


@pytest.fixture
def systemd(tmp_path: Path) -> Path:
    (tmp_path / "users").mkdir()
    (tmp_path / "sessions").mkdir()
    return tmp_path


def log_in(systemd: Path, **sessions: str) -> None:
    for name, lines in sessions.items():
        (systemd / "sessions" / name).write_text(lines.replace(" ", "\n"))
    (systemd / "users/1000").write_text(f"NAME=u\nSTATE=active\nSESSIONS={' '.join(sessions)}\n")


def test_without_logind_nobody_knows(tmp_path: Path) -> None:
    assert logind.presence(1000, root=str(tmp_path / "absent")) is Presence.UNKNOWN


def test_no_session(systemd: Path) -> None:
    assert logind.presence(1000, root=str(systemd)) is Presence.NONE


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ({"c1": "ACTIVE=1 REMOTE=0 SEAT=seat0"}, Presence.ACTIVE),
        ({"c1": "ACTIVE=0 REMOTE=0 SEAT=seat0"}, Presence.INACTIVE),
        ({"c1": "ACTIVE=1 REMOTE=1"}, Presence.REMOTE),
        ({"c1": "ACTIVE=1 REMOTE=0"}, Presence.NONE),
        ({"a": "ACTIVE=1 REMOTE=1", "b": "ACTIVE=1 REMOTE=0 SEAT=seat0"}, Presence.ACTIVE),
        ({"a": "ACTIVE=0 REMOTE=0 SEAT=seat0", "b": "ACTIVE=1 REMOTE=1"}, Presence.INACTIVE),
    ],
)
def test_the_best_session_counts(
    systemd: Path, sessions: dict[str, str], expected: Presence
) -> None:
    log_in(systemd, **sessions)
    assert logind.presence(1000, root=str(systemd)) is expected


def test_a_session_that_went_away_in_between_is_none(systemd: Path) -> None:
    log_in(systemd, c1="ACTIVE=1 SEAT=seat0")
    (systemd / "sessions/c1").unlink()
    assert logind.presence(1000, root=str(systemd)) is Presence.NONE


# --- directories


def test_the_cache_directory_is_made_for_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a/b"))
    path = paths.cache_directory()
    assert path == str(tmp_path / "a/b/sessionvirt")
    for each in (tmp_path / "a/b", tmp_path / "a/b/sessionvirt"):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700


def test_a_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache_directory() == str(tmp_path / ".cache/sessionvirt")


def test_no_cache_where_none_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert paths.cache_directory() is None


def test_a_cache_that_others_may_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "sessionvirt").mkdir()
    (tmp_path / "sessionvirt").chmod(0o770)
    assert paths.cache_directory() is None


def test_programs_are_found_by_name_in_path_then_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in ("first", "extra"):
        (tmp_path / directory).mkdir()
    (tmp_path / "first/plain").touch(mode=0o644)
    (tmp_path / "extra/plain").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "first"))
    extra = (str(tmp_path / "extra"),)
    assert paths.find_program("plain", extra) == str(tmp_path / "extra/plain")
    assert paths.find_program("absent", extra) is None
    assert paths.find_program(str(tmp_path / "first/plain")) is None

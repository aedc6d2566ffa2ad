# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes that wait for ever: real children on real FIFOs.

Who opens a FIFO for writing that nobody reads waits in the kernel, as who writes to a driver's
``unbind`` does that does not let go; to open it for reading is the driver letting go.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from sessionvirt_broker.patience import Patience, StuckError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit

DEVICE, OTHER = "0000:03:00.0", "0000:04:00.0"
SECONDS = 0.2


@pytest.fixture
def patience() -> Iterator[Patience]:
    """With a short deadline; whoever still waits at the end is ended."""
    one = Patience(seconds=SECONDS)
    yield one
    for _, child in one._late:
        child.kill()
        child.wait()


@pytest.fixture
def patient() -> Patience:
    """With the real deadline, for what must not be late on a busy machine either."""
    return Patience()


@pytest.fixture
def stuck(tmp_path: Path) -> Path:
    """A file of a driver that does not let go."""
    os.mkfifo(tmp_path / "unbind")
    return tmp_path / "unbind"


def let_go(patience: Patience, path: Path) -> str:
    """What the child had to write, once it could; return when it has ended."""
    with path.open() as file:
        text = file.read()
    wait_for_children(patience)
    return text


def wait_for_children(patience: Patience) -> None:
    for _, child in patience._late:
        child.wait(10)


def test_what_is_written_is_the_text_and_no_more(patient: Patience, tmp_path: Path) -> None:
    path = tmp_path / "driver_override"
    path.write_text("longer than what comes")
    patient.write(DEVICE, path, "vfio-pci\n")
    assert path.read_text() == "vfio-pci\n"


def test_what_is_read_has_no_blanks_around_it(patient: Patience, tmp_path: Path) -> None:
    (tmp_path / "driver_override").write_text(" (null)\n")
    assert patient.read(DEVICE, tmp_path / "driver_override") == "(null)"


@pytest.mark.parametrize("member", ["read", "write"])
def test_a_refusal_is_an_error_in_the_programs_words(
    member: str, patient: Patience, tmp_path: Path
) -> None:
    path = tmp_path / "absent/unbind"
    with pytest.raises(OSError, match="No such file") as caught:
        patient.read(DEVICE, path) if member == "read" else patient.write(DEVICE, path, "x")
    assert caught.value.filename == str(path)
    assert not patient.waits_for(DEVICE)


def test_a_path_that_looks_like_an_option_is_none(patient: Patience) -> None:
    from pathlib import Path

    with pytest.raises(OSError, match="No such file"):
        patient.read(DEVICE, Path("--help"))


@pytest.mark.parametrize("member", ["read", "write"])
def test_a_child_that_is_late_is_left_alone(member: str, patience: Patience, stuck: Path) -> None:
    before = time.monotonic()
    with pytest.raises(StuckError, match=DEVICE):
        patience.read(DEVICE, stuck) if member == "read" else patience.write(DEVICE, stuck, "x")
    assert SECONDS <= time.monotonic() - before < 5
    assert patience.waits_for(DEVICE)
    ((_, child),) = patience._late
    assert child.poll() is None


def test_nothing_else_is_done_to_that_device_meanwhile(
    patience: Patience, stuck: Path, tmp_path: Path
) -> None:
    with pytest.raises(StuckError):
        patience.write(DEVICE, stuck, "first")
    untouched = tmp_path / "driver_override"
    untouched.write_text("as it was")
    before = time.monotonic()
    for _ in range(3):
        with pytest.raises(StuckError, match="still"):
            patience.write(DEVICE, untouched, "second")
        with pytest.raises(StuckError, match="still"):
            patience.read(DEVICE, untouched)
    assert time.monotonic() - before < SECONDS  # refused, not waited for
    assert untouched.read_text() == "as it was"
    assert len(patience._late) == 1
    # Others are not held up.
    assert not patience.waits_for(OTHER)
    patience.write(OTHER, untouched, "third")
    assert untouched.read_text() == "third"


def test_it_works_again_once_the_driver_has_let_go(
    patience: Patience, stuck: Path, tmp_path: Path
) -> None:
    with pytest.raises(StuckError):
        patience.write(DEVICE, stuck, "first")
    assert let_go(patience, stuck) == "first"
    assert not patience.waits_for(DEVICE)
    patience.write(DEVICE, tmp_path / "file", "second")
    assert (tmp_path / "file").read_text() == "second"


def test_the_next_broker_finds_the_child(patience: Patience, stuck: Path, tmp_path: Path) -> None:
    with pytest.raises(StuckError):
        patience.write(DEVICE, stuck, "first")
    following = Patience(seconds=SECONDS)
    assert following.waits_for(DEVICE)
    assert not following.waits_for(OTHER)
    with pytest.raises(StuckError, match="still"):
        following.write(DEVICE, tmp_path / "file", "second")
    assert not (tmp_path / "file").exists()
    assert let_go(patience, stuck) == "first"
    assert not following.waits_for(DEVICE)
    following.write(DEVICE, tmp_path / "file", "second")


def test_the_next_broker_finds_a_reader_too(patience: Patience, stuck: Path) -> None:
    with pytest.raises(StuckError):
        patience.read(DEVICE, stuck)
    assert Patience(seconds=SECONDS).waits_for(DEVICE)


def test_a_child_that_was_killed_is_waited_for_no_more(patience: Patience, stuck: Path) -> None:
    with pytest.raises(StuckError):
        patience.write(DEVICE, stuck, "first")
    following = Patience(seconds=SECONDS)
    assert following.waits_for(DEVICE)
    os.kill(patience._late[0][1].pid, signal.SIGKILL)
    wait_for_children(patience)
    assert not patience.waits_for(DEVICE)
    assert not following.waits_for(DEVICE)


def test_other_programs_are_no_children_whatever_their_environment(tmp_path: Path) -> None:
    """The environment alone does not make one; nor does /proc without what it should have."""
    environment = f"A=1\0DEVICE={DEVICE}\0".encode()
    for pid, command in (("10", b"/usr/bin/sleep\0"), ("11", b""), ("12", b"tee\0--\0x\0")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes(command)
        (tmp_path / pid / "environ").write_bytes(environment)
    (tmp_path / "13").mkdir()  # it went
    (tmp_path / "self").mkdir()
    assert not Patience(tmp_path).waits_for(DEVICE)
    (tmp_path / "10/cmdline").write_bytes(b"/usr/bin/tee\0--\0/sys/x\0")
    assert Patience(tmp_path).waits_for(DEVICE)
    assert not Patience(tmp_path).waits_for(OTHER)

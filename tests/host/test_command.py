# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev host`` itself: a command's output and status, what cannot run, and the screen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from host import kernel
from host import machine as machines
from lab.stage import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from host.machine import Machine

pytestmark = pytest.mark.host


def dev_host(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``./dev host`` without what installs its tools."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/tests:{ROOT}/src"}
    return subprocess.run(
        [sys.executable, "-m", "host", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment,
        text=True,
        timeout=400,
        check=False,
    )


def test_a_command_runs_in_the_host_that_is_there(testhost: Machine) -> None:
    """Its output and its status are the command's, and the host stays."""
    name = testhost.files.directory.name
    script = "echo said; echo complained >&2; exit 7"
    done = dev_host("--name", name, "run", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (7, "said\n", "complained\n")
    killed = dev_host("--name", name, "run", "--", "sh", "-c", "kill -TERM $$")
    assert killed.returncode == 128 + signal.SIGTERM
    assert machines.running(name)


@pytest.mark.reboot
def test_a_command_without_a_host_has_one_that_ends_with_it() -> None:
    """By the kernel with IOMMUFD, where one was made: no test takes eleven minutes to make one."""
    choice = "iommufd" if kernel.ready() else "debian"
    name = f"command-{os.getpid()}"
    script = "test -c /dev/iommu && echo iommufd || echo debian"
    options = ("--bare", "--name", name, "--kernel", choice)
    done = dev_host(*options, "run", "--", "sh", "-c", f"{script}; exit 7")
    assert (done.returncode, done.stdout) == (7, f"{choice}\n"), done.stderr
    assert "is up after" in done.stderr
    assert not machines.running(name)
    assert not (machines.machines() / name).exists()


def test_a_command_that_cannot_run_says_why() -> None:
    """Neither needs a host to be booted."""
    missing = dev_host("--name", "nobody", "console")
    assert missing.returncode == 1
    assert "no test host 'nobody' is running; ./dev host start boots one" in missing.stderr
    empty = dev_host("run", "--")
    assert empty.returncode == 2
    assert "run needs a command" in empty.stderr


def test_the_screen_of_a_running_host_is_a_picture(testhost: Machine, tmp_path: Path) -> None:
    picture = tmp_path / "screen.png"
    done = dev_host("--name", testhost.files.directory.name, "screenshot", str(picture))
    assert done.returncode == 0, done.stderr
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert (width, height) >= (640, 400)

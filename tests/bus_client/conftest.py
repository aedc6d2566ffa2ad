# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bus of its own for each test, and brokers that misbehave on it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAKE = Path(__file__).resolve().parents[1] / "fakes/broker.py"

CONFIGURATION = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/>
  </policy>
</busconfig>
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A bus with nobody on it."""
    path = tmp_path / "bus"
    configuration = tmp_path / "bus.conf"
    configuration.write_text(CONFIGURATION.format(path=path))
    with subprocess.Popen(
        ["dbus-daemon", "--nofork", "--nopidfile", "--print-address",
         f"--config-file={configuration}"],
        stdout=subprocess.PIPE, text=True,
    ) as daemon:  # fmt: skip
        assert daemon.stdout is not None
        try:
            daemon.stdout.readline()
            yield f"unix:path={path}"
        finally:
            daemon.kill()


@pytest.fixture
def broker(address: str) -> Iterator[Callable[[str], str]]:
    """Puts a broker of some mode on the bus; gives the bus' address."""
    with contextlib.ExitStack() as stack:

        def start(mode: str) -> str:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(FAKE), address, mode], stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return address

        yield start

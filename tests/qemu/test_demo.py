# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev demo``, whole, in a lab within the lab: the demo's own claims are the test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.qemu

TESTS = Path(__file__).resolve().parent.parent


def test_every_claim_of_the_demo_holds() -> None:
    done = subprocess.run(
        [sys.executable, TESTS / "demo.py"],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(TESTS), "HOME": "/root"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    # All of them, and not a demo that ended early and was content.
    assert re.search(r"^17 of 17 hold", done.stdout, re.MULTILINE), done.stdout
    assert done.returncode == 0

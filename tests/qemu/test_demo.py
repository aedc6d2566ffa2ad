# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev demo``, and ``./dev demo --network`` but for what takes place in the test host
(host/inside/test_vlan_demo.py), in a lab within the lab: the demos' own claims are the test.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from host.inside.vlan_demo import filters_vlans

pytestmark = pytest.mark.qemu

TESTS = Path(__file__).resolve().parent.parent


#: How many claims each makes.
DEMO, NETWORKS, VLAN = 17, 35, 8


def test_every_claim_of_the_demo_holds() -> None:
    all_hold("demo.py", DEMO)


def test_every_claim_about_networks_holds() -> None:
    all_hold("demo_network_lab.py", NETWORKS + (VLAN if filters_vlans() else 0))


def all_hold(demo: str, claims: int) -> None:
    done = subprocess.run(
        [sys.executable, TESTS / demo],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(TESTS), "HOME": "/root"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    # All of them, and not a demo that ended early and was content.
    assert re.search(rf"^{claims} of {claims} hold", done.stdout, re.MULTILINE), done.stdout
    assert done.returncode == 0

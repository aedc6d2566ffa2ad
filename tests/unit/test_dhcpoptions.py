# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values of DHCP's options: what is permitted is what dnsmasq starts with, and both sides agree."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionvirt.model import dhcpoptions as sessions
from sessionvirt_broker.dhcpoptions import option_fault

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

PARTS = (
    *("10.0.0.1", "10.0.0.0/24", "10.0.0.1/33", "10.0.0.300", "1.2", "1.2.3.4.5", "0/0"),
    *("0", "1", "255", "256", "65536", "4294967296", "-1", "", ".", "/", "foo", "a@b", "01:02:0a"),
    *("fe80::1", "::", "www.example.org"),
)
NUMBERS = (2, 3, 6, 13, 17, 19, 21, 22, 33, 35, 42, 43, 66, 118, 119, 121, 125, 150, 224, 252)


def test_values_that_there_can_be() -> None:
    for number, text in (
        (3, "10.0.0.1"),
        (6, "10.0.0.1,10.0.0.2"),
        (33, "10.2.0.0,10.0.0.1"),
        (121, "0.0.0.0/0,10.0.0.1"),
        (22, "576"),
        (43, "01:02:0a"),
        (66, "tftp.example.org"),
        (224, "10.0.0.1"),
        (252, "http://wpad/wpad.dat"),
        *((number, "") for number in NUMBERS),
    ):
        assert option_fault(number, text) == "", (number, text)


@given(st.integers(0, 255), st.lists(st.sampled_from(PARTS), max_size=4).map(",".join))
def test_both_sides_say_the_same(number: int, text: str) -> None:
    assert sessions.option_fault(number, text) == option_fault(number, text)


def test_dnsmasq_reads_whatever_is_permitted(tmp_path: Path) -> None:
    """All in one file: it names the line of the first that it does not take."""
    dnsmasq = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin")
    if dnsmasq is None:
        if os.environ.get("CI") == "true":
            pytest.fail("dnsmasq is not installed", pytrace=False)
        pytest.skip("needs dnsmasq")
    texts = [*PARTS, *(f"{one},{two}" for one in PARTS for two in PARTS)]
    pairs = [(n, text) for n in NUMBERS for text in texts if not option_fault(n, text)]
    assert len(pairs) > 1000
    file = tmp_path / "dnsmasq.conf"
    file.write_text("".join(f"dhcp-option={n},{text}".rstrip(",") + "\n" for n, text in pairs))
    done = subprocess.run(
        [dnsmasq, "--test", f"--conf-file={file}"], capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Beside firewalld: our bridges are in a zone of ours, whatever is started anew.

The other firewalls need no systemd: ``kernel/test_other_firewalls.py``. Each start and command of
firewalld takes seconds where the host is emulated, so there are no more of them than are needed.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from host.inside import machines, units
from lab.doctoring import BRIDGE, complaints, gets_an_address, gets_out, mend, rules_of_others
from lab.outside import Outside
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.tap import Tap

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("permission")]

FIREWALLD = "firewalld.service"


@contextmanager
def firewalld() -> Iterator[None]:
    units.systemctl("start", FIREWALLD)
    try:
        yield
    finally:
        units.systemctl("stop", FIREWALLD, "network-pre.target")
        shutil.rmtree("/run/firewalld", ignore_errors=True)


@contextmanager
def without_cache(user: User) -> Iterator[None]:
    """What doctor keeps for its next time."""
    try:
        yield
    finally:
        shutil.rmtree(user.home / ".cache", ignore_errors=True)


def has_all(tap: Tap) -> bool:
    return gets_an_address(tap, seconds=1.5) and gets_out(tap)


def has_nothing(tap: Tap) -> bool:
    return not gets_an_address(tap, seconds=1.5) and not gets_out(tap)


def test_f63_firewalld_has_our_bridges_in_a_zone_of_ours() -> None:
    with (
        without_cache(User.named("user1")),
        Outside(),
        machines.Holder("user1") as user,
        user.take(vm="web") as lease,
    ):
        assert machines.works(lease)
        with rules_of_others(), firewalld():
            assert has_all(lease.tap)
            for words in (("firewall-cmd", "--reload"), ("systemctl", "restart", FIREWALLD)):
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
                assert has_all(lease.tap), words
            # Without ours it is in the default zone. A whole name goes before the beginning of
            # one, svn_+, so that this is enough, and what doctor advises, too.
            subprocess.run(
                ["firewall-cmd", "--zone=public", f"--change-interface={BRIDGE}"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            assert has_nothing(lease.tap)
            mend(
                complaints(User.named("user1"), "web"),
                "firewalld's",
                f"firewall-cmd --zone=sessionvirt --change-interface={BRIDGE}",
            )
            assert has_all(lease.tap)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tiny guest boots, gets an address, runs its script and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.guest import CMDLINE

if TYPE_CHECKING:
    from lab.guest import Guest
    from lab.users import User

pytestmark = pytest.mark.qemu


def test_the_guest_runs_its_script_and_ends(guest: Guest, alice: User) -> None:
    script = 'dhcp; reach gateway "$(cat /gateway)"; say "$(cat /sys/class/net/eth0/address)"'
    scripted = guest.with_script(script, alice.home / "initrd")
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-m", "192"]
    argv += ["-serial", "stdio", "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n"]
    argv += ["-kernel", str(scripted.kernel), "-initrd", str(scripted.initrd), "-append", CMDLINE]
    done = alice.run(argv)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("GUEST: ")]
    assert said == [
        "GUEST: up",
        "GUEST: address 10.0.2.15 via 10.0.2.2",
        "GUEST: gateway answers",
        "GUEST: 52:54:00:12:34:56",
        "GUEST: end",
    ]

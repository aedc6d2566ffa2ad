# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real guest of an ordinary user's that tells which PCI devices it has, and powers off."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from host.inside.hostdevs import driver
from lab.guest import CMDLINE, Guest

if TYPE_CHECKING:
    from lab.users import User

__all__ = ["look_around"]

GUEST = Path("/srv/guest")
SCRIPT = """\
for device in /sys/bus/pci/devices/*; do
    say "has $(cat $device/vendor):$(cat $device/device)"
done
"""


def look_around(user: User, card: str) -> tuple[str, str, int]:
    """Boot it with a card of the host, by ``sessionvirt run``, to its end.

    :return: what it said, the card's driver meanwhile, and the command's status.
    """
    directory = user.home / "lookout"
    directory.mkdir()
    user.own(directory)
    try:
        kernel, initrd = GUEST / "vmlinuz", directory / "initrd"
        Guest(kernel, GUEST / "initrd").with_script(SCRIPT, initrd)
        user.own(initrd)
        argv = ["sessionvirt", "run", "--no-ask-password", "--memory=256", "--network=none"]
        argv += [f"--kernel={kernel}", f"--initrd={initrd}", f"--append={CMDLINE}"]
        with user.popen(
            [*argv, f"--pci={card}"],
            stderr=subprocess.STDOUT,
            environment={"XDG_CACHE_HOME": str(directory)},
        ) as process:
            assert process.stdout is not None
            said, meanwhile = b"", ""
            while line := process.stdout.readline():
                said += line
                if b"GUEST: up" in line:
                    meanwhile = driver(card)
            return said.decode(errors="replace"), meanwhile, process.wait(60)
    finally:
        shutil.rmtree(directory, ignore_errors=True)

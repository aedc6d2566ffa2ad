# SPDX-License-Identifier: LGPL-2.1-or-later
"""A QEMU that has the test host's devices: this machine's own, or one unpacked beside the image.

igb came with QEMU 8.0; Debian 12 has 7.2. Debian 13's is then unpacked below the cache and run by
its own dynamic loader. Nothing is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from host import recipe
from host.build import bootstrap, cache, remove

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Emulator", "emulator"]

#: The first with igb.
OLDEST = 8


@dataclass(frozen=True)
class Emulator:
    """A QEMU that has the devices, and how it is started."""

    #: What comes before QEMU's own arguments.
    command: tuple[str, ...]
    #: qemu-img of the same version, and what it needs before it.
    image_tool: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


def emulator(say: Callable[[str], None]) -> Emulator:
    """This machine's own QEMU where it is new enough, else Debian 13's, unpacked and not installed.

    :raise BuildError: there is none and none can be had.
    """
    if own := shutil.which("qemu-system-x86_64"):
        version = subprocess.run([own, "--version"], capture_output=True, text=True, check=False)
        if (match := re.search(r"version (\d+)", version.stdout)) and int(match[1]) >= OLDEST:
            return Emulator((own,), ("qemu-img",))
    root = cache() / f"qemu-{recipe.SUITE}"
    if not root.exists():
        say(f"test host: the QEMU of {recipe.SUITE}, unpacked beside it; this machine's has no igb")
        part = root.with_suffix(".part")
        remove(part)
        part.parent.mkdir(parents=True, exist_ok=True)
        bootstrap(part, recipe.QEMU_PACKAGES, "extract")
        part.rename(root)
    # By its own dynamic loader: no chroot, so that paths mean what they mean here.
    libraries = root / "usr/lib/x86_64-linux-gnu"
    loader = (str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries))
    firmware = [f"{root}/usr/share/{name}" for name in ("qemu", "seabios")]
    return Emulator(
        (*loader, str(root / "usr/bin/qemu-system-x86_64"), "-L", firmware[0], "-L", firmware[1]),
        (*loader, str(root / "usr/bin/qemu-img")),
        (("QEMU_MODULE_DIR", str(libraries / "qemu")),),
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The smallest guest (``lab.button``) on a disk in the home of somebody who is logged in."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.button import boot_sector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.inside.sessions import Session

__all__ = ["Machine", "machine"]


@dataclass(frozen=True)
class Machine:
    """The disk in somebody's home, and the command for it."""

    name: str
    disk: Path

    def command(self, verb: str, *options: str) -> tuple[str, ...]:
        """``sessionvirt run`` or ``plan``."""
        return ("sessionvirt", verb, f"--name={self.name}", "--memory=32", *options, str(self.disk))


@contextlib.contextmanager
def machine(session: Session, name: str) -> Iterator[Machine]:
    """A small machine of that person's."""
    disk = Path(session.home) / f"{name}.img"
    disk.write_bytes(boot_sector().ljust(1 << 20, b"\0"))
    os.chown(disk, session.uid, session.gid)
    try:
        yield Machine(name, disk)
    finally:
        disk.unlink()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bridge as an administrator makes one for the local network."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["lan_bridge"]


@contextmanager
def lan_bridge(name: str, *, mac: str | None = "02:00:00:00:00:01") -> Iterator[None]:
    """Make it, up and without a port; delete it at the end.

    :param mac: its own address; None: it takes that of its ports, as the kernel does by itself.
    """
    address = ["address", mac] if mac else []
    subprocess.run(["ip", "link", "add", name, *address, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)

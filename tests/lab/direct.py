# SPDX-License-Identifier: LGPL-2.1-or-later
"""An interface of the host's with a LAN at its other end, and another host there."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab.lan import LanHost

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OTHERS", "wired"]

#: The address of the other host's card.
OTHERS = "02:00:00:00:00:97"


@contextmanager
def wired(name: str, *, mac: str = "02:00:00:00:00:07", mtu: int = 1500) -> Iterator[LanHost]:
    """Make it, up, and delete it at the end, where it is still there.

    :param name: of the host's end; the other's is called so with an "h" in front.
    """
    card, size = f"h{name}", str(mtu)
    peer = ["peer", "name", card, "address", OTHERS, "mtu", size]
    _ip("link", "add", name, "address", mac, "mtu", size, "type", "veth", *peer)
    try:
        for one in (name, card):
            Path(f"/proc/sys/net/ipv6/conf/{one}/disable_ipv6").write_text("1")
            _ip("link", "set", one, "up")
        host = LanHost(card, OTHERS)
        try:
            yield host
        finally:
            host.close()
    finally:
        if Path("/sys/class/net", name).exists():
            _ip("link", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)

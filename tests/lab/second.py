# SPDX-License-Identifier: LGPL-2.1-or-later
"""A second uplink, and somebody far away who may come by either.

::

    lab's namespace                                      outside
    up0  192.0.2.2      default route  ================  out0
    up1  198.51.100.2/24  2001:db8:1::2/64  ===========  out1  198.51.100.1/24  2001:db8:1::1/64
         default route with a higher metric              lo    203.0.113.9  2001:db8:f::9

Outside drops what comes by another cable than its sender's address belongs to, as providers do (RFC
3704), so that an answer by the wrong uplink is none.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from lab import host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.outside import Outside

__all__ = ["NEAR4", "SECOND4", "SECOND6", "STRANGER4", "STRANGER6", "second_uplink"]

SECOND4, SECOND6 = "198.51.100.2", "2001:db8:1::2"
#: At the other end of its cable.
NEAR4, NEAR6 = "198.51.100.1", "2001:db8:1::1"
STRANGER4, STRANGER6 = "203.0.113.9", "2001:db8:f::9"


@contextlib.contextmanager
def second_uplink(world: Outside) -> Iterator[None]:
    """The cable, as long as the ``with`` lasts."""
    peer = ("peer", "name", "out1", "netns", str(world.pid))
    host.ip("link", "add", "up1", "type", "veth", *peer)
    try:
        host.ip("address", "add", f"{SECOND4}/24", "dev", "up1")
        host.ip("address", "add", f"{SECOND6}/64", "dev", "up1", "nodad")
        for name, address in (
            ("out1", f"{NEAR4}/24"),
            ("out1", f"{NEAR6}/64"),
            ("lo", f"{STRANGER4}/32"),
            ("lo", f"{STRANGER6}/128"),
        ):
            nodad = ["nodad"] if ":" in address else []
            world.run(["ip", "address", "add", address, "dev", name, *nodad])
        world.run(["ip", "link", "set", "out1", "up"])
        host.ip("link", "set", "up1", "up")
        host.ip("route", "add", "default", "via", NEAR4, "metric", "600")
        host.ip("-6", "route", "add", "default", "via", NEAR6, "metric", "2000")
        for words in (
            "add table inet provider",
            "add chain inet provider in { type filter hook prerouting priority raw; }",
            'add rule inet provider in iifname "out*" fib saddr . iif oif missing drop',
        ):
            world.run(["nft", words])
        yield
    finally:
        host.ip("link", "del", "up1")

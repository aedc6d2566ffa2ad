# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel has counted at a guest's interface, and which interfaces are ports of a bridge.

Everybody may read it, and sees the network namespace in which /sys was mounted: a program in a
namespace of its own finds nothing there. Names come from the bus, and are taken for a file's name
only where an interface can have them.

Source: Linux' Documentation/ABI/testing/sysfs-class-net-statistics; net/bridge/br_if.c for "brif".
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from typing import Final

__all__ = ["Traffic", "ports", "traffic"]

_SYSFS: Final = "/sys/class/net"
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,14}")


@dataclass(frozen=True)
class Traffic:
    """Bytes and packets, as the guest sees them: in is what it received."""

    in_bytes: int
    in_packets: int
    out_bytes: int
    out_packets: int

    def since(self, before: Traffic, seconds: float) -> Traffic | None:
        """What there was a second between two counts; None where they are not of one interface.

        :param seconds: that lie between them.
        """
        names = [field.name for field in fields(self)]
        grown = {name: getattr(self, name) - getattr(before, name) for name in names}
        if seconds <= 0 or min(grown.values()) < 0:
            return None
        return Traffic(**{name: round(number / seconds) for name, number in grown.items()})


def traffic(tap: str, *, sysfs: str = _SYSFS) -> Traffic | None:
    """Count what has passed a TAP since it was made; None where it cannot be read.

    :param sysfs: where interfaces are directories.
    """
    if not _NAME.fullmatch(tap):
        return None
    # A TAP receives what its guest sends (drivers/net/tun.c, tun_get_user).
    files = ("tx_bytes", "tx_packets", "rx_bytes", "rx_packets")
    try:
        return Traffic(*(_number(f"{sysfs}/{tap}/statistics/{file}") for file in files))
    except (OSError, ValueError):
        return None


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read(32))


def ports(bridge: str, *, sysfs: str = _SYSFS) -> frozenset[str] | None:
    """Name the ports of a bridge; None where there is none, or it is not to be seen.

    :param sysfs: where interfaces are directories.
    """
    if not _NAME.fullmatch(bridge):
        return None
    try:
        return frozenset(os.listdir(f"{sysfs}/{bridge}/brif"))
    except OSError:
        return None

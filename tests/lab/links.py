# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wait for a network interface to come or go, by the kernel's own notices (rtnetlink(7))."""

from __future__ import annotations

import socket
import time
from pathlib import Path

__all__ = ["wait_for_link"]

RTMGRP_LINK = 1


def wait_for_link(name: str, *, present: bool, timeout: float = 10) -> None:
    """Return once the interface *name* is there, or is not.

    :param timeout: seconds.
    :raise TimeoutError: it is still as it was.
    """
    deadline = time.monotonic() + timeout
    path = Path("/sys/class/net", name)
    family = socket.AF_NETLINK
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as notices:
        # Before the first look, so that no change falls between.
        notices.bind((0, RTMGRP_LINK))
        while path.exists() is not present:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{name} is {'not ' if present else ''}there after {timeout} s")
            notices.settimeout(left)
            try:
                notices.recv(65536)
            except TimeoutError:
                continue

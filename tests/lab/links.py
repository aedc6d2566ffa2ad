# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wait for a network interface to come or go, by the kernel's own notices (rtnetlink(7))."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["link_goes", "wait_for_link"]

RTMGRP_LINK = 1
RTM_DELLINK = 17


def wait_for_link(name: str, *, present: bool, timeout: float = 10) -> None:
    """Return once the interface *name* is there, or is not.

    :param timeout: seconds.
    :raise TimeoutError: it is still as it was.
    """
    deadline = time.monotonic() + timeout
    family = socket.AF_NETLINK
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as notices:
        # Before the first look, so that no change falls between.
        notices.bind((0, RTMGRP_LINK))
        while _exists(name) is not present:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{name} is {'not ' if present else ''}there after {timeout} s")
            notices.settimeout(left)
            try:
                notices.recv(65536)
            except TimeoutError:
                continue


def _exists(name: str) -> bool:
    # Not by sysfs: the kernel takes that away after it has said that the interface is gone.
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


@contextmanager
def link_goes(name: str, *, timeout: float = 10) -> Iterator[None]:
    """Wait, at the end of the ``with``, until the kernel has said that *name* was deleted.

    For an interface that may not be there yet at the beginning.

    :param timeout: seconds.
    :raise TimeoutError: it was not.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as notices:
        notices.bind((0, RTMGRP_LINK))
        notices.settimeout(timeout)
        yield
        gone = False
        while not gone:
            data = notices.recv(65536)
            kind = int.from_bytes(data[4:6], "little")
            gone = kind == RTM_DELLINK and name.encode() + b"\0" in data

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wait for a directory to become empty, by the kernel's own notices (inotify(7))."""

from __future__ import annotations

import ctypes
import os
import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["wait_until_empty"]

IN_MOVED_FROM = 0x40
IN_DELETE = 0x200

_libc = ctypes.CDLL(None, use_errno=True)


def wait_until_empty(directory: Path, timeout: float = 10) -> None:
    """Return once nothing is in *directory*; at once where it does not exist.

    :param timeout: seconds.
    :raise TimeoutError: something still is; the text names it.
    """
    deadline = time.monotonic() + timeout
    notices = _libc.inotify_init1(os.O_CLOEXEC)
    if notices < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    try:
        # Before the first look, so that no change falls between.
        _libc.inotify_add_watch(notices, os.fsencode(directory), IN_DELETE | IN_MOVED_FROM)
        while names := _names(directory):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([notices], [], [], left)[0]:
                raise TimeoutError(f"{directory} still has {', '.join(names)} after {timeout:g} s")
            os.read(notices, 65536)
    finally:
        os.close(notices)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []

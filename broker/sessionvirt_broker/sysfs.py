# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading what the kernel says in /sys and /proc: an attribute, a link, a directory.

Invariants: whatever is gone reads as empty, for devices go at any time. A link is never followed:
it is read and worked out as text. That is exact, because a link of sysfs leads to a real directory
by its whole path (kernfs_get_target_path() in fs/kernfs/symlink.c).

Never writes, and never opens a device node.
"""

from __future__ import annotations

import os

#: A sysfs attribute is at most a page (Documentation/filesystems/sysfs.rst).
_PAGE = 4096
#: O_NONBLOCK and O_NOFOLLOW: no attribute is a FIFO or a link; what is one is nothing of sysfs.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def raw(name: str, size: int = _PAGE, *, at: int | None = None) -> bytes:
    """The first ``size`` bytes of a file; empty where it cannot be read.

    :param at: a descriptor of the directory that ``name`` is relative to.
    """
    try:
        descriptor = os.open(name, _FLAGS, dir_fd=at)
    except OSError:
        return b""
    try:
        return os.read(descriptor, size)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def text(name: str, *, at: int | None = None) -> str:
    """An attribute without the white space around it; empty where it cannot be read."""
    return raw(name, at=at).decode(errors="replace").strip()


def number(name: str, *, at: int | None = None) -> int:
    """An attribute like ``0x8086``; 0 where it is none."""
    word = text(name, at=at)
    try:
        return int(word, 16) if word.startswith("0x") and len(word) <= 10 else 0
    except ValueError:
        return 0


def whole(name: str) -> bytes:
    """All of a file whose length the kernel bounds, as fs.mount-max does mountinfo's.

    :raise OSError: it cannot be read, or not to its end: half of it would be a wrong answer.
    """
    with open(name, "rb", buffering=0) as file:
        return file.read()


def listed(name: str) -> list[str]:
    """The names in a directory, sorted; none where there is no such directory.

    :raise OSError: it is there and cannot be read: that is not the same as empty.
    """
    try:
        return sorted(os.listdir(name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def link(directory: str, name: str) -> str:
    """Where the link leads, as a whole path; empty where it is none.

    :param directory: where the link is; itself without links.
    """
    try:
        target = os.readlink(f"{directory}/{name}")
    except OSError:
        return ""
    return os.path.normpath(f"{directory}/{target}")


def members(sys: str, which: str) -> dict[str, str]:
    """The devices of a class or bus, in the order of their names, each with its whole path.

    :param which: "class/net", "bus/pci/devices". What is in there and no link (bonding_masters) is
        left out.
    """
    directory = f"{sys}/{which}"
    found = {name: link(directory, name) for name in listed(directory)}
    return {name: path for name, path in found.items() if path}

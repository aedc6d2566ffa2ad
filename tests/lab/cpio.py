# SPDX-License-Identifier: LGPL-2.1-or-later
"""Archives of the kernel's initramfs format: cpio "newc" (buffer-format.rst of the kernel).

Several archives one after another are one initramfs, so a script is added to an image by appending.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

__all__ = ["Entry", "archive"]


@dataclass(frozen=True)
class Entry:
    """One name in the archive, owned by root.

    :param mode: type and permissions, as in st_mode.
    :param content: a file's bytes, or a link's target.
    """

    name: str
    mode: int
    content: bytes = b""

    @classmethod
    def directory(cls, name: str) -> Entry:
        return cls(name, stat.S_IFDIR | 0o755)

    @classmethod
    def file(cls, name: str, content: bytes, *, executable: bool = False) -> Entry:
        return cls(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    @classmethod
    def link(cls, name: str, target: str) -> Entry:
        return cls(name, stat.S_IFLNK | 0o777, target.encode())


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _encoded(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, 2 x device, 2 x special device, name's size, check
    numbers = (inode, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % number for number in numbers)
    return _padded(header + name) + _padded(entry.content)


def archive(entries: list[Entry]) -> bytes:
    """*entries* in order, which must name a directory before what is in it."""
    numbered = [_encoded(entry, inode) for inode, entry in enumerate(entries, 1)]
    data = b"".join([*numbered, _encoded(Entry("TRAILER!!!", 0), 0)])
    # The kernel looks for the next archive at a multiple of 4; 512 is what cpio itself writes.
    return data + b"\0" * (-len(data) % 512)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""One user's entry in the access list of a device node (acl(5)), by its extended attribute.

The node keeps its owner and mode; everybody who had access keeps it. devtmpfs has access lists
where the kernel has CONFIG_TMPFS_POSIX_ACL, as all distributions' do. Knows no VFIO.

Source: include/uapi/linux/posix_acl_xattr.h.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["allow", "withdraw"]

_ATTRIBUTE = "system.posix_acl_access"
_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_READ_WRITE = 6
_NOBODY = 0xFFFFFFFF

#: Tag and id to permissions.
_List = dict[tuple[int, int], int]


def allow(path: Path, uid: int) -> None:
    """Let ``uid`` read and write it.

    :raise OSError: the file system has no access lists, or the node is gone.
    """
    entries = _read(path)
    entries[_USER, uid] = _READ_WRITE
    _write(path, entries)


def withdraw(path: Path, uid: int) -> None:
    """Take the entry of ``uid`` away; that there is none, or no node, is in order."""
    try:
        entries = _read(path)
        if entries.pop((_USER, uid), None) is not None:
            _write(path, entries)
    except FileNotFoundError:
        pass


def _read(path: Path) -> _List:
    try:
        raw = os.getxattr(path, _ATTRIBUTE, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        mode = stat.S_IMODE(os.lstat(path).st_mode)
        return {
            (_USER_OBJ, _NOBODY): mode >> 6 & 7,
            (_GROUP_OBJ, _NOBODY): mode >> 3 & 7,
            (_OTHER, _NOBODY): mode & 7,
        }
    return {(tag, id_): bits for tag, bits, id_ in _ENTRY.iter_unpack(raw[_VERSION.size :])}


def _write(path: Path, entries: _List) -> None:
    named = [bits for (tag, _), bits in entries.items() if tag in (_USER, _GROUP)]
    entries.pop((_MASK, _NOBODY), None)
    if named:
        mask = entries[_GROUP_OBJ, _NOBODY]
        for bits in named:
            mask |= bits
        entries[_MASK, _NOBODY] = mask
    # The kernel wants them in the order of their tags and ids (posix_acl_valid()).
    packed = [_ENTRY.pack(tag, bits, id_) for (tag, id_), bits in sorted(entries.items())]
    # PRIVILEGE: CAP_FOWNER; the node is root's.
    os.setxattr(path, _ATTRIBUTE, _VERSION.pack(2) + b"".join(packed), follow_symlinks=False)

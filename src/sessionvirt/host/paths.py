# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where this user's files are: XDG base directories, and programs in PATH.

Directories that are made here have mode 0700, those above them too. Nothing here fails because a
directory cannot be made: a cache is worth having, not worth dying for.

Source: XDG Base Directory Specification 0.8.
"""

from __future__ import annotations

import os
import stat

__all__ = ["cache_directory", "find_program"]

_NAME = "sessionvirt"

#: Where administrators' programs are. Not in an ordinary user's PATH on Debian.
_EXTRA_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/libexec")


def cache_directory() -> str | None:
    """Return ``$XDG_CACHE_HOME/sessionvirt``, made if need be; ``None`` where that cannot be.

    A directory that belongs to somebody else, or into which others may write, is not used: what is
    read from it decides how QEMU is started.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):
        # The specification says that a relative path is to be ignored.
        home = os.path.expanduser("~")
        if not home.startswith("/"):
            return None
        base = os.path.join(home, ".cache")
    path = os.path.join(base, _NAME)
    try:
        # makedirs() gives only the last one the mode, hence two steps.
        for directory in (base, path):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        found = os.stat(path)
    except OSError:
        return None
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    return path


def find_program(name: str, extra: tuple[str, ...] = _EXTRA_PATH) -> str | None:
    """Find an executable file by name in PATH, then in ``extra``.

    :param name: a bare name, or a path, which is then only checked.
    :return: an absolute path, symbolic links not followed.
    """
    if os.sep in name:
        path = os.path.abspath(name)
        return path if _is_executable(path) else None
    for directory in (*os.get_exec_path(), *extra):
        path = os.path.abspath(os.path.join(directory, name))
        if directory and _is_executable(path):
            return path
    return None


def _is_executable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)

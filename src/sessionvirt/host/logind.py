# SPDX-License-Identifier: LGPL-2.1-or-later
"""What logind knows of a user, as polkit's defaults see it: is somebody sitting at the machine?

Read from logind's state below /run, as sd-login does; no bus.

Source: sd_uid_get_state(3), sd_session_is_remote(3).
"""

from __future__ import annotations

import enum
import os
from typing import Final

__all__ = ["Presence", "presence"]

_SYSTEMD: Final = "/run/systemd"


class Presence(enum.Enum):
    """The best session that a user has."""

    #: In the foreground of a seat: what polkit calls active and local.
    ACTIVE = "active"
    #: At a seat, and somebody else is in the foreground.
    INACTIVE = "inactive"
    #: By SSH or the like.
    REMOTE = "remote"
    #: No session.
    NONE = "none"
    #: No logind here.
    UNKNOWN = "unknown"


def presence(uid: int | None = None, *, root: str = _SYSTEMD) -> Presence:
    """Find the best session of a user.

    :param uid: by default this process'.
    :param root: systemd's runtime directory.
    """
    if not os.path.isdir(f"{root}/users"):
        return Presence.UNKNOWN
    user = _read(f"{root}/users/{os.getuid() if uid is None else uid}")
    best = Presence.NONE
    for name in user.get("SESSIONS", "").split():
        session = _read(f"{root}/sessions/{name}")
        if session.get("REMOTE") == "1":
            best = Presence.REMOTE if best is Presence.NONE else best
        elif session.get("ACTIVE") == "1" and session.get("SEAT"):
            return Presence.ACTIVE
        elif session.get("SEAT"):
            best = Presence.INACTIVE
    return best


def _read(path: str) -> dict[str, str]:
    """Return the assignments of one of logind's files; none where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip().partition("=") for line in file]
    except OSError:
        return {}
    return {name: value for name, _, value in lines}

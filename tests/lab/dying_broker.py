# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker, killed at one of its steps: what a crash at the worst moment leaves.

usage: python3 -I dying_broker.py NUMBER FROM

Counted, from the first call of ``Leases.FROM`` on, is every state that a crash can leave: a journal
record's new content in its temporary file; that content in its place, or the record removed; a step
executed or undone, and nothing written of it. When there have been NUMBER of them the process kills
itself. Where there are not so many it is an ordinary broker. Root's stage runs the program anew by
its command line, so this is in both.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sessionvirt_broker.__main__ import main
from sessionvirt_broker.journal import Journal
from sessionvirt_broker.kinds import STEPS
from sessionvirt_broker.leases import Leases


class Fate:
    """Counts, and ends the process.

    :param left: states before the last.
    """

    def __init__(self, left: int) -> None:
        self.left = left
        self.armed = False

    def arm(self, real: Any) -> Any:
        """*real*, which begins the counting."""

        @functools.wraps(real)
        def replaced(*arguments: Any) -> Any:
            self.armed = True
            return real(*arguments)

        return replaced

    def state(self) -> None:
        """One state more."""
        if self.armed:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1

    def after(self, real: Any) -> Any:
        """*real*, with a state behind it."""

        @functools.wraps(real)
        def replaced(*arguments: Any) -> Any:
            result = real(*arguments)
            self.state()
            return result

        return replaced

    def before(self, real: Any) -> Any:
        """*real*, with a state in front of it."""

        @functools.wraps(real)
        def replaced(*arguments: Any) -> Any:
            if str(arguments[0]).endswith(".part"):
                self.state()
            return real(*arguments)

        return replaced


if __name__ == "__main__":
    fate = Fate(int(sys.argv[1]))
    begin = sys.argv[2]
    del sys.argv[1:3]
    setattr(Leases, begin, fate.arm(getattr(Leases, begin)))
    changing: list[tuple[type, str]] = [(Journal, "write"), (Journal, "remove")]
    changing += [(step, name) for step in STEPS.values() for name in ("execute", "undo")]
    for owner, name in changing:
        setattr(owner, name, fate.after(getattr(owner, name)))
    Path.rename = fate.before(Path.rename)  # type: ignore[method-assign]
    sys.exit(main())

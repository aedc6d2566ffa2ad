# SPDX-License-Identifier: LGPL-2.1-or-later
"""One line for every grant, refusal and release, on standard error, where journald reads it.

``<5>`` is sd-daemon(3)'s priority "notice". Values are JSON strings in ASCII: a name that a user
chose cannot start a line of its own, nor move a terminal's cursor.
"""

from __future__ import annotations

import contextlib
import json
import sys


def audit(event: str, **fields: object) -> None:
    """Write one line: ``event=grant uid="1000" ...``; empty values are left out."""
    words = [f"event={event}"]
    words += [f"{name}={json.dumps(str(value))}" for name, value in fields.items() if value != ""]
    # A journal that is gone costs the line, never what is half-way done: a lease whose fds nobody
    # closes would not end.
    with contextlib.suppress(OSError):
        print("<5>" + " ".join(words), file=sys.stderr, flush=True)  # noqa: T201  (it is the journal)

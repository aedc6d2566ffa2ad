# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker with a mistake in it: what becomes of an exception that nobody foresaw.

usage: python3 -I stumbling_broker.py

Only Diagnose has the mistake. Root's stage runs the program anew by its command line.
"""

from __future__ import annotations

import sys

from sessionvirt_broker import broker
from sessionvirt_broker.__main__ import main


def stumble(*_: object) -> dict[str, object]:
    """In place of what Diagnose has the worker do."""
    raise ZeroDivisionError("secret /etc/x")


if __name__ == "__main__":
    setattr(broker, "facts", stumble)  # noqa: B010  (no name that mypy could know)
    sys.exit(main())

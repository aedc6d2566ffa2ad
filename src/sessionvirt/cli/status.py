# SPDX-License-Identifier: LGPL-2.1-or-later
"""Exit statuses of the command that no exception class has; the others are in errors.py."""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILURE: Final = 1
DENIED: Final = 4
#: The guest panicked, or QEMU died or was ended by somebody else.
GUEST_DIED: Final = 9
TIMEOUT: Final = 124
#: Ended by a signal: this plus its number.
SIGNAL: Final = 128

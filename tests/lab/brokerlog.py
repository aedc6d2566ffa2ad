# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker writes into the journal, as a test reads it: its standard error."""

from __future__ import annotations

from lab.daemon import log_of

__all__ = ["Log"]


class Log:
    """What the broker has written since the test began."""

    def __init__(self) -> None:
        self._path = log_of("sessionvirt-broker")
        self._path.touch()
        self._start = self._path.stat().st_size

    def text(self) -> str:
        """All of it."""
        return self._path.read_bytes()[self._start :].decode()

    def lines(self, event: str = "") -> list[str]:
        """The lines of one kind of event."""
        return [one for one in self.text().splitlines() if f"event={event}" in one]

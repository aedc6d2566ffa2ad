# SPDX-License-Identifier: LGPL-2.1-or-later
"""A TOML file by its parsed tables: what is wrong in one is said with file, line and key.

tomllib keeps no positions; :meth:`Source.wrong` finds the line again in the text. Nothing here
knows what the file is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

#: The way to a key: ``("network", "lab", "mtu")``.
Key = tuple[str, ...]


class Source:
    """The text of a file, and where what was parsed of it stands."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def tables(
        self, table: dict[str, object], at: Key, *, leaf: bool = False
    ) -> dict[str, dict[str, object]]:
        """The tables below the last word of ``at``, by name; with ``leaf`` that one alone.

        :raise ConfigurationError: something there is no table.
        """
        key = at[-1]
        found = {key: table.get(key, {})} if leaf else table.get(key, {})
        if not isinstance(found, dict):
            raise self.wrong(at, "must be a table")
        result: dict[str, dict[str, object]] = {}
        for name, body in found.items():
            if not isinstance(body, dict):
                raise self.wrong(at if leaf else (*at, name), "must be a table")
            result[name] = body
        return result

    def only(self, body: dict[str, object], at: Key, *known: str) -> None:
        """Refuse a key that is not known.

        :raise ConfigurationError: there is one.
        """
        for key in body:
            if key not in known:
                raise self.wrong((*at, key), f"{key!a} is not known here")

    def flag(self, body: dict[str, object], at: Key, key: str, *, default: bool = False) -> bool:
        """A boolean.

        :raise ConfigurationError: it is something else.
        """
        value = body.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong((*at, key), "must be true or false")
        return value

    def wrong(self, key: Key, reason: str) -> ConfigurationError:
        """The error, to be raised."""
        return ConfigurationError(f"{self._path}:{self._line(key)}: {'.'.join(key)!a}: {reason}")

    def _line(self, key: Key) -> int:
        """The line that gives ``key``, or the nearest one above it; 1 where none is found.

        tomllib keeps no positions. This reads headers and ``key =`` lines as people write them; a
        strange spelling costs a less exact line number, never a wrong decision.
        """
        best, header = 1, ""
        for number, line in enumerate(self._lines, 1):
            stripped = line.strip().replace('"', "").replace("'", "")
            if stripped.startswith("["):
                header = stripped.split("#")[0].strip("[] ")
                if ".".join(key[: len(header.split("."))]) == header:
                    best = number
            elif "=" in stripped:
                full = ".".join(filter(None, (header, stripped.partition("=")[0].strip())))
                if full == ".".join(key):
                    return number
        return best

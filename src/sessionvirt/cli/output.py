# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the command speaks: data to stdout, messages to stderr.

Tables are aligned for people; colour is for a terminal that can do it and a person who did not say
``NO_COLOR`` (no-color.org). JSON has a ``version``, which is raised when a key changes its meaning
or goes; new keys do not raise it. An error is its cause, what proves it, and what to do, in this
order.

Text from outside (a guest, the bus, a definition) cannot move the cursor: control characters are
shown escaped.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sessionvirt.errors import SessionvirtError

__all__ = [
    "moment", "one_line", "paint", "print_error", "print_json", "print_json_line", "print_table",
    "say", "visible",
]  # fmt: skip

JSON_VERSION: Final = 1

_COLOURS: Final = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}
#: C0 but newline and tab, DEL, C1, what ends a line, and what turns the direction of writing.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Return the text with everything that would control a terminal escaped."""
    return _CONTROL.sub(lambda match: ascii(match.group())[1:-1], text)


def one_line(text: str) -> str:
    """Return the text as :func:`visible` does, and on one line."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _has_colour(stream: TextIO) -> bool:
    # no-color.org: any value but the empty one.
    return (
        stream.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return the text in a colour, where the stream shows colours.

    :param colour: "bold", "red", "green" or "yellow".
    :param stream: by default stdout.
    """
    if not _has_colour(sys.stdout if stream is None else stream):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def say(text: str, *, fresh_line: bool = False) -> None:
    """Write a message to stderr.

    :param fresh_line: on a terminal, where a guest may have left the cursor anywhere.
    """
    start = "\n" if fresh_line and sys.stderr.isatty() else ""
    _write(f"{start}sessionvirt: {visible(text)}")


def _write(text: str) -> None:
    """A line to stderr, where anybody is left to read it.

    A terminal that was closed refuses it (EIO), which must not keep our caller from what it does.
    Nor the interpreter, which would try again at its end, and exit with status 120.
    """
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115


def print_error(error: SessionvirtError) -> None:
    """Write cause, evidence and advice to stderr."""
    head = paint("sessionvirt:", "red", sys.stderr)
    lines = [f"{head} {visible(error.cause)}"]
    lines += [f"  {line}" for line in visible(error.evidence).splitlines()]
    if error.advice:
        lines.append(f"{paint('what to do:', 'bold', sys.stderr)} {visible(error.advice)}")
    _write("\n".join(lines))


def print_json(values: Mapping[str, object]) -> None:
    """Write one JSON object to stdout, with the version of its form."""
    json.dump({"version": JSON_VERSION, **values}, sys.stdout, indent=2)
    print()


def moment(seconds: int) -> str:
    """Return a time since the epoch as a date and time of here; a number that is none as it is."""
    try:
        return time.strftime("%F %T", time.localtime(seconds))
    except (OSError, OverflowError, ValueError):
        return str(seconds)


def print_json_line(values: Mapping[str, object]) -> None:
    """Write the same as one line, and let go of it at once: it is one of a row."""
    print(json.dumps({"version": JSON_VERSION, **values}), flush=True)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write an aligned table to stdout."""
    cells = [[one_line(cell) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for number, row in enumerate([list(heads), *cells]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(paint(line.rstrip(), "bold") if number == 0 else line.rstrip())

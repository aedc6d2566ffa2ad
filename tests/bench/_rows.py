# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every benchmark prints: medians and ratios of one run, as a table and as JSON.

A benchmark is a command, never a test: it judges nothing. A peer that is not installed is a row
that says so. What is compared is measured in turn, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ABSENT = "not installed"


@dataclass(frozen=True)
class Row:
    """One comparison.

    :param ours, theirs: medians in ``unit``; None: not measured.
    :param why: said in place of ``theirs`` where there is a peer and no figure of it.
    :param aim: what the ratio (or, without a peer, ``ours``) should be, in words.
    """

    what: str
    ours: float | None
    peer: str
    theirs: float | None
    unit: str
    aim: str = ""
    why: str = ABSENT

    @property
    def ratio(self) -> float | None:
        """Ours by theirs; below 1 is less than the peer needs."""
        if self.ours is None or not self.theirs:
            return None
        return self.ours / self.theirs


def in_turn(
    rounds: int, ours: Callable[[], float], theirs: Callable[[], float] | None
) -> tuple[float, float | None]:
    """Medians of ``rounds`` measurements each, ours and theirs alternating, after one of each."""
    ours()
    if theirs is not None:
        theirs()
    a, b = [], []
    for _ in range(rounds):
        a.append(ours())
        if theirs is not None:
            b.append(theirs())
    return statistics.median(a), statistics.median(b) if b else None


def report(name: str, rows: Sequence[Row]) -> None:
    """Print the table; with ``--json FILE`` write the rows, too."""
    parser = argparse.ArgumentParser(prog=f"./dev bench {name}")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    cells = [("what", "ours", "peer", "theirs", "unit", "ratio", "aim")]
    for row in rows:
        theirs = row.why if row.theirs is None and row.peer else _number(row.theirs)
        numbers = (_number(row.ours), row.peer, theirs, row.unit, _number(row.ratio), row.aim)
        cells.append((row.what, *numbers))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    if arguments.json:
        content = {"bench": name, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"

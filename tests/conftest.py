# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tiers: what each test needs, what happens where it is not there, and a line for each at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

TIERS = ("unit", "bus", "kernel", "qemu")


def tier_of(item: pytest.Item) -> str:
    """The one tier of a test.

    :raise pytest.UsageError: it has none, or several.
    """
    tiers = [name for name in TIERS if item.get_closest_marker(name)]
    if len(tiers) != 1:
        sentence = f"{item.nodeid}: a test has exactly one of the marks {', '.join(TIERS)}"
        raise pytest.UsageError(f"{sentence}; this has: {', '.join(tiers) or 'none'}")
    return tiers[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap tiers first, so that the first failure comes soon."""
    items.sort(key=lambda item: TIERS.index(tier_of(item)))
    for item in items:
        item.user_properties.append(("tier", tier_of(item)))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each tier that ran."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in ("passed", "failed", "error", "skipped", "xfailed"):
        for report in terminalreporter.getreports(outcome):
            tier = dict(getattr(report, "user_properties", ())).get("tier")
            if tier is None:
                continue
            counts[str(tier)][outcome] += 1
            if outcome == "skipped" and isinstance(report.longrepr, tuple):
                reasons[str(tier)][report.longrepr[2].removeprefix("Skipped: ")] += 1
    terminalreporter.section("tiers")
    for tier in TIERS:
        if counts[tier]:
            terminalreporter.write_line(f"{tier}: {tier_line(counts[tier], reasons[tier])}")


def tier_line(counts: Counter[str], reasons: Counter[str]) -> str:
    """``210 passed, 2 skipped (needs root)``."""
    words = [f"{number} {outcome}" for outcome, number in counts.items() if outcome != "skipped"]
    if counts["skipped"]:
        why: Iterable[str] = (f"{reason}: {number}" for reason, number in reasons.items())
        words.append(f"{counts['skipped']} skipped ({'; '.join(why)})")
    return ", ".join(words)

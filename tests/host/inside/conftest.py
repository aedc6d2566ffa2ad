# SPDX-License-Identifier: LGPL-2.1-or-later
"""For the pytest in the test host: reports to the one outside, the guard, the fixtures.

Outside, only the collection of this directory happens; ``host/forward.py`` has the rest. So this
file, and the tests at their top, import nothing that only the host has.
"""

from __future__ import annotations

import json
import os
import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest
from _pytest._io import TerminalWriter

#: Whether this is the pytest in the host.
IN_HOST = Path("/usr/local/lib/testhost").is_dir()

if TYPE_CHECKING or IN_HOST:
    from host.inside import evidence, machines, state
    from host.inside.hostdevs import NIC, with_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

_reports: TextIO


class _Screen:
    """What pytest words a failed comparison with (Config.get_terminal_writer): nobody's screen."""

    def __init__(self) -> None:
        self._tw = TerminalWriter(StringIO())


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Have standard output for the reports, before pytest captures it."""
    global _reports
    if IN_HOST:
        config.pluginmanager.register(_Screen(), "terminalreporter")
        _reports = os.fdopen(os.dup(sys.__stdout__.fileno() if sys.__stdout__ else 1), "w")


def _tell(text: str) -> None:
    _reports.write(text + "\n")
    _reports.flush()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if IN_HOST:
        raw = _config.hook.pytest_report_to_serializable(config=_config, report=report)
        _tell("REPORT " + json.dumps(raw))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported in the host: its tests will be missed, and this says why."""
    if IN_HOST and report.failed:
        _tell(report.longreprtext)


def pytest_internalerror(excrepr: object) -> None:
    if IN_HOST:
        _tell(str(excrepr))


def pytest_sessionstart(session: pytest.Session) -> None:
    global _config
    _config = session.config


_config: pytest.Config


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep evidence of a failure; here everything is there, so that no skip is excused."""
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    if not IN_HOST:
        return
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{report.longreprtext}\nthe test host has everything: no skips"
    if report.failed:
        report.sections.append(("journal of the test host", evidence.journal()))
        evidence.keep(item.nodeid)


#: As the last test left it: nothing but tests happens in the host, and a look takes seconds.
_state: state.State | None = None


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail a test that does not leave the host as it found it."""
    global _state
    evidence.begin()
    before = _state or state.snapshot()
    yield
    state.settle()
    _state = state.snapshot()
    if changes := state.differences(before, _state):
        pytest.fail("the host is not as it was:\n  " + "\n  ".join(changes), pytrace=False)


@pytest.fixture
def permission() -> Iterator[None]:
    """polkit lets everybody have everything."""
    with machines.permitted():
        yield


@pytest.fixture
def cards() -> list[str]:
    """Two network cards in groups of their own, on one wire."""
    return with_ids(NIC)

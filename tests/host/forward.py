# SPDX-License-Identifier: LGPL-2.1-or-later
"""pytest here, its tests there: the tests below ``inside/`` run in the test host.

They are collected here like all others, so that -k, -m and a test's name mean what they always do.
A pytest in the host (``host/runner.py``) gets the names of all that are wanted, and each of its
reports is passed on here when that test's turn comes, under the same name. A test that the other
pytest never spoke of has failed.

What a failure leaves behind (the journal, captures: ``inside/evidence.py``) is brought out to
``dist/testhost/``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from host.connection import HostError
from lab.stage import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.runner import Runner

__all__ = ["Forwarder", "is_inside"]

INSIDE = ROOT / "tests/host/inside"


def is_inside(item: pytest.Item) -> bool:
    """Whether it runs in the host."""
    return INSIDE in item.path.parents


class Forwarder:
    """The reports of the pytest in the host, test by test."""

    def __init__(self, config: pytest.Config, runner: Runner) -> None:
        self._config = config
        self._runner = runner
        self._reports = self._read()
        self._pending: pytest.TestReport | None = None
        self._broken = ""

    def run(self, item: pytest.Item) -> list[pytest.TestReport]:
        """The reports of one test: setup, call, teardown; waits for them."""
        reports: list[pytest.TestReport] = []
        try:
            while not self._broken:
                report = self._pending or next(self._reports)
                self._pending = None
                if report.nodeid != item.nodeid:
                    self._pending = report
                    break
                reports.append(report)
                if report.when == "teardown":
                    break
        except (HostError, StopIteration) as error:
            self._broken = str(error) or "the pytest in the host ended before this test"
        if not reports or reports[-1].when != "teardown":
            reports.append(self._lost(item))
        return reports

    def _read(self) -> Iterator[pytest.TestReport]:
        for text in self._runner.reports():
            report: pytest.TestReport = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=json.loads(text)
            )
            report.user_properties.append(("tier", "host"))
            yield report

    def _lost(self, item: pytest.Item) -> pytest.TestReport:
        """The report of a test that the host did not report on."""
        said = "\n".join(self._runner.said[-60:])
        text = f"{self._broken or 'the host said nothing of this test'}\n{said}"
        return pytest.TestReport(
            item.nodeid,
            item.location,
            {},
            "failed",
            text,
            "call",
            user_properties=[("tier", "host")],
        )

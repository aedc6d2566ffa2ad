# SPDX-License-Identifier: LGPL-2.1-or-later
"""pytest here, its tests there: the tests below ``inside/`` run in the test host.

They are collected here like all others, so that -k, -m and a test's name mean what they always do.
When the first one's turn comes, a pytest in the host (``host/shared.py``) gets the names of all
that are wanted, and each of its reports is passed on here as it comes, under the same name. A test
that the other pytest never spoke of has failed, and so has one that says nothing for
:data:`SILENCE_SECONDS`.

What a failure leaves behind (the journal, captures: ``inside/evidence.py``) is brought out to
``dist/testhost/``.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from host import install
from host.build import BuildError
from host.channel import Kind
from host.connection import HostError
from lab.stage import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.connection import Connection, Job
    from host.shared import Shared

__all__ = ["EVIDENCE", "Forwarder", "is_inside"]

INSIDE = ROOT / "tests/host/inside"
#: Where evidence of failures is, in the host and here.
EVIDENCE = "/var/lib/testhost/evidence"
EVIDENCE_HERE = ROOT / "dist/testhost"

#: A nested guest under TCG in TCG takes most of a minute to boot.
SILENCE_SECONDS = 420.0
#: A report of the pytest inside, a line on its standard output.
REPORT = b"REPORT "


def is_inside(item: pytest.Item) -> bool:
    """Whether it runs in the host."""
    return INSIDE in item.path.parents


class Forwarder:
    """One pytest in one host, from its first test to its last."""

    def __init__(self, config: pytest.Config, items: list[pytest.Item], shared: Shared) -> None:
        self._config = config
        self._shared = shared
        self._wanted = [item.nodeid for item in items]
        self._stack = contextlib.ExitStack()
        self._reports: Iterator[pytest.TestReport] | None = None
        self._pending: pytest.TestReport | None = None
        self._said: list[str] = []
        self._broken = ""

    def run(self, item: pytest.Item) -> list[pytest.TestReport]:
        """The reports of one test: setup, call, teardown; waits for them."""
        reports: list[pytest.TestReport] = []
        try:
            while not self._broken:
                report = self._next()
                if report.nodeid != item.nodeid:
                    self._pending = report
                    break
                reports.append(report)
                if report.when == "teardown":
                    break
        except (HostError, BuildError, StopIteration) as error:
            self._broken = str(error) or "the pytest in the host ended before this test"
        if not reports or reports[-1].when != "teardown":
            reports.append(self._lost(item))
        return reports

    def _lost(self, item: pytest.Item) -> pytest.TestReport:
        """The report of a test that the host did not report on."""
        said = "\n".join(self._said[-60:])
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

    def _next(self) -> pytest.TestReport:
        if self._pending is not None:
            report, self._pending = self._pending, None
            return report
        if self._reports is None:
            self._reports = self._start()
        return next(self._reports)

    def _start(self) -> Iterator[pytest.TestReport]:
        host = self._stack.enter_context(self._shared.machine().connect())
        host.run(["rm", "-rf", EVIDENCE])
        # The names go by a file: there may be more than an argv holds.
        names = "\n".join(self._wanted).encode()
        host.run(["sh", "-c", f"cat > {install.TESTS}/wanted"], stdin=names)
        ini = f"{install.TESTS}/tests/host/inside/inside.ini"
        argv = ["python3", "-B", "-m", "pytest", "-c", ini, f"--rootdir={install.TESTS}"]
        job = host.start(
            [*argv, "@wanted"], cwd=install.TESTS, env={"CI": os.environ.get("CI", "")}
        )
        return self._read(host, job)

    def _read(self, host: Connection, job: Job) -> Iterator[pytest.TestReport]:
        """Reports as they come; when the pytest inside has ended, its evidence."""
        left = b""
        began = time.monotonic()
        for kind, data in job.output(silence=SILENCE_SECONDS):
            if kind is Kind.EXIT:
                break
            *lines, left = (left + data).split(b"\n")
            for line in lines:
                if line.startswith(REPORT):
                    raw: dict[str, Any] = json.loads(line.removeprefix(REPORT))
                    report: pytest.TestReport = self._config.hook.pytest_report_from_serializable(
                        config=self._config, data=raw
                    )
                    report.user_properties.append(("tier", "host"))
                    yield report
                else:
                    self._said.append(line.decode(errors="replace"))
        self._said.append(f"the pytest in the host ended after {time.monotonic() - began:.0f} s")
        if host.run(["test", "-d", EVIDENCE], check=False).status == 0:
            EVIDENCE_HERE.mkdir(parents=True, exist_ok=True)
            host.get(EVIDENCE, EVIDENCE_HERE)

    def close(self) -> None:
        """Take the last evidence, and leave the host."""
        if self._reports is not None and not self._broken:
            for report in self._reports:
                self._said.append(f"a report of no test here: {report.nodeid}")
        self._stack.close()

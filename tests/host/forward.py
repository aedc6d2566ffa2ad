# SPDX-License-Identifier: LGPL-2.1-or-later
"""pytest here, its tests there: the tests below ``inside/`` run in the test host.

They are collected here like all others, so that -k, -m and a test's name mean what they always do.
When the first one's turn comes, a host is booted (or the one that ``SESSIONVIRT_TESTHOST`` names is
used), a pytest in it gets the names of all that are wanted, and each of its reports is passed on
here as it comes, under the same name. A test that the other pytest never spoke of has failed, and
so has one that says nothing for :data:`SILENCE_SECONDS`.

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

from host import install, kernel, machine
from host.build import BuildError, built
from host.channel import Kind
from host.connection import Connection, HostError
from host.emulator import emulator
from lab.stage import ROOT
from sessionvirt.host.kvm import probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.connection import Job

__all__ = ["EVIDENCE", "Forwarder", "is_inside", "prepare"]

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


def prepare() -> None:
    """Build what a host is booted from; it needs the network, which tests have not.

    :raise pytest.UsageError: it cannot be built.
    """
    if os.environ.get("SESSIONVIRT_TESTHOST"):
        return
    try:
        built(_say)
        emulator(_say)
    except BuildError as error:
        raise pytest.UsageError(str(error)) from error


def _say(sentence: str) -> None:
    # Past pytest's capture: minutes of nothing look like a hang.
    with contextlib.suppress(OSError), open("/dev/stderr", "w", encoding="utf-8") as stream:
        stream.write(f"\n{sentence}" if os.environ.get("CI") == "true" else f"\r\x1b[K{sentence}")


class Forwarder:
    """One pytest in one host, from its first test to its last."""

    def __init__(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._config = config
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
        host = self._stack.enter_context(self._host())
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

    @contextlib.contextmanager
    def _host(self) -> Iterator[Connection]:
        """A host with this checkout in it: the one that was named, or one of our own."""
        if name := os.environ.get("SESSIONVIRT_TESTHOST"):
            one = machine.running(name)
            if one is None:
                raise HostError(f"no test host {name!r} is running; ./dev host --name {name} start")
            with one.connect() as host:
                install.put_tests(host)
                yield host
            return
        parts = (kernel.chosen(built(_say), "debian", _say), emulator(_say))
        name = f"pytest-{os.getpid()}"
        with machine.boot(parts, name, _say, kvm=probe().usable) as one, one.connect() as host:
            install.furnish(host, _say)
            yield host

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
        """Take the last evidence, and end the host."""
        if self._reports is not None and not self._broken:
            for report in self._reports:
                self._said.append(f"a report of no test here: {report.nodeid}")
        self._stack.close()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tiers, the laboratory's fixtures, and the guard that lets no test leave anything behind.

A test has exactly one of the marks unit, bus, kernel, qemu and host, and a file has the same one
throughout. Where one of the others is selected and the process is root, the whole run enters the
lab (lab/__init__) after collection, before the first test. Tests below host/inside run in the test
host (host/forward), meanwhile. Where what a tier needs is not there its
tests are skipped, with the reason; with CI=true that is an error, for then nobody would notice that
nothing was tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from host.forward import Forwarder, is_inside
from host.runner import Runner
from lab import capture, leaks, namespaces
from lab.broker import Broker
from lab.bus import SystemBus
from lab.daemon import Daemon, log_of
from lab.guest import Guest, GuestError, fetch_kernel
from lab.outside import Outside
from lab.polkit import Polkit
from lab.stage import Flavour, missing_files
from lab.standing import Standing
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from host.machine import Machine

TIERS = ("unit", "bus", "kernel", "qemu", "host")

#: The programs of each tier. qemu's use both.
TOOLS = {
    "unit": (),
    "bus": ("dbus-daemon", "nft", "ip"),
    "kernel": ("nft", "ip", "unshare", "nsenter", "iptables-nft", "ufw"),
    "qemu": ("qemu-system-x86_64", "dbus-daemon", "nft", "ip", "dnsmasq"),
    "host": ("mmdebstrap", "mke2fs", "qemu-system-x86_64", "dpkg-buildpackage"),
}

#: With CI=true no test may be skipped for want of one of these.
NO_EXCUSE = re.compile(r"(needs|not) root|\b(qemu|dbus|polkit|nft|ufw|mmdebstrap)", re.IGNORECASE)

IN_CI = os.environ.get("CI") == "true"


# Tiers


def tier_of(item: pytest.Item) -> str:
    """The one tier of a test.

    :raise pytest.UsageError: it has none, or several.
    """
    tiers = [name for name in TIERS if item.get_closest_marker(name)]
    if len(tiers) != 1:
        sentence = f"{item.nodeid}: a test has exactly one of the marks {', '.join(TIERS)}"
        raise pytest.UsageError(f"{sentence}; this has: {', '.join(tiers) or 'none'}")
    return tiers[0]


def missing_for(tier: str) -> str:
    """Why *tier* cannot run here; empty where it can."""
    if tier != "unit" and os.geteuid():
        return "needs root: sudo ./dev test"
    tools = [name for name in TOOLS[tier] if not shutil.which(name)]
    return f"needs {', '.join(tools)}: ./dev test installs them" if tools else ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap tiers first, so that the first failure comes soon.

    Of the last tier, first what boots a machine of its own: the test host is still at its tests
    then, and has a processor to spare.
    """
    files: dict[Path, str] = {}
    for item in items:
        tier = tier_of(item)
        if files.setdefault(item.path, tier) != tier:
            raise pytest.UsageError(f"{item.path}: its tests are of several tiers")
        item.user_properties.append(("tier", tier))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[int, bool]:
    return TIERS.index(tier_of(item)), item.get_closest_marker("apart") is None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Enter the lab, once it is known that a selected test needs it."""
    leaks.adopt_orphans()
    tiers = {tier_of(item) for item in session.items}
    if tiers - {"unit"} and os.geteuid() == 0 and not session.config.option.collectonly:
        if "qemu" in tiers:
            # There is no way to the archive from inside. Without it the guest's tests say why.
            with contextlib.suppress(GuestError):
                fetch_kernel()
        if "host" in tiers and not missing_for("host"):
            start_host(session)
        namespaces.enter()
        # A checkout whose broker is not whole can still test what needs none of it.
        if not missing_files():
            namespaces.install()


_runner: Runner | None = None
_forwarder: Forwarder | None = None
_last_in_host = ""


def start_host(session: pytest.Session) -> None:
    """Have the test host booted, and its tests run, while the other tiers have their turn."""
    global _runner, _forwarder, _last_in_host
    wanted = [item for item in session.items if tier_of(item) == "host"]
    _runner = Runner([item.nodeid for item in wanted if is_inside(item)])
    leaks.APART.add(_runner.pid)
    _forwarder = Forwarder(session.config, _runner)
    _last_in_host = wanted[-1].nodeid


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Take what was reported in the test host of what belongs there."""
    if not is_inside(item) or _forwarder is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _forwarder.run(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_runtest_logfinish(nodeid: str) -> None:
    if nodeid == _last_in_host:
        leave_host()


def leave_host() -> None:
    """End it: to emulate it costs a processor, though nothing happens in it."""
    if _runner is not None:
        _runner.close()


def pytest_sessionfinish() -> None:
    leave_host()


def pytest_runtest_setup(item: pytest.Item) -> None:
    capture.begin()
    if reason := missing_for(tier_of(item)):
        pytest.skip(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With CI=true make a skip without excuse an error; give failures the daemons' last words."""
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    if report.skipped and IN_CI and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if NO_EXCUSE.search(reason):
            report.outcome = "failed"
            report.longrepr = f"{reason}\nwith CI=true everything that this needs must be there"
    if report.failed and namespaces.LAB.exists():
        for log in sorted(log_of("any").parent.glob("*.log")):
            if text := log.read_text(errors="replace")[-4000:]:
                report.sections.append((f"end of {log.name}", text))
    if report.failed and (path := capture.write(report.nodeid)):
        report.sections.append(("packets of this test", str(path)))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each tier that ran; of the last one the seconds are the test host's own."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: dict[str, float] = defaultdict(float)
    for outcome in ("", "passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            tier = str(dict(getattr(report, "user_properties", ())).get("tier"))
            seconds[tier] += getattr(report, "duration", 0.0)
    for outcome in ("passed", "failed", "error", "skipped", "xfailed"):
        for report in terminalreporter.getreports(outcome):
            tier = str(dict(getattr(report, "user_properties", ())).get("tier"))
            counts[tier][outcome] += 1
            if outcome == "skipped" and isinstance(report.longrepr, tuple):
                reasons[tier][report.longrepr[2].removeprefix("Skipped: ")] += 1
    terminalreporter.section("tiers")
    for tier in TIERS:
        if counts[tier]:
            terminalreporter.write_line(f"{tier}: {tier_line(counts[tier], reasons[tier])}")
    words = (f"{tier} {seconds[tier]:.0f}" for tier in TIERS if counts[tier])
    terminalreporter.write_line(f"seconds: {', '.join(words)}")


def tier_line(counts: Counter[str], reasons: Counter[str]) -> str:
    """``210 passed, 2 skipped (needs root: 2)``."""
    words = [f"{number} {outcome}" for outcome, number in counts.items() if outcome != "skipped"]
    if counts["skipped"]:
        why: Iterable[str] = (f"{reason}: {number}" for reason, number in reasons.items())
        words.append(f"{counts['skipped']} skipped ({'; '.join(why)})")
    return ", ".join(words)


# The guard


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a task, process, fd, interface, nft element or file behind."""
    privileged = tier_of(request.node) != "unit" and os.geteuid() == 0
    tasks: list[str] = []
    cancel_all = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]

    def note_tasks(loop: asyncio.AbstractEventLoop) -> None:
        # asyncio.run() cancels what its main coroutine left running, and says nothing.
        tasks.extend(f"task: {task!r}" for task in asyncio.all_tasks(loop))
        cancel_all(loop)

    before = leaks.snapshot(privileged=privileged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncio.runners._cancel_all_tasks", note_tasks)
        yield
    lasting = frozenset(one.pid for one in LASTING if one.process is not None)
    lasting |= STANDING.processes()
    left = tasks + leaks.left_behind(before, leaks.snapshot(privileged=privileged), lasting)
    leaks.reap_orphans(lasting)
    if left:
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)


# Fixtures. Those of the session are up before the guard looks for the first time.

#: Daemons that outlive a test, though a test may have restarted them.
LASTING: list[Daemon] = []
STANDING = Standing()


@pytest.fixture(scope="session")
def bus() -> Iterator[SystemBus]:
    """The system bus, with the project's policy and activation files where they are installed."""
    with SystemBus() as system_bus:
        LASTING.append(system_bus.daemon)
        yield system_bus
        STANDING.end()


@pytest.fixture(scope="module")
def testhost() -> Machine:
    """The test host, for what turns it upside down; gone with the last test that needs it."""
    assert _runner is not None
    return _runner.machine()


@pytest.fixture(scope="session")
def host_parts() -> None:
    """What a host is made of is there, for a test that boots another one meanwhile."""
    assert _runner is not None
    _runner.wait_until_built()


@pytest.fixture(scope="session")
def _polkitd(bus: SystemBus) -> Iterator[Polkit]:
    with Polkit() as polkitd:
        LASTING.append(polkitd.daemon)
        yield polkitd


@pytest.fixture
def polkit(_polkitd: Polkit) -> Iterator[Polkit]:
    """polkitd without rules, so that each action's own defaults decide; a test may give it some."""
    if _polkitd.daemon.process is None:
        _polkitd.start()
    _polkitd.clear()
    yield _polkitd
    if _polkitd.daemon.process is None:
        _polkitd.start()


@pytest.fixture
def broker(request: pytest.FixtureRequest, bus: SystemBus) -> Iterator[Broker]:
    """The broker, running. ``@pytest.mark.parametrize("broker", Flavour, indirect=True)`` for both
    kinds of libraries. Ask for polkit, too, where a decision is wanted.
    """
    flavour: Flavour = getattr(request, "param", Flavour.PYPI)
    running = STANDING.lend(flavour)
    failures = request.session.testsfailed
    try:
        yield running
    finally:
        STANDING.take_back(running, as_it_was=request.session.testsfailed == failures)


@pytest.fixture
def no_broker(bus: SystemBus) -> None:
    """None runs, so that the bus has to start one."""
    STANDING.end()


@pytest.fixture(scope="module")
def lasting_broker(bus: SystemBus) -> Iterator[Broker]:
    """The broker of a whole file."""
    STANDING.end()
    with Broker() as running:
        yield running


@pytest.fixture
def outside() -> Iterator[Outside]:
    """The world beyond the uplink up0."""
    with Outside() as world:
        yield world


@pytest.fixture(scope="session")
def guest() -> Guest:
    """The tiny guest's kernel and initramfs, which every user can read."""
    return Guest.make()


def _user(name: str) -> Iterator[User]:
    user = User.named(name)
    yield user
    for path in user.home.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.fixture
def alice() -> Iterator[User]:
    """An ordinary user, in the group of the example rule. The home is emptied after the test."""
    yield from _user("alice")


@pytest.fixture
def bob() -> Iterator[User]:
    """Another ordinary user, in the group of the example rule."""
    yield from _user("bob")


@pytest.fixture
def carol() -> Iterator[User]:
    """An ordinary user in no group of ours."""
    yield from _user("carol")

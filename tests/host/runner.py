# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that has the test host of a pytest run, and runs the tests inside it meanwhile.

A pytest starts it before its first test (:class:`Runner`) and goes on with the other tiers: to
emulate a machine takes one processor, and the other would wait. The host is built where it is not
there yet, which needs the network that the laboratory has not, and booted; the packages are
installed and the tests inside run while nobody looks; what they report waits in a file.

``SESSIONVIRT_TESTHOST`` names a running host to use instead, which is left as it is.

As a program: names of tests on standard input, then its end, which ends the host. On standard
output a line each: ``REPORT`` and a report as JSON, ``SAID`` and what else was said, ``BUILT`` when
what a host is made of is there, and ``END`` when the tests are done and the host stays for who asks
for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING

from host import install, kernel
from host import machine as machines
from host.build import BuildError, built
from host.channel import Kind
from host.connection import HostError
from host.emulator import emulator
from lab.debs import DebError
from lab.stage import ROOT
from sessionvirt.host.kvm import probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.connection import Connection
    from host.machine import Machine

__all__ = ["REPORT", "Runner", "say"]

VARIABLE = "SESSIONVIRT_TESTHOST"
REPORT, SAID, BUILT, END = "REPORT ", "SAID ", "BUILT", "END"

#: Where evidence of failures is, in the host and here.
EVIDENCE = "/var/lib/testhost/evidence"
EVIDENCE_HERE = ROOT / "dist/testhost"

#: The longest of what says nothing: a boot, apt, a test with a guest of two emulations.
SILENCE_SECONDS = 900.0


def say(sentence: str) -> None:
    """Progress, past pytest's capture: minutes of nothing look like a hang."""
    with contextlib.suppress(OSError), open("/dev/stderr", "w", encoding="utf-8") as stream:
        stream.write(f"\n{sentence}" if os.environ.get("CI") == "true" else f"\r\x1b[K{sentence}")


class Runner:
    """The process, from the side of the pytest that has started it. :meth:`close` ends the host."""

    def __init__(self, wanted: list[str]) -> None:
        """Start it.

        :param wanted: the tests that run inside; may be none.
        """
        self._name = os.environ.get(VARIABLE) or f"pytest-{os.getpid()}"
        # A file, and no pipe that would be full before somebody reads.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - until close()
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "host.runner", self._name],
            stdin=subprocess.PIPE,
            stdout=self._output,
            env=os.environ | {"PYTHONPATH": f"{ROOT}/tests:{ROOT}/src"},
        )
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{name}\n" for name in [*wanted, ""]).encode())
        self._process.stdin.flush()
        self._position = 0
        self._ended = False
        self.said: list[str] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    def reports(self) -> Iterator[str]:
        """Reports of tests, as they come; other lines go to :attr:`said`.

        :raise HostError: it says nothing for too long, or has ended too early.
        """
        for line in self._lines():
            if line.startswith(REPORT):
                yield line.removeprefix(REPORT)
            elif line == END:
                self._ended = True
                return
            elif line != BUILT:
                self.said.append(line.removeprefix(SAID))
                say(self.said[-1])

    def wait_until_built(self) -> None:
        """Until what a host is made of is there: the laboratory has no network to build it by.

        Where it is said to be late, or the process has ended, whoever needs it finds that out.
        """
        end = time.monotonic() + SILENCE_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            # It is said before any report.
            if f"\n{BUILT}\n" in "\n" + os.pread(self._output.fileno(), 1 << 20, 0).decode(
                errors="replace"
            ):
                return
            time.sleep(0.1)

    def _lines(self) -> Iterator[str]:
        left = b""
        heard = time.monotonic()
        while True:
            data = os.pread(self._output.fileno(), 1 << 20, self._position)
            self._position += len(data)
            *lines, left = (left + data).split(b"\n")
            if lines:
                heard = time.monotonic()
            for line in lines:
                yield line.decode(errors="replace")
            if not data:
                if self._process.poll() is not None:
                    raise HostError(f"it ended with status {self._process.returncode}")
                if time.monotonic() - heard > SILENCE_SECONDS:
                    raise HostError(f"nothing was said for {SILENCE_SECONDS:.0f} s")
                time.sleep(0.1)  # a file tells nobody that it grows

    def machine(self) -> Machine:
        """The host, once the tests inside are done.

        :raise HostError: there is none.
        """
        if not self._ended:
            for report in self.reports():
                self.said.append(f"a report that nobody waits for: {report[:200]}")
        one = machines.running(self._name)
        if one is None:
            raise HostError(f"no test host {self._name!r} is running")
        return one

    def close(self) -> None:
        """End it, and the host that it has booted."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            # Soon: it looks at its standard input, whatever the host does.
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()


# The process itself


def tell(text: str) -> None:
    """A line that is no report."""
    print(f"{SAID}{text}".replace("\n", f"\n{SAID}"), flush=True)


@contextlib.contextmanager
def host(name: str) -> Iterator[Machine]:
    """The host that was named, or one of our own, with this checkout in it."""
    if os.environ.get(VARIABLE):
        one = machines.running(name)
        if one is None:
            raise HostError(f"no test host {name!r} is running; ./dev host --name {name} start")
        print(BUILT, flush=True)
        with one.connect() as way:
            install.put_tests(way)
        yield one
        return
    parts = (kernel.chosen(built(tell), "debian", tell), emulator(tell))
    print(BUILT, flush=True)
    with machines.boot(parts, name, tell, kvm=probe().usable) as one:
        with one.connect() as way:
            install.furnish(way, tell)
        yield one


def run_tests(way: Connection, wanted: list[str]) -> None:
    """Run the pytest inside, and pass on what it says."""
    way.run(["rm", "-rf", EVIDENCE])
    # The names go by a file: there may be more than an argv holds.
    names = "\n".join(wanted).encode()
    way.run(["sh", "-c", f"cat > {install.TESTS}/wanted"], stdin=names)
    ini = f"{install.TESTS}/tests/host/inside/inside.ini"
    argv = ["python3", "-B", "-m", "pytest", "-c", ini, f"--rootdir={install.TESTS}", "@wanted"]
    job = way.start(argv, cwd=install.TESTS, env={"CI": os.environ.get("CI", "")})
    left = b""
    began = time.monotonic()
    for kind, data in job.output(silence=SILENCE_SECONDS):
        if kind is Kind.EXIT:
            break
        *lines, left = (left + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            print(text if text.startswith(REPORT) else SAID + text, flush=True)
    tell(f"the pytest in the host ended after {time.monotonic() - began:.0f} s")
    if way.run(["test", "-d", EVIDENCE], check=False).status == 0:
        EVIDENCE_HERE.mkdir(parents=True, exist_ok=True)
        way.get(EVIDENCE, EVIDENCE_HERE)


def main(name: str) -> int:
    wanted = []
    while line := sys.stdin.readline().strip():
        wanted.append(line)
    end_with_standard_input()
    try:
        with host(name) as one:
            if wanted:
                with one.connect() as way:
                    run_tests(way, wanted)
            print(END, flush=True)
            select.select([], [], [])
    except (BuildError, DebError, HostError) as error:
        tell(str(error))
        return 1
    return 0


def end_with_standard_input() -> None:
    """End, with the host, when our pytest has gone or has no more tests for it."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    # In the main thread, wherever it waits.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

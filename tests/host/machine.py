# SPDX-License-Identifier: LGPL-2.1-or-later
"""The QEMU of one test host: its directory, its boot, its end.

A machine is a directory below :func:`machines` (:class:`host.board.Files`) and a QEMU process,
which the kernel ends when the process that started it dies, unless it was told to stay. What a boot
has said is in the directory's ``console.log``; a boot that takes too long ends with its last lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host import board
from host.connection import Connection, HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from host.build import Built
    from host.emulator import Emulator

    #: What is booted, and by what.
    Parts = tuple[Built, Emulator]

__all__ = ["BOOT_SECONDS", "Machine", "boot", "machines", "running"]

#: Twenty seconds on an idle machine with two cores.
BOOT_SECONDS = 300.0
REPORT_SECONDS = 5.0
TAIL = 25


def machines() -> Path:
    """Where this user's machines have their directories."""
    return Path(f"/var/tmp/sessionvirt-testhost-{os.geteuid()}")


class Machine:
    """A QEMU that runs, ours or somebody else's."""

    def __init__(self, files: board.Files) -> None:
        self.files = files

    def connect(self, timeout: float = BOOT_SECONDS) -> Connection:
        """A channel into it.

        :raise HostError: it does not answer; with the console's last lines.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                return Connection(self.files, max(1.0, deadline - time.monotonic()))
            except (HostError, OSError) as error:
                # QEMU makes its sockets a moment after its start; nothing says when.
                early = isinstance(error, FileNotFoundError | ConnectionRefusedError)
                if not early or not self.alive() or time.monotonic() > deadline:
                    raise HostError(f"{error}\n{self.last_words()}") from error
                time.sleep(0.05)

    def wait_until_up(self, say: Callable[[str], None], timeout: float = BOOT_SECONDS) -> float:
        """Until systemd has started everything.

        :return: the seconds that it took from here.
        :raise HostError: it has not, or something failed; with the console's last lines.
        """
        began = time.monotonic()
        ended = threading.Event()
        reporter = threading.Thread(target=self._report, args=(ended, say), daemon=True)
        reporter.start()
        try:
            with self.connect(timeout) as host:
                left = timeout - (time.monotonic() - began)
                wait = ["systemctl", "is-system-running", "--wait"]
                state = host.run(wait, timeout=left, check=False).text
                if state != "running":
                    failed = host.run(["systemctl", "list-units", "--failed", "--plain"])
                    raise HostError(f"the host is {state}\n{failed.text}\n{self.last_words()}")
        finally:
            ended.set()
            reporter.join()
        return time.monotonic() - began

    def _report(self, ended: threading.Event, say: Callable[[str], None]) -> None:
        """Say every few seconds how far the boot has come."""
        while not ended.wait(REPORT_SECONDS):
            lines = self.console()
            say(f"  boots: {lines[-1][:90] if lines else 'nothing on the console yet'}")

    def console(self) -> list[str]:
        """The lines of the console that are not empty."""
        with contextlib.suppress(OSError):
            text = self.files.console.read_text(errors="replace").replace("\r", "\n")
            return [line.strip() for line in text.split("\n") if line.strip()]
        return []

    def last_words(self) -> str:
        """The end of the console and of what QEMU said, for a person."""
        parts = ["the console's last lines:", *self.console()[-TAIL:]]
        with contextlib.suppress(OSError):
            if errors := self.files.errors.read_text(errors="replace").splitlines():
                parts += ["QEMU says:", *errors[-TAIL:]]
        if not self.alive():
            parts.append("QEMU has ended")
        return "\n  ".join(parts)

    def alive(self) -> bool:
        """Whether QEMU runs: it holds its pid file locked for as long."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self.files.pid.read_text())
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    def monitor(self, command: str, **arguments: object) -> object:
        """Ask QEMU something by QMP.

        :raise HostError: QEMU refuses.
        """
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(30)
            stream.connect(os.fspath(self.files.monitor))
            lines = stream.makefile("rw", encoding="utf-8")
            lines.readline()
            answer: dict[str, Any] = {}
            asked = {"execute": command, "arguments": arguments}
            for one in ({"execute": "qmp_capabilities"}, asked):
                lines.write(json.dumps(one) + "\n")
                lines.flush()
                answer = json.loads(lines.readline())
                while "event" in answer:
                    answer = json.loads(lines.readline())
                if "error" in answer:
                    raise HostError(f"QEMU: {command}: {answer['error']['desc']}")
        return answer["return"]

    def end(self) -> None:
        """End QEMU, as if the power failed, and forget its directory."""
        if self.alive():
            pid = int(self.files.pid.read_text())
            descriptor = os.pidfd_open(pid)
            try:
                os.kill(pid, 9)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            finally:
                os.close(descriptor)
        shutil.rmtree(self.files.directory, ignore_errors=True)


def running(name: str) -> Machine | None:
    """The machine of that name, where one runs."""
    machine = Machine(board.Files(machines() / name))
    return machine if machine.alive() else None


@contextlib.contextmanager
def boot(
    parts: Parts, name: str, say: Callable[[str], None], *, kvm: bool = False
) -> Iterator[Machine]:
    """A machine, booted; it is gone at the end, whatever happens.

    :raise HostError: it does not come up, or one of that name runs.
    """
    machine = start(parts, name, kvm=kvm, stays=False)
    try:
        seconds = machine.wait_until_up(say)
        say(f"test host {name!r} is up after {seconds:.0f} s")
        yield machine
    finally:
        machine.end()


def start(parts: Parts, name: str, *, kvm: bool, stays: bool) -> Machine:
    """Start QEMU and do not wait for what it boots.

    :param stays: it outlives this process; else the kernel ends it with the thread that called.
    :raise HostError: one of that name runs, or QEMU does not start.
    """
    if running(name):
        raise HostError(f"a test host {name!r} is running; ./dev host stop ends it")
    files = board.Files(machines() / name)
    shutil.rmtree(files.directory, ignore_errors=True)
    files.directory.mkdir(parents=True, mode=0o700)
    built, emulator = parts
    environment = os.environ | dict(emulator.environment)
    root = ["-b", str(built.image), "-F", "raw", str(files.disk("root"))]
    for words in (root, *([str(files.disk(disk)), size] for disk, size in board.DISKS)):
        create = [*emulator.image_tool, "create", "-q", "-f", "qcow2", *words]
        subprocess.run(create, env=environment, check=True)
    argv = board.argv(built, emulator, files, kvm=kvm)
    if not stays:
        argv = ["setpriv", "--pdeathsig", "KILL", *argv]
    with files.errors.open("wb") as errors:
        qemu = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
    machine = Machine(files)
    deadline = time.monotonic() + 10
    while not files.monitor.exists() or not machine.alive():
        if qemu.poll() is not None or time.monotonic() > deadline:
            qemu.kill()
            raise HostError(f"QEMU does not start\n{machine.last_words()}")
        time.sleep(0.02)
    return machine

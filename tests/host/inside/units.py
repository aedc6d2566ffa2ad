# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's unit as systemd has it: its state, its process, a drop-in for a while.

systemctl, as root, speaks with systemd by a socket of its own, so that all of this works while the
bus does not. :class:`Watch` is told by the bus.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from lab.rawbus import Client

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

__all__ = [
    "BROKER",
    "DNSMASQ",
    "Watch",
    "drop_in",
    "journal_since",
    "killed",
    "main_pid",
    "now",
    "pidfd_of",
    "process_status",
    "show",
    "stop",
    "systemctl",
    "wait_for_end",
]

BROKER = "sessionvirt-broker.service"
DNSMASQ = "sessionvirt-dnsmasq@svn_default.service"
#: An emulated machine, beside others.
SECONDS = 60.0

SYSTEMD = "org.freedesktop.systemd1"


def systemctl(*words: str) -> str:
    """systemctl(1); its standard output."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr}"
    return done.stdout


def show(unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit; without *names* all of them."""
    wanted = [f"--property={','.join(names)}"] if names else []
    lines = systemctl("show", *wanted, unit).splitlines()
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def main_pid(unit: str = BROKER) -> int:
    """The process that a unit is; 0 where none runs."""
    return int(show(unit, "MainPID")["MainPID"])


def process_status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def wait_for_end(pidfd: int, seconds: float = SECONDS) -> None:
    """Return once the process has ended."""
    if not select.select([pidfd], [], [], seconds)[0]:
        pytest.fail(f"the process did not end within {seconds:g} s", pytrace=False)


@contextlib.contextmanager
def pidfd_of(pid: int) -> Iterator[int]:
    """A descriptor that says when a process has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def stop(unit: str = BROKER) -> None:
    """``systemctl stop``: when it returns, the unit is inactive."""
    systemctl("stop", unit)


def killed(unit: str = BROKER) -> int:
    """Kill a unit's process, as the kernel would where memory is short; its number."""
    pid = main_pid(unit)
    with pidfd_of(pid) as descriptor:
        os.kill(pid, signal.SIGKILL)
        wait_for_end(descriptor)
    return pid


def now() -> str:
    """The journal's end, for :func:`journal_since`."""
    show_cursor = ["journalctl", "--lines=0", "--show-cursor", "--quiet"]
    done = subprocess.run(show_cursor, capture_output=True, text=True, check=True)
    return done.stdout.partition("-- cursor: ")[2].strip()


def journal_since(cursor: str, *matches: str) -> list[str]:
    """The journal's lines after :func:`now`, messages only.

    :param matches: as journalctl takes them.
    """
    subprocess.run(["journalctl", "--sync"], check=True)
    argv = ["journalctl", "--quiet", "--output=cat", f"--after-cursor={cursor}", *matches]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


@contextlib.contextmanager
def drop_in(*service: str, unit: Sequence[str] = (), name: str = BROKER) -> Iterator[None]:
    """Lines as an administrator would add them, for as long as this lasts.

    :param service: in ``[Service]``.
    :param unit: in ``[Unit]``.
    """
    path = Path(f"/run/systemd/system/{name}.d/90-test.conf")
    stop(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["[Unit]", *unit, "[Service]", *service, ""]))
    systemctl("daemon-reload")
    try:
        yield
    finally:
        stop(name)
        path.unlink()
        path.parent.rmdir()
        systemctl("daemon-reload")


class Watch:
    """Waits for a unit by what systemd announces (PropertiesChanged). A context manager."""

    def __init__(self, unit: str = BROKER) -> None:
        self._client = Client()
        (path,) = self._manager("LoadUnit", "s", unit)
        rule = f"type='signal',sender='{SYSTEMD}',path='{path}',member='PropertiesChanged'"
        self._client.bus_call("AddMatch", "s", rule)
        self._manager("Subscribe", "")
        self._unit = unit

    def _manager(self, member: str, signature: str, *body: str) -> list[Any]:
        return self._client.call(
            member,
            *body,
            timeout=SECONDS,
            signature=signature,
            destination=SYSTEMD,
            path="/org/freedesktop/systemd1",
            interface=f"{SYSTEMD}.Manager",
        )

    def until(self, state: str, *, former: int = -1, seconds: float = SECONDS) -> int:
        """Wait until ``ActiveState`` is *state*.

        :param former: a main process that must have been replaced.
        :return: the main process now.
        """
        deadline = time.monotonic() + seconds
        while True:
            found = show(self._unit, "ActiveState", "MainPID")
            if found["ActiveState"] == state and int(found["MainPID"]) != former:
                return int(found["MainPID"])
            try:
                self._client.receive(max(0.001, deadline - time.monotonic())).close()
            except TimeoutError:
                pytest.fail(f"{self._unit} is {found} and not {state}", pytrace=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A polkit that misbehaves, and the names of what is asked again and again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.daemon import log_of
from lab.fakepolkit import FakePolkit
from lab.rawbus import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.bus import SystemBus
    from lab.polkit import Polkit

BUS_POLICY = Path("/usr/share/dbus-1/system.d/org.sessionvirt.Broker1.conf")


@pytest.fixture
def authority(polkit: Polkit) -> Iterator[FakePolkit]:
    """polkit's name, owned by the test; the real polkitd is away meanwhile."""
    polkit.stop()
    with FakePolkit() as fake:
        yield fake


@pytest.fixture
def root(broker: Broker) -> Iterator[Client]:
    """A connection of uid 0, which sees everybody's leases."""
    with Client() as client:
        yield client


@pytest.fixture
def open_bus(broker: Broker, bus: SystemBus) -> Iterator[None]:
    """A bus that lets everything through to the broker: fds, signals, calls without an interface.

    As dbus-broker would, which knows no max_fds; and as an administrator's mistake might.
    """
    text = BUS_POLICY.read_text()
    rule = '<allow send_destination="org.sessionvirt.Broker1"/>'
    head, _, rest = text.partition('<policy context="default">')
    policy, _, _ = rest.partition("</policy>")
    BUS_POLICY.write_text(f'{head}<policy context="default">{rule}</policy></busconfig>')
    assert policy  # there was one to replace
    bus.reload()
    yield
    BUS_POLICY.write_text(text)
    bus.reload()


class Log:
    """What the broker has written since the test began."""

    def __init__(self) -> None:
        self._path = log_of("sessionvirt-broker")
        self._path.touch()
        self._start = self._path.stat().st_size

    def text(self) -> str:
        """All of it."""
        return self._path.read_bytes()[self._start :].decode()

    def lines(self, event: str = "") -> list[str]:
        """The lines of one kind of event."""
        return [one for one in self.text().splitlines() if f"event={event}" in one]


@pytest.fixture
def log(broker: Broker) -> Log:
    """The broker's journal lines of this test."""
    return Log()

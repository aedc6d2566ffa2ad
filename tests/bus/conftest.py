# SPDX-License-Identifier: LGPL-2.1-or-later
"""A polkit that misbehaves, and the names of what is asked again and again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.brokerlog import Log
from lab.fakepolkit import FakePolkit
from lab.rawbus import Client, assert_serves

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
def unlimited(broker: Broker) -> None:
    """As many calls a second as somebody likes; what is asked here has the broker notice."""
    broker.configure("[limits]\ncalls_per_second = 65536\n")
    assert_serves(0)


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


@pytest.fixture
def log(broker: Broker) -> Log:
    """The broker's journal lines of this test."""
    return Log()

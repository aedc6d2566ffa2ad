# SPDX-License-Identifier: LGPL-2.1-or-later
"""Networks that are up without guests: whenever a broker has started, as broker.toml says."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.broker import COMMAND, RUNTIME
from lab.bus import ENVIRONMENT
from lab.client import network_tap
from lab.daemon import log_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client

pytestmark = pytest.mark.kernel

LAB = """
[network.lab]
ipv4 = "10.67.0.1/24"
autostart = true
[network.other]
ipv4 = "10.68.0.1/24"
"""


@contextmanager
def configured(broker: Broker, text: str = LAB) -> Iterator[None]:
    """Start with *text*, and end with a broker that keeps nothing."""
    broker.configure(text)
    broker.stop()
    broker.start()
    try:
        yield
    finally:
        broker.configure("")
        if broker.running:
            broker.stop()
        broker.start()
        assert host.ours() == []
        assert list((RUNTIME / "records").glob("*.json")) == []


def restart(broker: Broker) -> None:
    broker.stop()
    broker.start()


def gateway(name: str) -> str:
    return host.ip("-brief", "address", "show", "dev", name)


def test_it_is_up_without_guests_and_stays(broker: Broker, alices: Client) -> None:
    with configured(broker):
        assert host.ours() == ["svn_lab"]
        assert alices.networks()["lab"]["up"]
        index = host.link("svn_lab")["ifindex"]
        with alices.acquire(network_tap("lab")) as lease:
            assert lease.tap.ask_arp("10.67.0.1")
            broker.restart()  # a crash
            assert lease.tap.ask_arp("10.67.0.1")
        assert host.ours() == ["svn_lab"]
        restart(broker)
        assert host.link("svn_lab")["ifindex"] == index
        with alices.acquire(network_tap("other")):
            pass
        assert host.ours() == ["svn_lab"]
        assert len(host.elements("inet", "networks4")) == 1


def test_it_follows_the_file_at_the_next_start(broker: Broker, alices: Client) -> None:
    with configured(broker):
        broker.configure(LAB.replace("10.67.0.1", "10.69.0.1"))
        restart(broker)
        assert "10.69.0.1/24" in gateway("svn_lab")
        broker.configure(LAB.replace("10.67.0.1", "10.70.0.1"))
        with alices.acquire(network_tap("lab")):
            restart(broker)
            assert "10.69.0.1/24" in gateway("svn_lab")  # a guest is on it
        assert "10.69.0.1/24" in gateway("svn_lab")
        restart(broker)
        assert "10.70.0.1/24" in gateway("svn_lab")
        broker.configure("[network.lab\n")
        restart(broker)
        assert "10.70.0.1/24" in gateway("svn_lab")  # nobody knows what is wanted
        broker.configure(LAB.replace("autostart = true", ""))
        restart(broker)
        assert host.ours() == []


def test_one_that_cannot_be_had_does_not_keep_the_broker_from_its_work(
    broker: Broker, alices: Client
) -> None:
    host.ip("link", "add", "ovl0", "type", "bridge")
    try:
        host.ip("link", "set", "ovl0", "up")
        host.ip("address", "add", "10.67.0.9/28", "dev", "ovl0")
        with configured(broker, LAB.replace('68.0.1/24"', '68.0.1/24"\nautostart = true')):
            assert host.ours() == ["svn_other"]
            assert (
                "10.67.0.0/24 overlaps a route of the host by ovl0"
                in log_of("sessionvirt-broker").read_text()
            )
            host.ip("link", "del", "ovl0")
            restart(broker)
            assert host.ours() == ["svn_lab", "svn_other"]
    finally:
        if host.link("ovl0"):
            host.ip("link", "del", "ovl0")


def test_a_bridge_that_was_taken_away_is_made_again(broker: Broker, alices: Client) -> None:
    with configured(broker):
        broker.stop()
        host.ip("link", "del", "svn_lab")
        broker.start()
        with alices.acquire(network_tap("lab")) as lease:
            assert lease.tap.ask_arp("10.67.0.1")
        assert host.ours() == ["svn_lab"]


def test_it_goes_with_the_package(broker: Broker) -> None:
    with configured(broker):
        broker.stop()
        done = subprocess.run(
            [*COMMAND, "--return-leases"],
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert host.ours() == []
        assert [one for one in host.tables() if "sessionvirt" in one] == []

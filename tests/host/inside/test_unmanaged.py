# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who else configures networks leaves ours alone: systemd-networkd and NetworkManager (attack 45).

Both run as on a host where they want everything; an interface that is not ours shows that they do.
The host's own cards are left out, or the tests of PCI devices would find them changed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from host.inside import machines, units
from lab import host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.host

SECONDS = 90.0
BRIDGE = "svn_default"
PROBE = "probe0"
ADDRESS = "198.51.100.7"

EVERYTHING = f"""\
[Match]
Name=!lo en* eth*

[Network]
DHCP=yes
Address={ADDRESS}/32
LinkLocalAddressing=yes
"""
NETWORKD = Path("/run/systemd/network/10-everything.network")

MANAGE_ALL = """\
[main]
no-auto-default=*

[keyfile]
unmanaged-devices=interface-name:en*;interface-name:eth*
"""
NETWORK_MANAGER = Path("/run/NetworkManager/conf.d/90-test.conf")


@pytest.mark.usefixtures("permission")
def test_d45_networkd_with_a_file_for_everything_leaves_ours_alone() -> None:
    with networkd(), machines.Holder("user1") as user, user.take() as lease, probe():
        names = (BRIDGE, lease.tap.ifname)
        before = seen(*names)
        settled(PROBE, "configured", "configuring")
        for name in names:
            assert settled(name, *SETTLED) == "unmanaged"
        assert ADDRESS in host.ip("address", "show", "dev", PROBE)
        # It finds them when it starts, too, and again at every change.
        units.systemctl("restart", "systemd-networkd.service")
        host.ip("link", "set", BRIDGE, "txqueuelen", "900")
        settled(PROBE, "configured", "configuring")
        for name in names:
            assert settled(name, *SETTLED) == "unmanaged"
        assert seen(*names) == before
        assert machines.works(lease)
        assert user.leases() != []


@pytest.mark.usefixtures("permission")
def test_d45_networkmanager_leaves_ours_alone() -> None:
    with network_manager(), machines.Holder("user1") as user, user.take() as lease, probe():
        names = (BRIDGE, lease.tap.ifname)
        before = seen(*names)
        # Not even "connected (externally)", as another's bridge would be.
        assert until(lambda: nm_state(PROBE) not in ("", "unmanaged"))
        for name in names:
            assert until(lambda: nm_state(name) != "")  # noqa: B023
            assert nm_state(name) == "unmanaged"
        assert seen(*names) == before
        assert machines.works(lease)
        assert user.leases() != []


def seen(*names: str) -> dict[str, str]:
    """Addresses and flags of interfaces, as ip(8) has them, without what runs or ages."""
    shown = {}
    for name in names:
        (link,) = json.loads(host.ip("-json", "address", "show", "dev", name))
        addresses = sorted(f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"])
        shown[name] = f"{link['flags']} {link['address']} {link.get('master')} {addresses}"
    return shown


@contextmanager
def probe() -> Iterator[None]:
    """An interface that is not ours."""
    host.ip("link", "add", PROBE, "type", "dummy")
    try:
        host.ip("link", "set", PROBE, "up")
        # NetworkManager takes note of what has an address, whoever gave it.
        host.ip("address", "add", "198.51.100.8/32", "dev", PROBE)
        yield
    finally:
        host.ip("link", "del", PROBE)


def until(holds: Callable[[], bool]) -> bool:
    """Ask until it holds; neither of the two says by a signal that it has seen an interface."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


# systemd-networkd

#: networkctl(1): what a link's setup may end in; before there is "pending" and "initialized".
SETTLED = ("configuring", "configured", "degraded", "failed", "unmanaged")


@contextmanager
def networkd() -> Iterator[None]:
    NETWORKD.parent.mkdir(exist_ok=True)
    NETWORKD.write_text(EVERYTHING)
    try:
        units.systemctl("start", "systemd-networkd.service")
        yield
    finally:
        stop = ("systemd-networkd.socket", "systemd-networkd.service", "network.target")
        units.systemctl("stop", *stop)
        NETWORKD.unlink()


def settled(name: str, *states: str) -> str:
    """Wait for one of the setup states; which it is."""
    found = ""

    def there() -> bool:
        nonlocal found
        argv = ["networkctl", "--json=short", "status", name]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        found = json.loads(done.stdout or "{}").get("AdministrativeState", "")
        return found in states

    assert until(there), f"{name} is {found}"
    return found


# NetworkManager


@contextmanager
def network_manager() -> Iterator[None]:
    NETWORK_MANAGER.parent.mkdir(parents=True, exist_ok=True)
    NETWORK_MANAGER.write_text(MANAGE_ALL)
    try:
        units.systemctl("start", "NetworkManager.service")
        yield
    finally:
        stop = ("NetworkManager.service", "NetworkManager-dispatcher.service", "network.target")
        units.systemctl("stop", *stop)
        shutil.rmtree("/run/NetworkManager")


def nm_state(name: str) -> str:
    """What NetworkManager says of an interface; empty where it has not seen it."""
    argv = ["nmcli", "--terse", "--fields", "DEVICE,STATE", "device"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    rows = dict(line.split(":", 1) for line in done.stdout.splitlines())
    return rows.get(name, "")

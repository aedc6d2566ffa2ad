# SPDX-License-Identifier: LGPL-2.1-or-later
"""Beside the firewalls that people have: it works, or doctor names the rule and the one command.

ufw is the real one. Docker's rules are as Docker 28 writes them, by iptables and by its nftables
backend. firewalld needs more of a host than there is here: ``host/inside/test_firewalls.py``.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.doctoring import (
    complaints,
    gets_an_address,
    gets_out,
    mend,
    of_page,
    rules_of_others,
)
from lab.flushing import degraded, once
from lab.guesttraffic import dhcp4
from lab.outside import Outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client
    from lab.tap import Tap
    from lab.users import User

pytestmark = pytest.mark.kernel

DOCKER_BY_IPTABLES = """\
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
COMMIT
"""

DOCKER_BY_NFTABLES = """\
table ip docker-bridges {
  map filter-forward-in-jumps {
    type ifname : verdict
    elements = { "docker0" : jump filter-forward-in__docker0 }
  }
  map filter-forward-out-jumps {
    type ifname : verdict
    elements = { "docker0" : jump filter-forward-out__docker0 }
  }
  chain filter-forward-in__docker0 {
    ct state established,related accept
    iifname "docker0" accept
    drop comment "UNPUBLISHED PORT DROP"
  }
  chain filter-forward-out__docker0 {
    ct state established,related accept
    accept
  }
  chain filter-FORWARD {
    type filter hook forward priority filter; policy accept;
    oifname vmap @filter-forward-in-jumps
    iifname vmap @filter-forward-out-jumps
  }
  chain nat-POSTROUTING {
    type nat hook postrouting priority srcnat; policy accept;
    oifname != "docker0" ip saddr 172.17.0.0/16 masquerade
  }
}
"""

#: /etc/nftables.conf as Debian ships it.
NFTABLES_CONF = """\
flush ruleset
table inet filter {
  chain input { type filter hook input priority filter; }
  chain forward { type filter hook forward priority filter; }
  chain output { type filter hook output priority filter; }
}
"""


@pytest.fixture(scope="module")
def tap(lasting_broker: Broker, alices: Client) -> Iterator[Tap]:
    """The card of alice's machine web, which has its address and gets out."""
    with Outside(), alices.acquire(vm="web") as lease:
        lease.tap.attentive = True
        assert dhcp4(lease.tap, frames.DISCOVER)[0] == lease.tap.ipv4
        assert gets_out(lease.tap)
        yield lease.tap
    lasting_broker.wait_until_idle()


# ufw


@pytest.fixture
def ufw(tmp_path: Path) -> Iterator[None]:
    """ufw, enabled. What it writes is the lab's: /etc is a copy, /proc/sys/net its namespace's."""
    assert Path("/etc").is_mount()
    kept = tmp_path / "ufw"
    shutil.copytree("/etc/ufw", kept, symlinks=True)
    settings = Path("/etc/ufw/sysctl.conf").read_text().splitlines()
    keys = [line.partition("=")[0] for line in settings if line.startswith("net/")]
    values = {path: path.read_text() for path in (Path("/proc/sys", key) for key in keys)}
    with rules_of_others():
        try:
            subprocess.run(["ufw", "--force", "enable"], check=True, stdout=subprocess.DEVNULL)
            yield
        finally:
            shutil.rmtree("/etc/ufw")
            shutil.copytree(kept, "/etc/ufw", symlinks=True)
            for path, value in values.items():
                path.write_text(value)
            Path("/run/ufw.lock").unlink(missing_ok=True)


@pytest.mark.usefixtures("ufw")
def test_ufw_is_named_and_mended(tap: Tap, alice: User) -> None:
    assert not gets_an_address(tap)
    assert not gets_out(tap)
    mend(
        complaints(alice, "web"),
        "ufw's, most likely drops",
        *of_page("ufw"),
    )
    assert gets_an_address(tap)
    assert gets_out(tap)
    assert complaints(alice, "web") == []


# Docker


@pytest.fixture
def docker() -> Iterator[None]:
    """Its bridge, which is what it is known by."""
    host.ip("link", "add", "docker0", "type", "bridge")
    try:
        with rules_of_others():
            yield
    finally:
        host.ip("link", "del", "docker0")


@pytest.mark.usefixtures("docker")
def test_dockers_policy_is_named_and_mended(tap: Tap, alice: User) -> None:
    subprocess.run(["iptables-nft-restore"], input=DOCKER_BY_IPTABLES, text=True, check=True)
    assert not gets_out(tap)
    mend(
        complaints(alice, "web"),
        "the policy of chain FORWARD of table ip filter (hook forward), Docker's, drops",
        " && ".join(of_page("iptables")),
    )
    assert gets_out(tap)
    assert complaints(alice, "web") == []


@pytest.mark.usefixtures("docker")
def test_dockers_nftables_are_about_its_own_bridges(tap: Tap, alice: User) -> None:
    subprocess.run(["nft", "-f", "-"], input=DOCKER_BY_NFTABLES, text=True, check=True)
    assert gets_out(tap)
    assert complaints(alice, "web") == []


# nftables.service


def test_f63_a_restart_of_nftables_service_takes_nothing_away_for_long(
    tap: Tap, alices: Client
) -> None:
    """Debian's unit flushes the ruleset as it stops, and as it starts, with its own in place."""
    with rules_of_others():
        for rules in ("flush ruleset", NFTABLES_CONF):
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
            once(lambda: {"bridge sessionvirt", "inet sessionvirt"} <= set(host.tables()), alices)
            assert gets_an_address(tap)
            assert gets_out(tap)
    assert degraded(alices) == ""

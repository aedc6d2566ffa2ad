# SPDX-License-Identifier: LGPL-2.1-or-later
"""Beside the firewalls that people have: it works, or doctor names the rule and the one command.

firewalld and ufw are Debian's; Docker's rules are as Docker 28 writes them, by iptables and by its
nftables backend. Each is taken away again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from host.inside import machines, units
from lab import host
from lab.outside import ADDRESS4, PORT, Outside
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.inside.machines import Held

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("permission")]

BRIDGE = "svn_default"
FIREWALLD = "firewalld.service"
SYN_ACK = 0x12
_ports = iter(range(41000, 60000))

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


@contextmanager
def guest() -> Iterator[Held]:
    try:
        with Outside(), machines.Holder("user1") as user, user.take(vm="web") as lease:
            assert machines.works(lease)
            assert gets_out(lease)
            yield lease
    finally:
        # What doctor has found out about QEMU; once is enough for a test.
        shutil.rmtree(User.named("user1").home / ".cache", ignore_errors=True)


def gets_out(lease: Held) -> bool:
    tap = lease.tap
    tap.send(tap.tcp4(tap.ask_arp(machines.GATEWAY), ADDRESS4, (next(_ports), PORT)))
    return not tap.silent(lambda p: p.source == ADDRESS4 and p.flags == SYN_ACK)


def gets_an_address(lease: Held) -> bool:
    machines.SECONDS, former = 1.5, machines.SECONDS
    try:
        return machines.dhcp4(lease.tap) == lease.tap.ipv4
    except TimeoutError:
        return False
    finally:
        machines.SECONDS = former


def complaints() -> list[dict[str, Any]]:
    """What doctor says of rules, as user1."""
    user = User.named("user1")
    done = user.run(["sessionvirt", "doctor", "--json", "web"])
    checks = json.loads(done.stdout)["checks"]
    return [one for one in checks if one["name"] == "firewall-rules" and one["level"] != "ok"]


def mend(words: str, *commands: str) -> None:
    """Run every command that doctor names, which are these, each once.

    :param words: what each complaint has in it.
    """
    found = complaints()
    assert all(words in one["found"] for one in found), found
    named = {one["advice"].partition("   (")[0] for one in found}
    assert named == set(commands)
    for command in commands:
        subprocess.run(["bash", "-ec", command], check=True, capture_output=True)


@contextmanager
def rules_of_others() -> Iterator[None]:
    """Whatever tables come are deleted."""
    before = set(host.tables())
    try:
        yield
    finally:
        for one in set(host.tables()) - before - {f"{of} sessionvirt" for of in ("bridge", "inet")}:
            host.nft("delete", "table", *one.split())


# firewalld


@contextmanager
def firewalld() -> Iterator[None]:
    units.systemctl("start", FIREWALLD)
    try:
        yield
    finally:
        units.systemctl("stop", FIREWALLD, "network-pre.target")
        shutil.rmtree("/run/firewalld", ignore_errors=True)


def firewall_cmd(*words: str) -> str:
    argv = ["firewall-cmd", *words]
    return subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def test_f63_firewalld_has_our_bridges_in_a_zone_of_ours() -> None:
    with guest() as lease, rules_of_others(), firewalld():
        assert firewall_cmd("--zone=sessionvirt", "--list-interfaces") == "svn_+"
        for words in ((), ("firewall-cmd", "--reload"), ("systemctl", "restart", FIREWALLD)):
            if words:
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            assert gets_an_address(lease), words
            assert gets_out(lease), words
        assert complaints() == []
        # Without the zone it is named, and mended.
        firewall_cmd("--zone=sessionvirt", "--remove-interface=svn_+")
        assert not gets_an_address(lease)
        assert not gets_out(lease)
        mend("firewalld's", f"firewall-cmd --zone=sessionvirt --change-interface={BRIDGE}")
        assert gets_an_address(lease)
        assert gets_out(lease)
        assert complaints() == []
        # A whole name goes before the beginning of one.
        firewall_cmd("--zone=sessionvirt", f"--remove-interface={BRIDGE}")
        firewall_cmd("--zone=sessionvirt", "--add-interface=svn_+")
        firewall_cmd("--zone=drop", f"--add-interface={BRIDGE}")
        assert not gets_out(lease)


# ufw


@contextmanager
def ufw(tmp_path: Path) -> Iterator[None]:
    kept = {tree: tmp_path / tree.replace("/", "_") for tree in ("/etc/ufw", "/etc/default")}
    for tree, copy in kept.items():
        shutil.copytree(tree, copy, symlinks=True)
    subprocess.run(["ufw", "--force", "enable"], check=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run(["ufw", "disable"], check=True, stdout=subprocess.DEVNULL)
        for tree, copy in kept.items():
            shutil.rmtree(tree)
            shutil.copytree(copy, tree, symlinks=True)
        Path("/run/ufw.lock").unlink(missing_ok=True)


def test_ufw_is_named_and_mended(tmp_path: Path) -> None:
    with guest() as lease, rules_of_others(), ufw(tmp_path):
        assert not gets_an_address(lease)
        assert not gets_out(lease)
        mend(
            "ufw's, most likely drops",
            f"ufw allow in on {BRIDGE}",
            f"ufw route allow in on {BRIDGE}",
        )
        assert gets_an_address(lease)
        assert gets_out(lease)
        assert complaints() == []


# Docker


@contextmanager
def docker() -> Iterator[None]:
    """Its bridge, which is what it is known by."""
    host.ip("link", "add", "docker0", "type", "bridge")
    try:
        yield
    finally:
        host.ip("link", "del", "docker0")


def test_dockers_policy_is_named_and_mended() -> None:
    with guest() as lease, docker(), rules_of_others():
        subprocess.run(["iptables-nft-restore"], input=DOCKER_BY_IPTABLES, text=True, check=True)
        assert not gets_out(lease)
        mend(
            "the policy of chain FORWARD of table ip filter (hook forward), Docker's, drops",
            f"iptables -I DOCKER-USER -i {BRIDGE} -j ACCEPT && iptables -I DOCKER-USER -o {BRIDGE}"
            " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        )
        assert gets_out(lease)
        assert complaints() == []


def test_dockers_nftables_are_about_its_own_bridges() -> None:
    with guest() as lease, docker(), rules_of_others():
        subprocess.run(["nft", "-f", "-"], input=DOCKER_BY_NFTABLES, text=True, check=True)
        assert gets_out(lease)
        assert complaints() == []


def test_f63_a_restart_of_nftables_service_takes_nothing_away_for_long() -> None:
    """Debian's unit flushes the ruleset when it starts and when it stops."""
    with machines.Holder("user1") as watcher, guest() as lease:
        for words in (("nft", "flush", "ruleset"), ("nft", "-f", "/etc/nftables.conf")):
            subprocess.run(words, check=True)
            end = time.monotonic() + 5
            while "bridge sessionvirt" not in host.tables() and time.monotonic() < end:
                watcher.leases()
            assert machines.works(lease)
            assert gets_out(lease)
        for one in set(host.tables()) - {"bridge sessionvirt", "inet sessionvirt"}:
            host.nft("delete", "table", *one.split())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The installed units as they are: what they may, what they may not, and that all works.

The broker's is confined as if it were lost already. So the tests ask twice: of the broker that
runs, everything in the contract; of a program that stands for a broker somebody has taken over, in
the same unit, everything that the unit forbids (``confined.py``).
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from host.inside import machines, units
from lab import frames, host, rawbus
from lab.links import link_goes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbus_fast import Variant

    from lab.tap import Tap

pytestmark = pytest.mark.host

#: linux/capability.h
BROKERS = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_KILL": 5,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_RESOURCE": 24,
}
DNSMASQS = {"CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}

PROBE = Path(__file__).with_name("confined.py")
OUTPUT = Path("/var/lib/testhost/confined.json")

CONFIGURATION = Path("/etc/sessionvirt/broker.toml")
LAN = "br-test"
NETWORKS = ["default", "private", LAN]
#: systemd's own word for it: below 2 is "OK".
EXPOSURE = 1.8


def mask(capabilities: dict[str, int]) -> int:
    return sum(1 << bit for bit in capabilities.values())


def assert_process(pid: int, user: str, capabilities: dict[str, int]) -> None:
    """Who a process is, what it may, and that the kernel holds it to the unit's filters."""
    status = units.process_status(pid)
    entry = pwd.getpwnam(user)
    assert entry.pw_uid != 0
    assert status["Uid"].split() == [str(entry.pw_uid)] * 4
    assert status["Gid"].split() == [str(entry.pw_gid)] * 4
    assert status["Groups"] in ("", str(entry.pw_gid))
    for field in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
        assert int(status[field], 16) == mask(capabilities), field
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["Seccomp_filters"]) > 1


def namespaces(pid: int) -> dict[str, str]:
    directory = Path(f"/proc/{pid}/ns")
    return {kind: os.readlink(directory / kind) for kind in ("mnt", "net", "user", "pid")}


@pytest.fixture
def lan() -> Iterator[None]:
    """A bridge of the LAN that broker.toml lists, and an uplink: the host itself has neither."""
    with contextlib.ExitStack() as stack:
        host.ip("link", "add", LAN, "type", "bridge")
        stack.callback(host.ip, "link", "del", LAN)
        host.ip("address", "add", "192.0.2.1/24", "dev", LAN)
        host.ip("link", "set", LAN, "up")
        host.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
        stack.callback(host.ip, "link", "del", "up0")
        host.ip("address", "add", "198.51.100.2/24", "dev", "up0")
        for name in ("up0", "up1"):
            host.ip("link", "set", name, "up")
        host.ip("route", "add", "default", "via", "198.51.100.1", "dev", "up0")
        CONFIGURATION.write_text(f"[bridge.{LAN}]\n")
        stack.callback(CONFIGURATION.unlink)
        yield


def plain(facts: dict[str, Variant]) -> dict[str, Any]:
    """An a{sv} without the D-Bus types."""
    return {key: value.value for key, value in facts.items()}


def answers_on_the_lan(tap: Tap) -> bool:
    """Whether the host answers ARP on the bridge, where a guest has an address of its own."""
    for _ in range(10):
        tap.send(frames.arp(1, tap.mac, "192.0.2.7", "192.0.2.1"))
        with contextlib.suppress(TimeoutError):
            return bool(tap.until(lambda p: p.source == "192.0.2.1", timeout=0.5))
    return False


def complaints(cursor: str) -> list[str]:
    """What the broker warns of, and what was refused to it or to dnsmasq."""
    said = units.journal_since(cursor, "--priority=warning", f"--unit={units.BROKER}")
    refusal = re.compile(r"SECCOMP|type=1326|avc: |apparmor=\"DENIED\"|denied|not permitted", re.I)
    return said + [line for line in units.journal_since(cursor) if refusal.search(line)]


def assert_every_operation_works() -> None:
    """Everything of the contract, and what has to come of it on the host."""
    with machines.Holder("user1") as client:
        facts = plain(client.ask_for("Diagnose", {})[0])
        assert facts["systemd"]
        assert facts["tun"]
        assert facts["missing_capabilities"] == []
        assert {f"CAP_{name.upper()}" for name in facts["capabilities"]} == set(BROKERS)
        assert facts["dnsmasq"]
        assert facts["configuration"] == "file"
        assert [plain(row)["name"] for row in client.ask_for("ListNetworks", {})[0]] == NETWORKS
        wanted = [rawbus.tap(), rawbus.tap(None, bridge=LAN)]
        plan = plain(client.ask_for("Plan", wanted, rawbus.options(vm="vm"))[0])
        assert plan["verdict"] == "yes", plan
        with client.take(*wanted) as lease:
            managed, bridged = lease.taps
            assert machines.dhcp4(managed) == managed.ipv4
            assert answers_on_the_lan(bridged)
            assert host.forwarding("svn_default") == host.forwarding("up0") == "1"
            assert_process(units.main_pid(units.DNSMASQ), "sessionvirt-dnsmasq", DNSMASQS)
            (more,) = lease.add(rawbus.tap(queues=2))
            assert more.ask_arp(machines.GATEWAY)
            lease.drop(bridged.id)
            assert host.link(bridged.ifname) == {}
            (listed,) = client.leases()
            assert [grant["id"].value for grant in listed["grants"]] == [managed.id, more.id]
            with link_goes("svn_default"):
                lease.release()
        assert host.forwarding("up0") == "0"
        assert client.leases() == []


@pytest.mark.usefixtures("permission", "lan")
def test_every_operation_works_in_the_installed_units() -> None:
    """Its own user, five capabilities and the filters; and the whole contract, without a word.

    dnsmasq is started by udev's rule for the bridge, is somebody else, answers DHCP, and ends with
    the bridge.
    """
    began = units.now()
    with units.Watch(units.DNSMASQ) as watch:
        assert_every_operation_works()
        watch.until("inactive")
    pid = units.main_pid()
    assert_process(pid, "sessionvirt-broker", BROKERS)
    own, inits = namespaces(pid), namespaces(1)
    assert own["mnt"] != inits["mnt"]
    assert [own[kind] for kind in ("net", "user", "pid")] == [
        inits[kind] for kind in ("net", "user", "pid")
    ]
    assert complaints(began) == []


@pytest.mark.usefixtures("permission", "lan")
def test_no_operation_needs_a_system_call_that_the_unit_refuses() -> None:
    """The same, where a refused call does not fail but kills: nothing lives on an error."""
    began = units.now()
    with units.drop_in("SystemCallErrorNumber=kill"):
        assert_every_operation_works()
        assert units.show(units.BROKER, "NRestarts")["NRestarts"] == "0"
    assert complaints(began) == []


#: How each attempt of ``confined.py`` has to end.
ALLOWED = {"open /dev/net/tun", "open /dev/vhost-net", "set forwarding", "netlink"}
ALLOWED |= {"write /run/sessionvirt-broker"}
READ_ONLY = {
    "write the list of modules",
    *("write /etc", "write /usr", "write /var/lib", "write /run", "write /boot"),
    *("write /proc/sys", "forward everything", "write /sys", "write the cgroup tree"),
}
#: By systemd's policy on the bus; by the kernel (PR_SET_MDWE); by the node that is there instead.
REFUSED = {"StartTransientUnit", "an executable page", "open /dev/kmsg"}
#: Without CAP_SYS_PTRACE: whose a process is can be read, and no more.
REFUSED |= {"another's memory", "another's environment"}
NO_FAMILY = {"IPv4", "IPv6", "packets", "vsock"}


def test_a_broker_that_was_taken_over_is_confined() -> None:
    """Each line of the unit bites, in the unit itself, with another program in it.

    The last of it is the reason for the user: systemd does what uid 0 asks for, and this is not.
    """
    program = f"/usr/bin/python3 -I {PROBE}"
    lines = ("Type=oneshot", "Restart=no", "ExecStart=", f"ExecStart={program}")
    OUTPUT.unlink(missing_ok=True)
    with units.drop_in(*lines, f"StandardOutput=file:{OUTPUT}"):
        units.systemctl("start", units.BROKER)
    said: dict[str, Any] = json.loads(OUTPUT.read_text())
    expected = {
        name: "done"
        if name in ALLOWED
        else "EROFS"
        if name in READ_ONLY
        else "EAFNOSUPPORT"
        if name in NO_FAMILY
        else "EACCES"
        if name in REFUSED
        else "EPERM"
        for name in said["attempts"]
    }
    assert said["attempts"] == expected
    seen = said["seen"]
    assert (seen["home"], seen["root"], seen["tmp"]) == ([], [], ["modules.alias"])
    assert 1 in seen["processes"]  # ProtectProc=default; see the unit
    assert not Path("/run/sessionvirt-test-taken-over").exists()


def test_what_the_running_broker_sees_of_the_host() -> None:
    """The mounts of the process itself: what ProtectSystem= and the others have made."""
    with machines.Holder("user1") as client:
        client.ask_for("ListNetworks", {})
        pid = units.main_pid()
    enter = ["nsenter", f"--target={pid}", "--mount"]
    assert list(Path("/home").iterdir())
    look = [*enter, "ls", "-A", "/home", "/root", "/tmp", "/var/tmp"]
    listing = subprocess.run(look, capture_output=True, text=True, check=True).stdout
    assert listing.split() == ["/home:", "/root:", "/tmp:", "modules.alias", "/var/tmp:"]
    for path in ("/etc", "/usr", "/var", "/run", "/boot", "/srv"):
        touch = [*enter, "touch", f"{path}/sessionvirt-probe"]
        refused = subprocess.run(touch, capture_output=True, text=True, check=False)
        assert "Read-only file system" in refused.stderr, path


def test_systemd_finds_little_exposed() -> None:
    """``systemd-analyze security``, of the installed unit."""
    argv = ["systemd-analyze", "security", "--no-pager", f"--threshold={EXPOSURE * 10:.0f}"]
    done = subprocess.run([*argv, units.BROKER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout

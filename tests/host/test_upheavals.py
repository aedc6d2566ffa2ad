# SPDX-License-Identifier: LGPL-2.1-or-later
"""What shakes the whole host, with two users' machines running: nothing of theirs is lost or left.

A new bus, a new version, sleep, another time, a new boot, the packages' removal. One of the
machines has a card of the host's. Driven from outside, because a pytest inside would not live
through it; in the host that the tests inside have had, after them, and in this order: the removal
is last.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from host import install
from lab import debs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.connection import Connection
    from host.machine import Machine

pytestmark = pytest.mark.host

NEWER = "99.0"
#: The card, while the machine has it, and while the host has.
GIVEN = {"driver": "vfio-pci", "override": "vfio-pci", "node": True}
FREE = {"driver": "e1000e", "override": "", "node": False}
RUNTIME = "/run/sessionvirt-broker"
CONFIGURATION = "/etc/sessionvirt/broker.toml"
NETWORKS = "sessionvirt-networks.service"
#: Is up before anybody asks.
EARLY = '[network.early]\nipv4 = "10.99.7.1/24"\nautostart = true'
UNTIL_SERVED = "until systemctl -q is-active sessionvirt-dnsmasq@svn_early; do sleep 0.2; done"
#: As an administrator would look for what is left.
LEFTOVERS = (
    "find / -xdev \\( -path /proc -o -path /srv -o -path /var/lib/testhost -o -path /var/log"
    " -o -path /var/cache -o -path '/home/*/.cache' -o -path /tmp \\) -prune"
    " -o -iname '*sessionvirt*' -print; "
    "ls -d /run/*sessionvirt* 2>/dev/null; getent passwd | grep sessionvirt; "
    "ip -o link | grep -E 'sv[tn]'; nft list tables | grep sessionvirt; pgrep -a dnsmasq"
)


def upheaval(host: Connection, verb: str) -> Any:
    """A verb of ``host.inside.upheaval``, in the host."""
    done = host.run(install.module("host.inside.upheaval", verb), timeout=240)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def before(testhost: Machine) -> Iterator[dict[str, Any]]:
    """What two machines have that run from now on."""
    with testhost.connect() as connection:
        upheaval(connection, "begin")
        before = upheaval(connection, "look")
    yield before
    # By another channel: the host may have been booted anew meanwhile.
    with testhost.connect() as connection:
        upheaval(connection, "end")


def unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Everything but the broker's process is what it was: interfaces, card, QEMU, leases."""
    assert before["card"] == GIVEN
    assert {key: after[key] for key in before if key != "broker"} == {
        key: before[key] for key in before if key != "broker"
    }
    assert len(after["leases"]) == len(after["qemus"]) == 2
    assert {lease["state"] for lease in after["leases"].values()} == {"held"}


def test_a_bus_that_is_killed_takes_nobodys_network_away(
    host: Connection, before: dict[str, Any]
) -> None:
    """The broker loses its name and its callers; it comes again, and knows all of them."""
    host.run(["systemctl", "kill", "--signal=KILL", "dbus.service"])
    host.run(["systemctl", "start", "dbus.service"])
    after = upheaval(host, "look")
    unchanged(before, after)
    assert after["broker"] != before["broker"]


def test_an_upgrade_of_the_packages_keeps_the_machines(
    host: Connection, before: dict[str, Any]
) -> None:
    """By apt, while they run; afterwards the broker of the new version has their leases."""
    packages = debs.built(NEWER)
    host.put({f"/srv/newer/{package.name}": package for package in packages})
    former = upheaval(host, "look")["broker"]
    names = [f"/srv/newer/{package.name}" for package in packages]
    host.run(["apt-get", "install", "--yes", "--quiet", *names], timeout=600)
    after = upheaval(host, "look")
    unchanged(before, after)
    assert after["broker"] != former
    version = "--showformat=${Version}"
    shown = host.run(["dpkg-query", "--show", version, "sessionvirt-broker"]).text
    assert shown == NEWER
    assert host.run(["systemctl", "is-enabled", "sessionvirt-broker"], check=False).text == "static"


def test_sleep_and_a_clock_that_jumps_change_nothing(
    testhost: Machine, host: Connection, before: dict[str, Any]
) -> None:
    """Suspend to memory and wake up; then a year ahead, and back.

    The broker counts by the monotonic clock, and a lease has no end of its own.
    """
    host.run(["systemctl", "start", "sessionvirt-broker"])
    former = upheaval(host, "look")
    sleeps = host.start(["sh", "-c", "echo mem > /sys/power/state"])
    deadline = time.monotonic() + 60
    while (status := testhost.monitor("query-status")) and (
        dict(status)["status"] != "suspended"  # type: ignore[call-overload]
    ):
        assert time.monotonic() < deadline, f"the host does not sleep: {status}"
        time.sleep(0.1)  # an event would have to be waited for from before the command
    testhost.monitor("system_wakeup")
    assert list(sleeps.output(60))[-1][1] == b"0"
    assert upheaval(host, "look") == former
    unchanged(before, former)
    now = time.time()
    for moment in (now + 366 * 86400, now - 366 * 86400, now):
        host.run(["date", "--set", f"@{moment:.0f}"])
        assert upheaval(host, "look") == former


@pytest.mark.reboot
def test_after_a_new_boot_nothing_stale_is_believed(
    testhost: Machine, host: Connection, before: dict[str, Any]
) -> None:
    """The power fails with both machines running; what was in /run is even put back.

    Whoever wrote the records, they are of another boot: interfaces of their names, that somebody
    else may have, are not touched.
    """
    assert len(before["leases"]) == 2
    host.run(["sh", "-c", f"echo '{EARLY}' >{CONFIGURATION}"])
    host.run(["systemctl", "enable", "--quiet", NETWORKS])
    host.run(["cp", "-a", RUNTIME, "/root/kept"])
    host.run(["sync"])
    name = sorted(link for link in before["links"] if link.startswith("svt"))[0]
    testhost.monitor("system_reset")
    with testhost.connect() as again:
        # The network that is to be up at boot is, without a guest.
        again.run(["sh", "-c", UNTIL_SERVED], timeout=120)
        # By the unit of boot: it waited for the broker, which came at the first attempt.
        ran = ["systemctl", "show", "--value", "--property=ExecMainStartTimestampMonotonic"]
        assert again.run([*ran, NETWORKS]).text.strip() != "0"
        again.run(["systemctl", "stop", "sessionvirt-broker"])
        again.run(["cp", "-aT", "/root/kept", RUNTIME])
        again.run(["rm", "-rf", "/root/kept"])
        again.run(["ip", "tuntap", "add", name, "mode", "tap"])
        after = upheaval(again, "look")
        assert (after["leases"], after["macs"], after["dnsmasq"]) == ({}, [], 0)
        assert after["card"] == FREE
        assert sorted(after["links"]) == sorted([name, "svn_early"])
        assert "10.99.7.1/24" in again.run(["ip", "-4", "address", "show", "svn_early"]).text
        again.run(["ip", "link", "delete", name])
        # Once nobody wants it any more it goes with the next broker.
        again.run(["systemctl", "disable", "--quiet", NETWORKS])
        again.run(["rm", CONFIGURATION])
        again.run(["systemctl", "restart", "sessionvirt-broker"])
        assert list(upheaval(again, "look")["links"]) == []
        records = again.run(["find", f"{RUNTIME}/records", f"{RUNTIME}/holds", "-type", "f"])
        assert records.text == ""


@pytest.mark.reboot
def test_a_purge_gives_back_what_is_held_and_leaves_nothing(
    host: Connection, before: dict[str, Any]
) -> None:
    """Both machines run when apt removes what they use: it is as if we had never been here.

    The card cannot be taken from a machine that has it open. Who removes the package is told so,
    and the broker stays, to take it back when that ends.
    """
    assert before["leases"]
    if not upheaval(host, "look")["leases"]:  # the host was booted anew
        upheaval(host, "begin")
    assert len(upheaval(host, "look")["leases"]) == 2
    purge = ["apt-get", "purge", "--yes", "--quiet", "sessionvirt*"]
    done = host.run(purge, timeout=600, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.status != 0, said
    assert "still has IOMMU group" in said
    assert "not removed" in said
    assert upheaval(host, "look")["card"] == GIVEN
    host.run(["systemctl", "stop", "testhost-left"])
    deadline = time.monotonic() + 60
    while upheaval(host, "look")["card"] != FREE:
        assert time.monotonic() < deadline, "the card does not come back"
    host.run(purge, timeout=600)
    try:
        qemus = host.run(["pgrep", "--count", "qemu-system"], check=False).text
        assert qemus == "1", "a machine is its user's: it goes on, without a network"
        host.run(["systemctl", "stop", "testhost-right"])
        rules = "/etc/polkit-1/rules.d/10-sessionvirt-test.rules"
        host.run(["rm", rules, "/home/user1/left.img", "/home/user2/right.img"])
        assert host.run(["sh", "-c", LEFTOVERS], check=False).text == ""
    finally:
        packages = f"{install.PACKAGES}/*.deb"
        host.run(["sh", "-c", f"apt-get install --yes --quiet {packages}"], timeout=600)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker goes, and comes again; machines keep their network, and their end gives it back.

Two users: one with a real machine of ``sessionvirt run``, one whose TAP is in the test's hands, so
that frames can be seen to pass at any moment. What is invasive for the host (another version of the
package, its removal, the bus, a new boot) is in ``tests/host/test_reboot.py``.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from host.inside import machines, units
from lab import host
from lab.links import link_goes, wait_for_link

pytestmark = pytest.mark.host


def leases(name: str) -> set[str]:
    """What a user has, by a new connection; the call starts the broker where none runs."""
    with machines.Holder(name) as client:
        return {lease["lease"] for lease in client.leases()}


@pytest.mark.usefixtures("permission")
def test_machines_keep_their_network_when_the_broker_is_killed_or_stopped() -> None:
    """SIGKILL: systemd starts the next at once. ``systemctl stop``: the next call does.

    Either way everything is what it was, down to dnsmasq's process, and frames pass while no broker
    runs. What ends after both is given back.
    """
    with machines.Holder("user2") as two, two.take() as held, units.Watch() as watch:
        with machines.Running("user1", "machine") as machine:
            assert machines.works(held)
            before, lease = machines.network(), machine.lease()["lease"]

            former = units.killed()
            assert machines.works(held)
            watch.until("active", former=former)
            assert units.show(units.BROKER, "NRestarts")["NRestarts"] == "1"
            assert (leases("user1"), leases("user2")) == ({lease}, {held.path})
            assert machines.network() == before

            units.stop()
            assert machines.network() == before
            assert machines.works(held)
            assert (leases("user1"), leases("user2")) == ({lease}, {held.path})
            assert machines.network() == before

            (grant,) = machine.lease()["grants"]
            with link_goes(grant["ifname"].value):
                os.kill(machine.qemu, signal.SIGKILL)
        assert machines.works(held)
        two.settle()
        assert leases("user1") == set()
        with link_goes("svn_default"):
            held.release()


@pytest.mark.usefixtures("permission")
def test_what_ends_while_no_broker_runs_is_given_back_by_the_next() -> None:
    """Killed so often that systemd would give up, stopped, and meanwhile both machines end."""
    with machines.Holder("user1") as one, machines.Holder("user2") as two:
        first, second = one.take(), two.take()
        units.stop()
        for lease in (first, second):
            lease.close()
        assert "svn_default" in host.ours()
        with units.Watch(units.DNSMASQ) as watch:
            assert leases("user1") == leases("user2") == set()
            watch.until("inactive")
        wait_for_link("svn_default", present=False)
        assert host.ours() == []


@pytest.mark.usefixtures("permission")
def test_a_broker_that_crashes_again_and_again_comes_back() -> None:
    """Ten crashes in a row are fewer than the unit's limit; nobody's lease is lost by them."""
    with machines.Holder("user2") as two, two.take() as held, units.Watch() as watch:
        for _ in range(10):
            watch.until("active", former=units.killed())
        assert machines.works(held)
        assert leases("user2") == {held.path}


def test_udev_leaves_the_address_of_a_tap_alone() -> None:
    """The kernel makes a TAP with a random address, which udev replaces by default; not with ours.

    Else it may do so after the broker has set the right one, which then ends the lease.
    """
    # addr_assign_type of the kernel's sysfs-class-net: 1 is random, 3 is set.
    for name, kind in (("svt0123456789ab", "1"), ("tapother", "3")):
        host.ip("tuntap", "add", name, "mode", "tap")
        try:
            device = f"/sys/class/net/{name}"
            subprocess.run(["udevadm", "wait", "--settle", "--timeout=60", device], check=True)
            assert Path(device, "addr_assign_type").read_text().strip() == kind, name
        finally:
            host.ip("link", "del", name)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases of PCI devices on a tree like /sys: a group by and by, what stays, memory together.

The kernel's part is played: what is unbound and probed are links that move. That the
real one does it is proved in the test host.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lab.fakesysfs import FakeSysfs
from lab.nofirewall import no_firewall
from sessionvirt_broker import acl
from sessionvirt_broker.config import BUILTIN
from sessionvirt_broker.errors import Busy, LimitsExceeded, NotFound
from sessionvirt_broker.host import Host, Paths
from sessionvirt_broker.hostdev import PciKind
from sessionvirt_broker.journal import Journal
from sessionvirt_broker.kind import Owner
from sessionvirt_broker.kinds import STEPS
from sessionvirt_broker.leases import Leases
from sessionvirt_broker.limits import Limits
from sessionvirt_broker.memlock import Allowance
from sessionvirt_broker.pcinames import PciNames
from sessionvirt_broker.processes import Process, of_pid
from sessionvirt_broker.variants import Variants
from sessionvirt_broker.vfio import Vfio
from sessionvirt_broker.vfiodrivers import Drivers
from sessionvirt_broker.wire import VmName

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sessionvirt_broker.lease import Acquired

pytestmark = pytest.mark.unit

NIC, PEER, OTHER = "0000:03:00.0", "0000:03:00.1", "0000:04:00.0"
UID = os.getuid()
OWNER, STRANGER = Owner(UID, VmName("win11")), Owner(UID + 1, VmName("win11"))


class Kernel(Vfio):
    """Binds as it is told, and says who has a group open."""

    def __init__(self, tree: FakeSysfs, dev: Path) -> None:
        super().__init__(tree.sys, dev)
        self._tree = tree
        self.open: set[str] = set()

    def override(self, address: str) -> str:
        text = (self.device(address) / "driver_override").read_text().strip()
        return "" if text == "(null)" else text

    def set_override(self, address: str, driver: str) -> None:
        (self.device(address) / "driver_override").write_text(f"{driver}\n")

    def unbind(self, address: str) -> None:
        (self.device(address) / "driver").unlink(missing_ok=True)

    def probe(self, address: str) -> None:
        self._tree.bind(self.device(address).resolve(), self.override(address) or "e1000e")

    def keep_out(self, group: str) -> None:
        if group in self.open:
            raise Busy(f"a process still has IOMMU group {group} open")


class Lab:
    """A host with two groups, and a broker's leases."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = FakeSysfs(root)
        for address, group in ((NIC, 7), (PEER, 7), (OTHER, 8)):
            self.tree.function(address, group=group, class_code=0x118000, driver="e1000e")
        for name in ("records", "holds"):
            (root / name).mkdir()
        for group_name in ("7", "8"):
            (root / "dev/vfio").mkdir(parents=True, exist_ok=True)
            (root / "dev/vfio" / group_name).touch()
        self.kernel = Kernel(self.tree, root / "dev")
        self.limits = Limits()
        self.leases = self.broker()

    def broker(self) -> Leases:
        links: Any = SimpleNamespace(addresses=dict, default_routes=frozenset)
        firewall = no_firewall()
        absent = self.root / "absent"
        host = Host(links, firewall, Paths(self.root, absent, absent, absent), None, self.kernel)
        names = PciNames(absent, absent)
        drivers = Drivers(Variants(absent))
        kind = PciKind(self.tree.sys, self.tree.proc, names, drivers, replaceable=False)
        journal = Journal(self.root / "records", "boot", STEPS)
        return Leases(host, journal, {"pci": kind})

    @property
    def configuration(self) -> Any:
        return replace(BUILTIN, limits=self.limits)

    def acquire(self, *addresses: str, owner: Owner = OWNER) -> Acquired:
        raw = [self.request(address) for address in addresses]
        offers = self.leases.survey(raw, owner, self.configuration)
        return self.leases.acquire(raw, owner, self.configuration, offers, "asked")

    def add(self, lease: str, address: str) -> dict[str, Any]:
        raw = [self.request(address)]
        offers = self.leases.survey(raw, OWNER, self.configuration, lease)
        (grant,) = self.leases.add(lease, UID, raw, self.configuration, offers)
        return dict(grant.facts)

    def request(self, address: str) -> Any:
        return "pci", {"address": ("s", address), "with_group": ("b", True)}

    def drivers(self) -> list[str]:
        return [self.kernel.driver(address) for address in (NIC, PEER)]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(acl, "allow", lambda *_: None)
    monkeypatch.setattr(acl, "withdraw", lambda *_: None)
    return Lab(tmp_path)


@contextlib.contextmanager
def closing(acquired: Acquired) -> Iterator[str]:
    try:
        yield acquired.lease
    finally:
        acquired.close()
        os.close(acquired.watch)


def test_the_devices_of_a_group_come_by_and_by_and_it_goes_with_the_last(lab: Lab) -> None:
    with closing(lab.acquire(NIC)) as lease:
        assert lab.drivers() == ["vfio-pci", "vfio-pci"]
        with pytest.raises(Busy, match="is in use"):
            lab.acquire(PEER)
        with pytest.raises(Busy, match="is in use"):
            lab.acquire(PEER, owner=STRANGER)
        with pytest.raises(Busy, match=f"the lease has {NIC} already"):
            lab.add(lease, NIC)
        grant = lab.add(lease, PEER)
        assert (grant["id"], grant["address"], grant["former"]) == ("pci1", PEER, "e1000e")
        assert grant["members"] == (NIC, PEER)
        lab.leases.drop(lease, UID, ["pci0"])
        assert lab.drivers() == ["vfio-pci", "vfio-pci"]
        assert lab.add(lease, NIC)["id"] == "pci2"
        lab.leases.drop(lease, UID, ["pci1"])
        assert lab.drivers() == ["vfio-pci", "vfio-pci"]
        lab.leases.drop(lease, UID, ["pci2"])
        assert lab.drivers() == ["e1000e", "e1000e"]
        assert lab.add(lease, PEER)["id"] == "pci3"
        lab.leases.release(lease)
        assert lab.drivers() == ["e1000e", "e1000e"]


def test_the_next_broker_knows_both(lab: Lab) -> None:
    acquired = lab.acquire(NIC)
    with closing(acquired) as lease:
        lab.add(lease, PEER)
        lab.leases = lab.broker()
        ((_, watch),) = lab.leases.reconcile()
        os.close(watch)
        with pytest.raises(Busy, match=f"the lease has {PEER} already"):
            lab.add(lease, PEER)
        lab.leases.drop(lease, UID, ["pci0"])
        assert lab.drivers() == ["vfio-pci", "vfio-pci"]
        assert lab.add(lease, NIC)["former"] == "e1000e"
        lab.leases.release(lease)
        assert lab.drivers() == ["e1000e", "e1000e"]


def test_a_device_counts_until_it_is_given_back(lab: Lab) -> None:
    """For whose it was, also for the next broker; and not for others."""
    lab.limits = Limits(devices_per_user=1)
    with closing(lab.acquire(NIC)) as lease:
        with pytest.raises(LimitsExceeded, match="devices_per_user: 1"):
            lab.add(lease, PEER)
        lab.kernel.open.add("7")
        lab.leases.release(lease)
    assert lab.drivers() == ["vfio-pci", "vfio-pci"]
    for broker in (lab.leases, lab.broker()):
        if broker is not lab.leases:
            lab.leases = broker
            assert broker.reconcile() == []
        with pytest.raises(LimitsExceeded, match="devices_per_user: 1"):
            lab.acquire(OTHER)
    with closing(lab.acquire(OTHER, owner=STRANGER)) as other:
        lab.leases.release(other)
    lab.kernel.open.clear()
    lab.leases.retry()
    assert lab.drivers() == ["e1000e", "e1000e"]
    with closing(lab.acquire(OTHER)) as again:
        lab.leases.release(again)


# Memory


GIB = 1 << 30
FIRST, SECOND, THIRD = (Process(pid, UID, 5) for pid in (10, 11, 12))


def test_what_a_users_processes_may_lock_counts_together_while_they_live() -> None:
    alive = {one.pid: one for one in (FIRST, SECOND, THIRD)}
    allowance = Allowance(alive.get)
    for process in (FIRST, SECOND):
        allowance.check(UID, process, 4 * GIB, 8 * GIB)
        assert allowance.note(UID, process, 4 * GIB) == 4 * GIB
    with pytest.raises(LimitsExceeded, match=r"lock_memory_gib: 8\.0"):
        allowance.check(UID, THIRD, 1, 8 * GIB)
    # The same again is no more than it was; less is not less; and another user has his own.
    allowance.check(UID, FIRST, 4 * GIB, 8 * GIB)
    assert allowance.note(UID, FIRST, 1) == 4 * GIB
    with pytest.raises(LimitsExceeded):
        allowance.check(UID, SECOND, 4 * GIB + 1, 8 * GIB)
    allowance.check(UID + 1, THIRD, 8 * GIB, 8 * GIB)
    # Another process has the number now.
    alive[FIRST.pid] = replace(FIRST, started=6)
    allowance.check(UID, THIRD, 4 * GIB, 8 * GIB)
    with pytest.raises(LimitsExceeded):
        allowance.check(UID, THIRD, 4 * GIB + 1, 8 * GIB)


def test_the_processes_that_are_looked_at_are_few() -> None:
    many = [Process(pid, UID, 5) for pid in range(64)]
    allowance = Allowance({one.pid: one for one in many}.get)
    for one in many:
        allowance.check(UID, one, 1, GIB)
        allowance.note(UID, one, 1)
    with pytest.raises(LimitsExceeded, match="64 processes"):
        allowance.check(UID, Process(64, UID, 5), 1, GIB)
    allowance.check(UID, many[0], 1, GIB)


def test_a_lease_that_ended_leaves_its_process_what_it_has(lab: Lab) -> None:
    """And the next broker knows it of a lease that goes on."""
    argv = [sys.executable, "-IBc", "print(flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with contextlib.ExitStack() as stack:
        pidfds = []
        for _ in range(2):
            process = stack.enter_context(subprocess.Popen(argv, **pipes))  # type: ignore[call-overload]
            stack.callback(process.kill)
            process.stdout.readline()
            pidfds.append(os.pidfd_open(process.pid))
            stack.callback(os.close, pidfds[-1])
        first, second = pidfds
        lease = stack.enter_context(closing(lab.acquire(NIC)))
        other = stack.enter_context(closing(lab.acquire(OTHER)))
        assert of_pid(lab.leases.lock_memory(lease, UID, first, 4096, 8192)) is not None
        with pytest.raises(LimitsExceeded, match="lock_memory_gib"):
            lab.leases.lock_memory(other, UID, second, 4097, 8192)
        lab.leases = lab.broker()
        for _, watch in lab.leases.reconcile():
            os.close(watch)
        lab.leases.release(lease)
        with pytest.raises(LimitsExceeded, match="lock_memory_gib"):
            lab.leases.lock_memory(other, UID, second, 4097, 8192)
        lab.leases.lock_memory(other, UID, second, 4096, 8192)
        os.kill(of_pid_of(first), 9)
        os.waitid(os.P_PIDFD, first, os.WEXITED)
        lab.leases.lock_memory(other, UID, second, 8192, 8192)
        with pytest.raises(NotFound, match="no such process"):
            lab.leases.lock_memory(other, UID, first, 1, 8192)
        lab.leases.release(other)


def of_pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""PCI devices go to an unprivileged user by VFIO, and come back, on real IOMMU groups.

Here no QEMU runs: who has the device is a process that has its group open, as QEMU would, so that
each moment can be looked at. ``test_pci_machines.py`` has the machines. Numbers are those of the
attack tests (group E).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dbus_fast import Variant

from host.inside import machines, units
from host.inside.hostdevs import (
    DEVICES,
    LEGACY,
    NVME,
    SRIOV,
    Lease,
    comes_back,
    driver,
    frame_passes,
    holding,
    interface,
    listed,
    node,
    opened,
    opener,
    override,
    refused,
    with_ids,
)
from host.inside.sessions import until
from host.inside.strangers import configured
from lab import host, rawbus
from lab.rawbus import BusError, pci
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("permission")]

VFIO = "vfio-pci"
#: Everything but to take something back from another user.
NO_RECLAIM = """\
polkit.addRule(function (action, subject) {
    if (action.id === "org.sessionvirt.broker1.reclaim") { return polkit.Result.NO; }
    if (action.id.indexOf("org.sessionvirt.broker1.") === 0) { return polkit.Result.YES; }
    return polkit.Result.NOT_HANDLED;
});
"""
MIB = 1 << 20


def mode_of(path: Path) -> str:
    """Owner, group and access list, as a person would look at them."""
    status = path.stat()
    return f"{status.st_uid}:{status.st_gid} {status.st_mode & 0o707:o}"


def test_a_card_goes_to_its_user_and_comes_back_and_carries_a_packet(cards: list[str]) -> None:
    """For that uid alone, with nothing left of it; the driver has it again, and it works."""
    card, other = cards
    assert frame_passes(card, other)
    assert listed("user1")[card]["verdict"] == "free"
    with holding("user1", pci(card), vm="mine") as lease:
        (grant,) = lease.grants
        assert (grant["address"], grant["members"], grant["former"]) == (card, [card], "e1000e")
        assert grant["node"] == str(node(card))
        assert (driver(card), override(card), driver(other)) == (VFIO, VFIO, "e1000e")
        assert mode_of(node(card)) == "0:0 600"
        with opened("user2", node(card)) as said:
            assert said == "Permission denied"
        with opened("user1", node(card)) as said:
            assert said == "open"
        mine, theirs = listed("user1")[card], listed("user2")[card]
        assert (mine["verdict"], mine["holder"]) == ("held", "mine")
        assert (theirs["verdict"], theirs["holder"]) == ("held", "-")
    comes_back(card, "e1000e")
    assert not node(card).exists()
    assert frame_passes(other, card)


def test_e60_closed_means_closed(cards: list[str]) -> None:
    """Release while a process has it open: Busy, no unbind, no new access; back with its end."""
    card = cards[0]
    with holding("user1", pci(card)) as lease:
        with opened("user1", node(card), card) as said:
            assert said == "open"
            with pytest.raises(BusError, match="still has something of it open"):
                lease.release()
            assert (driver(card), lease.state()) == (VFIO, "releasing")
            with opened("user1", node(card)) as said:
                assert said == "Permission denied"
        comes_back(card, "e1000e")
        until(lambda: lease.state() == "", "the lease is over")


def test_the_end_of_the_holder_is_enough_and_waits_for_whoever_has_a_copy(cards: list[str]) -> None:
    """The hold is closed, but not the device, as when a descriptor went to another process."""
    card = cards[0]
    with holding("user1", pci(card)) as lease:
        with opened("user1", node(card), card) as said:
            assert said == "open"
            lease.close()
            until(lambda: lease.state() == "releasing", "the lease has ended")
            assert driver(card) == VFIO
            assert refused("user2", pci(card)).short == "Busy"
        comes_back(card, "e1000e")


def test_a_broker_that_is_killed_takes_it_up_again(cards: list[str]) -> None:
    """While it is held, and while it waits for the end of who has it open."""
    card = cards[0]
    with holding("user1", pci(card)) as lease:
        units.killed()
        assert lease.state() == "held"
        with opened("user1", node(card), card) as said:
            assert said == "open"
            units.killed()
            lease.close()
            until(lambda: lease.state() != "held", "the next broker sees that it has ended")
            units.killed()
            assert driver(card) == VFIO
        comes_back(card, "e1000e")


def test_e57_a_group_is_one_leases_at_a_time(cards: list[str]) -> None:
    with holding("user1", pci(cards[0])):
        for user in ("user1", "user2"):
            assert refused(user, pci(cards[0])).short == "Busy"
        with holding("user2", pci(cards[1])):
            pass


def test_a_group_goes_as_a_whole_or_not_at_all() -> None:
    """Two cards behind a bridge to PCI, which stays with its own."""
    first, second = with_ids(LEGACY)
    error = refused("user1", pci(first))
    assert error.short == "DeviceUnsafe"
    assert f"{first} cannot be given alone" in error.text
    assert second in error.text
    with holding("user1", pci(first, with_group=True)) as lease:
        assert lease.grants[0]["members"] == [first, second]
        assert [driver(one) for one in (first, second)] == [VFIO, VFIO]
        # E49: a driver that comes later, or somebody who looks for one, changes nothing.
        Path("/sys/bus/pci/drivers_probe").write_text(second)
        subprocess.run(["udevadm", "trigger", "--settle", f"/sys/bus/pci/devices/{second}"])
        assert (driver(second), override(second)) == (VFIO, VFIO)
    for one in (first, second):
        comes_back(one, "e1000")


def test_two_devices_of_a_group_that_one_machine_asks_for_go_along() -> None:
    """Each names the other; the group is bound once, and stays until both are given back."""

    first, second = with_ids(LEGACY)
    both = [
        pci(one, also=Variant("as", [other])) for one, other in ((first, second), (second, first))
    ]
    with holding("user1", *both) as lease:
        assert [grant["former"] for grant in lease.grants] == ["e1000", "e1000"]
        where = {"path": lease.path, "interface": rawbus.LEASE}
        lease.holder.ask_for("Drop", ["pci0"], {}, **where)
        assert [driver(one) for one in (first, second)] == [VFIO, VFIO]
        lease.holder.ask_for("Drop", ["pci1"], {}, **where)
        for one in (first, second):
            comes_back(one, "e1000")


def test_a_machine_gets_a_second_device_of_its_group_later() -> None:
    """By Add, asked for by its own name; the group goes back with the last, to nobody before."""
    first, second = with_ids(LEGACY)
    with holding("user1", pci(first, with_group=True)) as lease:
        where = {"path": lease.path, "interface": rawbus.LEASE}
        (grant,) = lease.holder.ask_for("Add", [pci(second)], {}, **where)[0]
        facts = {key: value.value for key, value in grant.items()}
        assert (facts["address"], facts["driver"], facts["former"]) == (second, VFIO, "e1000")
        with pytest.raises(BusError, match=f"has {second} already"):
            lease.holder.ask_for("Add", [pci(second)], {}, **where)
        assert refused("user1", pci(second)).short == "Busy"
        units.killed()
        lease.holder.ask_for("Drop", ["pci0"], {}, **where)
        assert [driver(one) for one in (first, second)] == [VFIO, VFIO]
        assert refused("user2", pci(first, with_group=True)).short == "Busy"
        lease.holder.ask_for("Drop", ["pci1"], {}, **where)
        for one in (first, second):
            comes_back(one, "e1000")


def test_the_chipset_is_refused_unless_root_says_so() -> None:
    """The member that is in the way is named; broker.toml alone makes an exception."""
    disks = "0000:00:1f.2"
    error = refused("user1", pci(disks, with_group=True))
    assert (error.short, error.text) == (
        "DeviceUnsafe",
        "0000:00:1f.0: the chipset's bridge to ISA",
    )
    formers = {one: driver(one) for one in ("0000:00:1f.0", disks, "0000:00:1f.3")}
    with configured('[pci]\nallow = ["0000:00:1f.0", "0000:00:1f.3"]\n'):
        assert refused("user1", pci(disks)).short == "DeviceUnsafe"
        with holding("user1", pci(disks, with_group=True)):
            assert {driver(one) for one in formers} == {VFIO}
    for one, former in formers.items():
        comes_back(one, former)
    with configured(f'[pci]\ndeny = ["{disks}"]\nallow = ["0000:00:1f.0", "0000:00:1f.3"]\n'):
        assert "broker.toml keeps it" in refused("user1", pci(disks, with_group=True)).text


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def test_e46_what_holds_the_hosts_files_is_refused(tmp_path: Path) -> None:
    """The root disk; an NVMe with a file system; swap; a disk by LVM on dm-crypt; each names it."""
    root = Path("/sys/block/vda/device").resolve().parent.name
    error = refused("user1", pci(root))
    assert error.short == "DeviceUnsafe"
    assert f"{root}: file system / on /dev/vda" in error.text
    (nvme,) = with_ids(NVME)
    disk = "/dev/nvme0n1"
    with contextlib.ExitStack() as stack:
        run("mke2fs", "-q", "-t", "ext4", disk)
        run("mount", disk, str(tmp_path))
        stack.callback(run, "umount", str(tmp_path))
        assert f"file system {tmp_path} on {disk}" in refused("user1", pci(nvme)).text
        assert listed("user2")[nvme]["verdict"] == "refused"
    with contextlib.ExitStack() as stack:
        run("mkswap", disk)
        run("swapon", disk)
        stack.callback(run, "swapoff", disk)
        assert f"swap on {disk}" in refused("user1", pci(nvme)).text
    run("wipefs", "--all", disk)
    spare = Path("/dev/disk/by-id/virtio-testhost-spare").resolve()
    controller = Path(f"/sys/block/{spare.name}/device").resolve().parent.name
    with contextlib.ExitStack() as stack:
        (tmp_path / "key").write_bytes(bytes(64))
        options = ["--type", "plain", "--cipher", "aes-xts-plain64", "--key-size", "256"]
        key = ["--key-file", str(tmp_path / "key")]
        run("cryptsetup", "open", *options, *key, str(spare), "tested")
        stack.callback(run, "cryptsetup", "close", "tested")
        # Without notes below /etc.
        quiet = ["--quiet", "--yes", "--config", "backup { backup = 0 archive = 0 }"]
        run("vgcreate", *quiet, "testedvg", "/dev/mapper/tested")
        stack.callback(run, "vgremove", *quiet, "--force", "testedvg")
        run("lvcreate", *quiet, "--size", "32m", "--name", "lv", "testedvg")
        text = refused("user1", pci(controller)).text
        assert f"{controller}: /dev/{spare.name} is part of" in text
    # As it was, it is nobody's: it may go, and comes back.
    with holding("user1", pci(nvme)):
        assert not Path(disk).exists()
    comes_back(nvme, "nvme")


def test_e47_a_card_that_the_host_uses_is_refused(cards: list[str]) -> None:
    """An address, a default route, a bridge, another network namespace."""
    card = cards[0]
    name = interface(card)

    def why() -> str:
        error = refused("user1", pci(card))
        assert error.short == "DeviceUnsafe", error
        return error.text

    with contextlib.ExitStack() as stack:
        host.ip("address", "add", "192.0.2.77/24", "dev", name)
        stack.callback(host.ip, "address", "flush", "dev", name)
        assert f"address 192.0.2.77 on {name}" in why()
        host.ip("link", "set", name, "up")
        stack.callback(host.ip, "link", "set", name, "down")
        host.ip(*f"route add default via 192.0.2.1 dev {name}".split())
        assert f"default route via {name}" in why()
    with contextlib.ExitStack() as stack:
        host.ip("link", "add", "brtest", "type", "bridge")
        stack.callback(host.ip, "link", "delete", "brtest")
        host.ip("link", "set", name, "master", "brtest")
        assert f"{name} is a port of brtest" in why()
    argv = ["unshare", "--net", "sh", "-c", "echo there; exec sleep infinity"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as elsewhere:
        assert elsewhere.stdout is not None
        elsewhere.stdout.readline()
        host.ip("link", "set", name, "netns", str(elsewhere.pid))
        assert "another network namespace" in why()
        elsewhere.kill()
    # The kernel gives hardware back to the first namespace, in its own time.
    until(lambda: interface(card), "the card is back")


def test_e53_a_card_whose_functions_are_in_use_is_refused() -> None:
    """One with virtual functions; one of those can be had, and then not the card."""
    (card,) = with_ids(SRIOV)
    count = DEVICES / card / "sriov_numvfs"
    count.write_text("1")
    try:
        function = (DEVICES / card / "virtfn0").resolve().name
        run("udevadm", "settle")
        until(lambda: not driver(function) or interface(function), "its driver has made it ready")
        assert "1 virtual function exists" in refused("user1", pci(card)).text
        former = driver(function)
        with holding("user1", pci(function)):
            assert driver(function) == VFIO
        assert driver(function) == former
    finally:
        count.write_text("0")


def test_e58_udev_leaves_the_access_alone(cards: list[str]) -> None:
    """Whatever events it is made to look at again."""
    with holding("user1", pci(cards[0])):
        run("udevadm", "trigger", "--settle")
        run("udevadm", "trigger", "--settle", "--action=add", "--subsystem-match=vfio")
        with opened("user1", node(cards[0])) as said:
            assert said == "open"


def test_e62_an_override_of_somebody_elses_is_given_back(cards: list[str]) -> None:
    """And one that keeps a device for VFIO, as driverctl's, keeps it from us."""
    card = cards[0]
    file = DEVICES / card / "driver_override"
    try:
        file.write_text("e1000e\n")
        with holding("user1", pci(card)):
            assert override(card) == VFIO
        assert (driver(card), override(card)) == ("e1000e", "e1000e")
        file.write_text("vfio-pci\n")
        assert refused("user1", pci(card)).short == "Busy"
    finally:
        file.write_text("\n")


def test_a_device_that_is_vfios_already_stays_so(cards: list[str]) -> None:
    """managed='no': only the access is given and withdrawn. managed='yes': it is another's."""
    card = cards[0]
    assert refused("user1", pci(card, managed=False)).short == "DeviceUnsafe"
    file = DEVICES / card / "driver_override"
    file.write_text("vfio-pci\n")
    try:
        (DEVICES / card / "driver/unbind").write_text(card)
        Path("/sys/bus/pci/drivers_probe").write_text(card)
        assert driver(card) == VFIO
        assert refused("user1", pci(card)).short == "Busy"
        with holding("user1", pci(card, managed=False)), opened("user1", node(card)) as said:
            assert said == "open"
        assert driver(card) == VFIO
        with opened("user1", node(card)) as said:
            assert said == "Permission denied"
        # Somebody else has it open: it is theirs.
        with opened("root", node(card)) as said:
            assert said == "open"
            assert refused("user1", pci(card, managed=False)).short == "Busy"
    finally:
        file.write_text("\n")
        (DEVICES / card / "driver/unbind").write_text(card)
        Path("/sys/bus/pci/drivers_probe").write_text(card)
    comes_back(card, "e1000e")


def locked(pid: int) -> int:
    """How much a process may lock, in bytes."""
    return resource.prlimit(pid, resource.RLIMIT_MEMLOCK)[0]


@contextlib.contextmanager
def sleeper(user: str) -> Iterator[tuple[int, int]]:
    """A process of a user's; its pid and a pidfd."""
    argv = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with User.named(user).popen(argv, stdin=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        pidfd = os.pidfd_open(child.pid)
        try:
            yield child.pid, pidfd
        finally:
            os.close(pidfd)


def test_e61_memory_may_be_locked_by_processes_of_the_leases_user_alone(cards: list[str]) -> None:
    def said(lease: Lease, pidfd: int, size: int) -> str:
        with pytest.raises(BusError) as caught:
            lease.lock_memory(pidfd, size)
        return caught.value.short

    with holding("user1", pci(cards[0])) as lease:
        with sleeper("user1") as (pid, pidfd):
            before = locked(pid)
            lease.lock_memory(pidfd, before + 64 * MIB)
            assert locked(pid) == before + 64 * MIB
            lease.lock_memory(pidfd, MIB)
            assert locked(pid) == before + 64 * MIB, "it is never lowered"
            assert said(lease, pidfd, 1 << 50) == "LimitsExceeded"
            with configured("[limits]\nlock_memory_gib = 1\n"):
                assert said(lease, pidfd, (1 << 30) + 1) == "LimitsExceeded"
                lease.lock_memory(pidfd, 1 << 30)
        assert said(lease, pidfd_of_ended(), MIB) == "NotFound"
        with sleeper("user2") as (pid, pidfd):
            before = locked(pid)
            assert said(lease, pidfd, before + MIB) == "NotFound"
            assert locked(pid) == before
        with open("/dev/null") as other:
            assert said(lease, other.fileno(), MIB) == "InvalidArgs"


class Pidfd:
    """A pidfd that is closed."""

    def __init__(self, pid: int) -> None:
        self.number = os.pidfd_open(pid)

    def close(self) -> None:
        os.close(self.number)


def pidfd_of_ended() -> int:
    """Of a process of user1's that has ended; the number is closed with this one."""
    with sleeper("user1") as (_, pidfd):
        return os.dup(pidfd)


def test_a_user_has_a_limit_of_devices(cards: list[str]) -> None:
    with configured("[limits]\ndevices_per_user = 1\n"):
        error = refused("user1", *(pci(card) for card in cards))
        assert (error.short, error.text) == ("LimitsExceeded", "devices_per_user: 1")


def test_a_device_that_goes_while_it_is_had_is_no_more_of_the_lease(cards: list[str]) -> None:
    """Removed by the kernel's own file, and found again: the lease is over, the new one is free."""
    card = cards[0]
    with holding("user1", pci(card)) as lease:
        (DEVICES / card / "remove").write_text("1")
        try:
            until(lambda: lease.state() == "", "the lease has ended with its device")
        finally:
            Path("/sys/bus/pci/rescan").write_text("1")
        comes_back(card, "e1000e")
        assert listed("user1")[card]["verdict"] == "free"


@pytest.mark.parametrize("who", ["user1", "root", "user2"])
def test_who_has_a_device_is_ended_before_it_is_taken_back(cards: list[str], who: str) -> None:
    """By the lease's own user, by root, and by anybody whom polkit permits; SIGTERM is enough."""
    card = cards[0]
    with (
        holding("user1", pci(card)) as lease,
        opener("user1", node(card), card) as (said, process),
        contextlib.closing(Pidfd(process.pid)) as pidfd,
    ):
        assert said == "open"
        lease.lock_memory(pidfd.number, 64 * MIB)
        units.killed()  # the next broker knows the process, too
        lease.reclaim(who)
        assert process.wait(10) == -signal.SIGTERM
        assert lease.state() == ""
        comes_back(card, "e1000e")


def test_a_process_that_ignores_it_is_killed(cards: list[str]) -> None:
    card = cards[0]
    with (
        holding("user1", pci(card)) as lease,
        opener("user1", node(card), card) as (said, process),
        contextlib.closing(Pidfd(process.pid)) as pidfd,
    ):
        assert said == "open"
        lease.lock_memory(pidfd.number, 64 * MIB)
        os.kill(process.pid, signal.SIGSTOP)
        lease.reclaim("user1")
        assert process.wait(10) == -signal.SIGKILL
        comes_back(card, "e1000e")


def test_another_user_needs_an_administrator_and_learns_nothing(cards: list[str]) -> None:
    with holding("user1", pci(cards[0])) as lease:
        machines.RULES.write_text(NO_RECLAIM)
        machines.wait_for_rule("reclaim", "no")
        with pytest.raises(BusError) as caught:
            lease.reclaim("user2")
        assert caught.value.short == "NotAuthorized"
        assert lease.state() == "held"
        absent = Lease(lease.holder, f"{lease.path[:-4]}beef", -1, [])
        with pytest.raises(BusError) as caught:
            absent.reclaim("user2")
        assert caught.value.short == "NotFound"

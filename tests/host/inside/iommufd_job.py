# SPDX-License-Identifier: LGPL-2.1-or-later
"""A device goes to a user's QEMU as descriptors, and comes back, on a kernel with IOMMUFD.

``python3 -m host.inside.iommufd_job NAME`` carries out one of :data:`JOBS`, in a host that was
booted with that kernel, and leaves it as it was; ``tests/host/test_iommufd.py`` asks for all. Where
no QEMU is, this process binds the device itself, as QEMU does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from host.inside import bootdisk, machines, units
from host.inside.hostdevs import (
    LEGACY,
    NIC,
    Lease,
    comes_back,
    driver,
    holding,
    node,
    opened,
    refused,
    with_ids,
)
from host.inside.sessions import until
from lab.button import RUNNING, boot_sector
from lab.rawbus import BusError, pci
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USER = "user1"
VFIO = "vfio-pci"
FORMER = "e1000e"
IOMMU = Path("/dev/iommu")
CDEVS = Path("/dev/vfio/devices")

#: VFIO_DEVICE_BIND_IOMMUFD of include/uapi/linux/vfio.h, and its structure: argsz, flags, iommufd,
#: out_devid.
BIND, BINDING = 0x3B76, struct.Struct("=IIiI")
#: IOMMU_OPTION of include/uapi/linux/iommufd.h: size, option_id, op (0 sets, 1 gets), __reserved,
#: object_id, val64.
OPTION, OPTING = 0x3B87, struct.Struct("=IIHHIQ")


@contextlib.contextmanager
def running(name: str, card: str) -> Iterator[int]:
    """``sessionvirt run`` of the user's with a device; yields QEMU's process."""
    user = User.named(USER)
    disk = user.write(f"{name}.img", boot_sector().ljust(1 << 20, b"\0"))
    argv = [
        *bootdisk.Machine(name, disk).command("run", "--network=none", "--no-ask-password"),
        f"--pci={card}",
    ]
    said = b""
    try:
        with user.popen(argv) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            while RUNNING.encode() not in said:
                if not (some := os.read(process.stdout.fileno(), 4096)):
                    raise AssertionError((said + process.stderr.read()).decode())
                said += some
            # This kernel has no CONFIG_PROC_CHILDREN.
            children = ["pgrep", "--parent", str(process.pid), "qemu"]
            yield int(subprocess.run(children, capture_output=True, check=True).stdout)
            # It says how its machine ended, and gives everything back.
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    finally:
        disk.unlink()


def ours(name: str) -> dict[str, object]:
    """The lease of a machine."""
    with machines.Holder(USER) as holder:
        (lease,) = [one for one in holder.leases() if one["vm"] == name]
    return lease


def links(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(entry.readlink()))
    return found


def nobody_may_open(card: str) -> None:
    """The user can open none of the nodes that lead to a device."""
    (device,) = (Path("/sys/bus/pci/devices") / card / "vfio-dev").iterdir()
    for path in (IOMMU, CDEVS / device.name, node(card)):
        assert path.exists()
        with opened(USER, path) as said:
            assert said == "Permission denied", path


def a_machine_has_it_by_descriptors() -> None:
    """QEMU of an ordinary user, with what it could not open itself; SIGKILL gives it back."""
    card = with_ids(NIC)[0]
    with running("passed", card) as qemu:
        assert driver(card) == VFIO
        has = links(qemu)
        assert [one for one in has if one == str(IOMMU)] == [str(IOMMU)]
        assert [one for one in has if one.startswith("/dev/vfio")] == [str(CDEVS / "vfio0")]
        command = Path(f"/proc/{qemu}/cmdline").read_text().split("\0")
        assert any('"qom-type":"iommufd"' in word for word in command)
        assert not any('"host":' in word for word in command)
        parent = units.process_status(qemu)["PPid"]
        assert not [one for one in links(int(parent)) if "iommu" in one or "vfio" in one]
        assert not [one for one in links(units.main_pid()) if "iommu" in one or "vfio" in one]
        nobody_may_open(card)
        os.kill(qemu, signal.SIGKILL)
        comes_back(card, FORMER)


def release_while_a_machine_has_it_is_busy() -> None:
    """Nothing is unbound under a guest; with QEMU's end it goes back."""
    card = with_ids(NIC)[0]
    with running("busy", card) as qemu:
        path = str(ours("busy")["lease"])
        where = {"path": path, "interface": "org.sessionvirt.Broker1.Lease"}
        with machines.Holder(USER) as holder, pytest.raises(BusError) as caught:
            holder.ask_for("Release", {}, **where)
        assert caught.value.short == "Busy"
        assert (driver(card), ours("busy")["state"]) == (VFIO, "releasing")
        assert refused("user2", pci(card, fds=True)).short == "Busy"
        os.kill(qemu, 0)
        os.kill(qemu, signal.SIGKILL)
        comes_back(card, FORMER)


def a_process_that_may_not_lock_memory_cannot_use_it() -> None:
    """What is mapped counts for the process that maps it, by its limit, which LockMemory raises."""
    card = with_ids(NIC)[0]
    with holding(USER, pci(card, fds=True)) as lease:
        iommufd, device = lease.fds
        argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "64", "-S"]
        argv += ["-M", "q35,accel=tcg", "-object", f"iommufd,id=iommufd0,fd={iommufd}"]
        argv += ["-device", f"vfio-pci,iommufd=iommufd0,fd={device}"]
        with User.named(USER).popen(argv, pass_fds=(iommufd, device)) as qemu:
            assert qemu.stderr is not None
            said = qemu.stderr.read().decode()
            assert qemu.wait(60) == 1
        assert os.strerror(errno.ENOMEM) in said, said
        # Nor can anybody with the descriptor have it counted otherwise.
        option = OPTING.pack(OPTING.size, 0, 1, 0, 0, 0)
        assert OPTING.unpack(fcntl.ioctl(iommufd, OPTION, option))[-1] == 1
    comes_back(card, FORMER)


def bind(lease: Lease) -> None:
    """As QEMU does: the device is in use from now on."""
    iommufd, device = lease.fds
    fcntl.ioctl(device, BIND, BINDING.pack(BINDING.size, 0, iommufd, 0))


def a_device_that_is_bound_keeps_its_group_shut() -> None:
    """The kernel alone: without the lock, its group cannot be opened, so nothing is unbound."""
    card = with_ids(NIC)[0]
    with holding(USER, pci(card, fds=True)) as lease:
        bind(lease)
        fcntl.flock(lease.fds[1], fcntl.LOCK_UN)
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            os.close(os.open(node(card), os.O_RDWR))
        with pytest.raises(BusError, match="still has"):
            lease.release()
        assert (driver(card), lease.state()) == (VFIO, "releasing")
        assert (Path("/sys/bus/pci/devices") / card / "vfio-dev").exists()
        lease.close_fds()
        comes_back(card, FORMER)
        until(lambda: lease.state() == "", "the lease is over")


def a_device_that_was_never_bound_is_waited_for() -> None:
    """Whoever has a copy of its descriptor has it: nothing is unbound before that is closed."""
    card = with_ids(NIC)[0]
    with holding(USER, pci(card, fds=True)) as lease:
        with pytest.raises(BusError, match="still has"):
            lease.release()
        assert (driver(card), lease.state()) == (VFIO, "releasing")
        assert (Path("/sys/bus/pci/devices") / card / "vfio-dev").exists()
        lease.close_fds()
        comes_back(card, FORMER)


def who_unlocks_it_makes_the_kernel_wait_and_nobody_else() -> None:
    """The unbind is under way then: a child waits for it, and the broker answers."""
    first, second = with_ids(NIC)
    with holding(USER, pci(first, fds=True)) as lease:
        fcntl.flock(lease.fds[1], fcntl.LOCK_UN)
        with pytest.raises(BusError) as caught:
            lease.release()
        assert caught.value.short == "Busy"
        assert lease.state() == "releasing"
        with holding("user2", pci(second, fds=True)):
            assert driver(second) == VFIO
        comes_back(second, FORMER)
        # No driver has it, and neither has its holder: to use it, it would have to be reset, with
        # the lock that the unbind has (pci_try_reset_function() in vfio_pci_core_enable()).
        with pytest.raises(BlockingIOError):
            bind(lease)
        assert refused("user2", pci(first)).short == "Busy"
        assert driver(first) == ""
        lease.close_fds()
        comes_back(first, FORMER)
        until(lambda: lease.state() == "", "the lease is over")


def a_broker_that_is_killed_takes_it_up_again() -> None:
    """The next one knows nothing of the descriptors, and need not."""
    card = with_ids(NIC)[0]
    with holding(USER, pci(card, fds=True)) as lease:
        bind(lease)
        units.killed()
        assert lease.state() == "held"
        assert lease.grants[0]["node"] == ""
        lease.close()
        until(lambda: lease.state() == "releasing", "the lease has ended")
        units.killed()
        assert driver(card) == VFIO
        lease.close_fds()
        comes_back(card, FORMER)


def a_group_of_two_goes_as_four_descriptors() -> None:
    """Each device once, and all of a group in the same way."""
    first, second = with_ids(LEGACY)
    one = pci(first, fds=True, with_group=True)
    assert refused(USER, one, one).short == "Busy"
    mixed = refused(USER, one, pci(second, with_group=True))
    assert (mixed.short, "fds" in mixed.text) == ("InvalidArgs", True)
    former = driver(first)
    with holding(USER, one, pci(second, fds=True, with_group=True)) as lease:
        assert [grant["fds"] for grant in lease.grants] == [[1, 2], [3, 4]]
        assert len({os.fstat(fd).st_rdev for fd in lease.fds[1::2]}) == 2
        lease.holder.ask_for(
            "Drop", ["pci1"], {}, path=lease.path, interface="org.sessionvirt.Broker1.Lease"
        )
        assert [driver(one) for one in (first, second)] == [VFIO, VFIO]
        lease.close_fds()
    for card in (first, second):
        comes_back(card, former)
    assert not [one for one in links(units.main_pid()) if "iommu" in one or "vfio" in one]


def who_does_not_ask_for_descriptors_opens_the_group() -> None:
    """As on any other kernel."""
    card = with_ids(NIC)[0]
    with holding(USER, pci(card)) as lease:
        assert (lease.fds, lease.grants[0]["node"]) == ([], str(node(card)))
        with opened(USER, node(card)) as said:
            assert said == "open"
    comes_back(card, FORMER)


JOBS: tuple[Callable[[], None], ...] = (
    a_machine_has_it_by_descriptors,
    release_while_a_machine_has_it_is_busy,
    a_process_that_may_not_lock_memory_cannot_use_it,
    a_device_that_is_bound_keeps_its_group_shut,
    a_device_that_was_never_bound_is_waited_for,
    who_unlocks_it_makes_the_kernel_wait_and_nobody_else,
    a_broker_that_is_killed_takes_it_up_again,
    a_group_of_two_goes_as_four_descriptors,
    who_does_not_ask_for_descriptors_opens_the_group,
)


if __name__ == "__main__":
    with machines.permitted():
        next(job for job in JOBS if job.__name__ == sys.argv[1])()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's PCI devices as a test sees them: by sysfs and the nodes, never through the broker.

:func:`holding` is a lease by a connection that the bus takes for the user's; :class:`Opened` a
process of the user's that has an IOMMU group's node open, as QEMU would.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host.inside.machines import Holder
from host.inside.sessions import until
from lab import host, rawbus
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "DEVICES",
    "LEGACY",
    "NIC",
    "NVME",
    "SRIOV",
    "Lease",
    "comes_back",
    "driver",
    "frame_passes",
    "group",
    "holding",
    "interface",
    "listed",
    "node",
    "opened",
    "opener",
    "override",
    "refused",
    "with_ids",
]

DEVICES = Path("/sys/bus/pci/devices")

#: Vendor and device of what ``host/board.py`` puts in.
NIC, LEGACY, NVME, SRIOV = (0x8086, 0x10D3), (0x8086, 0x100E), (0x1B36, 0x0010), (0x8086, 0x10C9)


def with_ids(ids: tuple[int, int]) -> list[str]:
    """The addresses of all devices of one model."""
    wanted = tuple(f"0x{number:04x}" for number in ids)
    return sorted(
        one.name
        for one in DEVICES.iterdir()
        if ((one / "vendor").read_text().strip(), (one / "device").read_text().strip()) == wanted
    )


def group(address: str) -> list[str]:
    """Everything in the IOMMU group of a device."""
    return sorted(one.name for one in (DEVICES / address / "iommu_group/devices").iterdir())


def node(address: str) -> Path:
    """Its group's device node, which is there while VFIO has it."""
    return Path("/dev/vfio") / (DEVICES / address / "iommu_group").readlink().name


def driver(address: str) -> str:
    """The driver; empty: none."""
    try:
        return (DEVICES / address / "driver").readlink().name
    except FileNotFoundError:  # or no longer: it may be on its way
        return ""


def override(address: str) -> str:
    """driver_override; empty: none."""
    text = (DEVICES / address / "driver_override").read_text().strip()
    return "" if text == "(null)" else text


def interface(address: str) -> str:
    """The name of a card's interface, which udev has given it; empty: there is none yet."""
    names = [one.name for one in (DEVICES / address).glob("net/*")]
    return names[0] if names and names[0].startswith("en") else ""


def comes_back(address: str, former: str) -> None:
    """Return when its driver has it again, and its interface, where it is a card, its name."""
    until(lambda: driver(address) == former, f"{address} is with {former} again")
    if (DEVICES / address / "class").read_text().startswith("0x0200"):
        until(lambda: interface(address), f"{address} has an interface")
    subprocess.run(["udevadm", "settle"], check=True)
    assert override(address) == ""


def frame_passes(sender: str, receiver: str) -> bool:
    """Whether a frame that one card sends arrives at another on the same wire."""
    names = [interface(sender), interface(receiver)]
    frame = b"\xff" * 6 + b"\x52\x54\x00\x00\x99\x99" + b"\x88\xb5" + b"sessionvirt".ljust(50, b".")
    try:
        for name in names:
            # No address of the kernel's own, which the next test would meet.
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            host.ip("link", "set", name, "up")
        up = [Path(f"/sys/class/net/{name}/operstate") for name in names]
        until(lambda: all(one.read_text().strip() == "up" for one in up), "the wire is up")
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        with (
            socket.socket(socket.AF_PACKET, kind, 0) as out,
            socket.socket(socket.AF_PACKET, kind, socket.htons(0x88B5)) as into,
        ):
            out.bind((names[0], 0))
            into.bind((names[1], 0x88B5))
            into.settimeout(10)
            out.send(frame)
            with contextlib.suppress(TimeoutError):
                return into.recv(2000) == frame
        return False
    finally:
        for name in names:
            host.ip("link", "set", name, "down")
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")


@dataclass
class Lease:
    """A user's lease of devices."""

    holder: Holder
    path: str
    hold: int
    grants: list[dict[str, Any]]
    #: Where the grants have come as descriptors: an iommufd and the device of each.
    fds: list[int] = field(default_factory=list)

    def release(self) -> None:
        """Lease.Release."""
        self.holder.ask_for("Release", {}, path=self.path, interface=rawbus.LEASE)

    def reclaim(self, user: str) -> None:
        """Lease.Reclaim, by somebody."""
        with Holder(user) as holder:
            holder.ask_for("Reclaim", {}, path=self.path, interface=rawbus.LEASE)

    def lock_memory(self, pidfd: int, size_bytes: int) -> None:
        """Lease.LockMemory."""
        where = {"path": self.path, "interface": rawbus.LEASE}
        self.holder.ask_for("LockMemory", 0, size_bytes, {}, fds=[pidfd], **where)

    def close(self) -> None:
        """Close the hold, as the end of QEMU does."""
        if self.hold >= 0:
            os.close(self.hold)
            self.hold = -1

    def close_fds(self) -> None:
        """Close what came for the devices."""
        while self.fds:
            os.close(self.fds.pop())

    def state(self) -> str:
        """What ListLeases says of it; empty: it is over."""
        states = [one["state"] for one in self.holder.leases() if one["lease"] == self.path]
        return str(states[0]) if states else ""


@contextlib.contextmanager
def holding(user: str, *requests: Sequence[Any], vm: str = "vm") -> Iterator[Lease]:
    """A lease of a user's, given back at the end.

    The broker may have to start anew for the first: it says so, and is asked again.
    """
    with Holder(user) as holder:
        answer = _acquired(holder, requests, vm)
        path, hold, grants = answer.body
        fds, answer.fds = answer.fds, []
        plain = [{key: value.value for key, value in grant.items()} for grant in grants]
        own = fds.pop(hold)
        lease = Lease(holder, path, own, plain, fds)
        try:
            yield lease
        finally:
            lease.close_fds()
            with contextlib.suppress(rawbus.BusError):  # the test may have given it back
                lease.release()
            lease.close()


def _acquired(holder: Holder, requests: Sequence[Any], vm: str) -> rawbus.Answer:
    for _ in range(5):
        serial = holder.ask("Acquire", list(requests), rawbus.options(vm=vm))
        answer = holder.answer(serial)
        try:
            assert answer.body
        except rawbus.BusError as error:
            if error.short != "Restarting":
                raise
        else:
            return answer
    raise AssertionError("the broker starts anew again and again")


def refused(user: str, *requests: Sequence[Any], vm: str = "vm") -> rawbus.BusError:
    """The error that a user's Acquire must meet."""
    try:
        with holding(user, *requests, vm=vm) as lease:
            raise AssertionError(f"it was given: {lease.grants}")
    except rawbus.BusError as error:
        return error


def listed(user: str) -> dict[str, dict[str, Any]]:
    """ListDevices, by address."""
    with Holder(user) as holder:
        rows = holder.ask_for("ListDevices", {})[0]
    plain = [{key: value.value for key, value in row.items()} for row in rows]
    return {row["address"]: row for row in plain}


#: Opens a group and the devices in it that it is told, as QEMU does, says so, and waits for the end
#: of its standard input. VFIO_GROUP_SET_CONTAINER, VFIO_SET_IOMMU with VFIO_TYPE1v2_IOMMU and
#: VFIO_GROUP_GET_DEVICE_FD of include/uapi/linux/vfio.h.
_OPENER = """\
import fcntl, os, struct, sys
try:
    group = os.open(sys.argv[1], os.O_RDWR)
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    if sys.argv[2:]:
        fcntl.ioctl(group, 0x3B68, struct.pack("i", container))
        fcntl.ioctl(container, 0x3B66, 3)
    for address in sys.argv[2:]:
        fcntl.ioctl(group, 0x3B6A, address.encode() + b"\\0")
except OSError as error:
    print(error.strerror, flush=True)
else:
    print("open", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def opener(user: str, path: Path, *addresses: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A process of a user's that has a group open for a while; "open" or why not, and the process.

    :param addresses: devices of the group that it opens, too.
    """
    argv = [sys.executable, "-c", _OPENER, str(path), *addresses]
    with User.named(user).popen(argv, stdin=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        yield child.stdout.readline().decode().strip(), child
        child.stdin.close()
        child.wait(60)


@contextlib.contextmanager
def opened(user: str, path: Path, *addresses: str) -> Iterator[str]:
    """The same; yields "open", or why it has not."""
    with opener(user, path, *addresses) as (said, _):
        yield said

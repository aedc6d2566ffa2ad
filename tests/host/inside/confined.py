# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program that tries what the broker must not be able to do, started in the broker's own unit.

It stands for a broker that somebody else has taken over: the same user, capabilities, file system,
devices, system calls. It imports the standard library alone. On standard output is one JSON object:
for each attempt ``done``, or the name of the error.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)

TAKEN_OVER = "/run/sessionvirt-test-taken-over"
#: As systemd itself would be asked by who wants every capability.
START_TRANSIENT_UNIT = (
    "busctl",
    "call",
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
    "StartTransientUnit",
    *("ssa(sv)a(sa(sv))", "sessionvirt-test-taken-over.service", "fail", "1"),
    *("ExecStart", "a(sasb)", "1", "/usr/bin/touch", "2", "touch", TAKEN_OVER, "false", "0"),
)


def call(name: str, *arguments: Any) -> None:
    """A function of the C library that has no wrapper in Python 3.11."""
    ctypes.set_errno(0)
    if getattr(LIBC, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def opened(path: str, flags: int = os.O_RDWR) -> None:
    os.close(os.open(path, flags))


def written(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def created(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    os.unlink(path)


def executable_page() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def tap() -> None:
    """One TAP, as the broker makes them; it goes with its only descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    try:
        # TUNSETIFF; IFF_TAP | IFF_NO_PI
        fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", b"svtprobe", 0x1002))
    finally:
        os.close(descriptor)


def set_user_id_file() -> None:
    path = f"{os.environ['RUNTIME_DIRECTORY']}/probe"
    try:
        written(path, "")
        os.chmod(path, 0o4755)
    finally:
        os.unlink(path)


def root_by_su() -> None:
    """A set-user-ID program, which NoNewPrivileges= makes an ordinary one."""
    su = ["/usr/bin/su", "--command=true"]
    done = subprocess.run(su, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise PermissionError(errno.EPERM, "su")


def systemd() -> None:
    done = subprocess.run(START_TRANSIENT_UNIT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(errno.EACCES, done.stderr.strip())


def real_time() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


#: By name, for the test that compares.
ATTEMPTS: dict[str, Callable[[], object]] = {
    # What it needs.
    "open /dev/net/tun": tap,
    "open /dev/vhost-net": lambda: os.close(os.open("/dev/vhost-net", os.O_RDWR)),
    "write /run/sessionvirt-broker": lambda: created(f"{os.environ['RUNTIME_DIRECTORY']}/probe"),
    "set forwarding": lambda: written("/proc/sys/net/ipv4/conf/lo/forwarding", "0"),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close(),
    # The file system.
    "write /etc": lambda: created("/etc/sessionvirt-probe"),
    "write /usr": lambda: created("/usr/sessionvirt-probe"),
    "write /var/lib": lambda: created("/var/lib/sessionvirt-probe"),
    "write the list of modules": lambda: written("/tmp/modules.alias", ""),
    "write /run": lambda: created("/run/sessionvirt-probe"),
    "write /boot": lambda: created("/boot/sessionvirt-probe"),
    "chmod a file of its user": set_user_id_file,
    # The kernel's settings.
    "write /proc/sys": lambda: written("/proc/sys/kernel/core_pattern", "|/bin/true"),
    "forward everything": lambda: written("/proc/sys/net/ipv4/ip_forward", "1"),
    "write /sys": lambda: written("/sys/class/net/lo/mtu", "65536"),
    "write the cgroup tree": lambda: os.mkdir("/sys/fs/cgroup/sessionvirt-probe"),
    # Devices.
    "open the root disk": lambda: opened("/dev/vda", os.O_RDONLY),
    "open /dev/kmsg": lambda: opened("/dev/kmsg"),
    "open /dev/port": lambda: opened("/dev/port"),
    "open /dev/fuse": lambda: opened("/dev/fuse"),
    "make a device node": lambda: os.mknod("/tmp/probe", 0o60600, os.makedev(254, 0)),
    # Sockets.
    "IPv4": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "IPv6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
    "packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close(),
    # System calls and capabilities.
    "become root": lambda: os.setresuid(0, 0, 0),
    "root by su": root_by_su,
    "namespaces": lambda: call("unshare", 0x10000000),
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "load a module": lambda: call("syscall", 313, 0, b"", 0),
    "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
    "host name": lambda: socket.sethostname("taken-over"),
    "real time": real_time,
    "personality": lambda: call("personality", 0x0040000),
    "an executable page": executable_page,
    "another's memory": lambda: opened(f"/proc/{os.getppid()}/mem", os.O_RDONLY),
    "another's environment": lambda: opened(f"/proc/{os.getppid()}/environ", os.O_RDONLY),
    "trace": lambda: call("ptrace", 16, os.getppid(), None, None),
    "reboot": lambda: call("reboot", 0x89ABCDEF),
    "kernel log": lambda: call("klogctl", 3, ctypes.create_string_buffer(64), 64),
    # systemd, which gives uid 0 of whatever sandbox every capability there is.
    "StartTransientUnit": systemd,
}


def attempt(what: Callable[[], object]) -> str:
    try:
        what()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return "done"


def seen() -> dict[str, Any]:
    """What there is to see."""
    return {
        "home": os.listdir("/home"),
        "root": os.listdir("/root"),
        "tmp": os.listdir("/tmp"),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    }


def main() -> None:
    signal.alarm(60)
    results = {name: attempt(what) for name, what in ATTEMPTS.items()}
    print(json.dumps({"seen": seen(), "attempts": results}))


if __name__ == "__main__":
    main()

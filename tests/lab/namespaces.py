# SPDX-License-Identifier: LGPL-2.1-or-later
"""A private view of the machine: its network, and the directories the project is installed into.

:func:`enter` moves the calling process, which must have one thread, into mount and network
namespaces of its own. It sees afterwards::

    /usr/local                         a tmpfs; what install() puts there
    /run                               a tmpfs; nothing of the host's services is reachable
    /sys                               the new network namespace's own
    /etc                               a copy, with the project's users and three ordinary ones
    /usr/share/polkit-1/actions        copies, to which install() adds the project's files
    /usr/share/dbus-1/system.d
    /usr/share/dbus-1/system-services

Everything else is the host's. When the last process in the namespaces ends, the kernel takes all of
it back; there is no clean-up to forget. Nothing is ever mounted or written outside.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lab.stage import ROOT, Flavour, stage

__all__ = ["LAB", "PREFIX", "Account", "enter", "enter_network", "enter_processes", "install"]

#: Where the lab keeps what is its own: homes, logs, stages, the guest.
LAB = Path("/run/lab")

#: Where the project is installed.
PREFIX = Path("/usr/local")

#: Directories of /usr/share that programs look into and that a package of ours adds files to.
SHARED = ("polkit-1/actions", "dbus-1/system.d", "dbus-1/system-services")

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Account:
    """One line of /etc/passwd that the lab adds; the group has the same name and number."""

    name: str
    uid: int
    home: Path
    shell: str = "/bin/sh"


#: Ordinary users. alice and bob are in the group of the example rule, carol is not.
PEOPLE = (
    Account("alice", 61001, LAB / "home/alice"),
    Account("bob", 61002, LAB / "home/bob"),
    Account("carol", 61003, LAB / "home/carol"),
)
#: The group that polkit/sessionvirt.rules.example speaks of.
GROUP = ("sessionvirt", 61000, ("alice", "bob"))


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """unshare(2). ``os.unshare`` came with Python 3.12 only."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    arguments = (source.encode(), os.fsencode(target), kind.encode(), flags, data.encode())
    _checked(_libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[4]), f"mount {target}")


def _make_private() -> None:
    """Stop mounts from spreading to the namespace that this one was copied from."""
    try:
        mount("none", Path("/"), "none", MS_REC | MS_PRIVATE)
    except OSError:
        # In a chroot / is no mount point. Then each mount point that is seen is made private; the
        # mount below / itself is not reachable from here.
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            point = line.split()[4].encode().decode("unicode_escape")
            if "shared:" in line:
                mount("none", Path(point), "none", MS_PRIVATE)


def _mount_copy(path: Path) -> None:
    """Put a tmpfs with a copy of *path* over it: owners, modes and links as they were."""
    held = LAB / "copies" / path.relative_to("/")
    held.mkdir(parents=True)
    subprocess.run(["cp", "--archive", f"{path}/.", held], check=True)
    mount(str(held), path, "none", MS_BIND)


def system_users() -> list[str]:
    """The users that the project's sysusers.d file declares (its lines ``u NAME ...``)."""
    text = (ROOT / "systemd/sysusers.d/sessionvirt.conf").read_text()
    return re.findall(r"^u!?\s+(\S+)", text, flags=re.MULTILINE)


def _add_accounts() -> None:
    passwd, group = Path("/etc/passwd"), Path("/etc/group")
    lines = [*passwd.read_text().splitlines(), *group.read_text().splitlines()]
    used = {int(line.split(":")[2]) for line in lines}
    free = iter(sorted(set(range(100, 1000)) - used, reverse=True))
    known = {line.split(":")[0] for line in lines}
    names = [name for name in system_users() if name not in known]
    accounts = [Account(name, next(free), Path("/"), "/usr/sbin/nologin") for name in names]
    # In a lab within a lab they are there already.
    accounts += [one for one in PEOPLE if one.name not in known]
    with passwd.open("a") as people, group.open("a") as groups:
        for one in accounts:
            people.write(f"{one.name}:x:{one.uid}:{one.uid}::{one.home}:{one.shell}\n")
            groups.write(f"{one.name}:x:{one.uid}:\n")
        if GROUP[0] not in known:
            groups.write(f"{GROUP[0]}:x:{GROUP[1]}:{','.join(GROUP[2])}\n")
    for one in PEOPLE:
        for directory in (one.home, Path(f"/run/user/{one.uid}")):
            directory.mkdir(parents=True)
            directory.chmod(0o700)
            os.chown(directory, one.uid, one.uid)


def enter_network() -> None:
    """Move this thread into a new network namespace and bring its loopback up."""
    unshare(CLONE_NEWNET)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def enter() -> None:
    """Move this process, with its future children, into the lab. There is no way back.

    :raise RuntimeError: it has more than one thread; the others would stay outside.
    :raise PermissionError: it is not root, or may not make namespaces.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("only a process of one thread can enter the lab whole")
    unshare(CLONE_NEWNS)
    _make_private()
    enter_network()
    mount("sysfs", Path("/sys"), "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", Path("/run"), "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    LAB.mkdir()
    for name in ("dbus", "lock", "netns", "user"):
        Path("/run", name).mkdir()
    for directory in (Path("/etc"), *(Path("/usr/share", name) for name in SHARED)):
        _mount_copy(directory)
    # Whether polkitd runs is the test's decision, not a client's call.
    for service in Path("/usr/share/dbus-1/system-services").glob("*PolicyKit1*"):
        service.unlink()
    _add_accounts()
    for name in ("/etc/sessionvirt", "/etc/polkit-1/rules.d"):
        Path(name).mkdir(parents=True, exist_ok=True)
    for rules in Path("/etc/polkit-1/rules.d").iterdir():
        rules.unlink()
    mount("tmpfs", PREFIX, "tmpfs", MS_NODEV, "mode=0755")


def enter_processes() -> None:
    """Fork into a new process namespace. The parent waits; only the child returns from here.

    The child is the namespace's first process: when it ends, the kernel ends every other. It must
    be in the lab already, for /proc is mounted anew. The parent exits with its status.
    """
    unshare(CLONE_NEWPID)
    child = os.fork()
    if child:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has it, too; its end is ours
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status) % 256)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    mount("proc", Path("/proc"), "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def install(flavour: Flavour = Flavour.PYPI) -> None:
    """Install the project as it is in the checkout now; what was installed before is replaced.

    /usr/local and the shared directories of :data:`SHARED` then hold what a package would install.
    """
    prefix = LAB / f"stage-{flavour}"
    if not prefix.exists():
        stage(prefix, flavour)
    _checked(_libc.umount2(os.fsencode(PREFIX), MNT_DETACH), f"umount {PREFIX}")
    mount(str(prefix), PREFIX, "none", MS_BIND)
    for name in SHARED:
        for file in (prefix / "share" / name).glob("*"):
            shutil.copyfile(file, Path("/usr/share", name, file.name))

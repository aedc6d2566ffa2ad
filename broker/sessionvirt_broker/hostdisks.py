# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which block devices the host is using: file systems, swap, and what is built of them.

Everything is told of the lowest devices, those that are hardware: a mount of a logical volume on a
crypt device on a partition is a use of the partition. Whoever uses a disk without mounting it shows
only as far as the kernel keeps a list of it, see :mod:`hostuse` for what it does not.

Invariants: what cannot be read or understood is an error or a use, never "not used". Texts that
users choose (mount points, labels of dm) are cleaned before they are part of a phrase, and no text
that an ordinary user chose makes a disk look used.

Never opens a block device, and never follows a path of /dev: names are looked up in /sys.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from . import sysfs
from .wire import legible

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Longest text of another's choice in a phrase.
TEXT_LIMIT = 64
#: Mount points that are told of one device; a container engine makes hundreds.
_MOUNTS = 3
_NUMBERS = re.compile(r"[0-9]+:[0-9]+")
_CONTROLLER = re.compile(r"nvme[0-9]+")
#: File systems that have a directory in /sys/fs for each superblock, by the device's name and in
#: whatever mount namespace it is mounted: super_block.s_id, in ext4_register_sysfs() and its like.
_BY_DEVICE = ("ext4", "xfs", "f2fs", "nilfs2", "erofs")


class Use(NamedTuple):
    """A phrase, and the directory in /sys/devices of what it is about."""

    path: str
    phrase: str


class _Mount(NamedTuple):
    """A line of mountinfo (proc_pid_mountinfo(5))."""

    numbers: str
    where: str
    kind: str
    source: str
    options: list[str]


def disk_uses(sys: str, proc: str) -> Iterator[Use]:
    """Every use of a block device, in a fixed order.

    :param sys: /sys, without links in it.
    :raise OSError: the mounts, or what there is, could not be read.
    :raise ValueError: mountinfo has a line that is none.
    """
    disks = _Disks(sys)
    mounts = _mounts(disks, proc)
    shared = _of_several(disks)
    for together in shared:
        everywhere = {where for name in together for where in mounts.get(name, ())}
        for name in together:
            mounts.setdefault(name, set()).update(everywhere)
    for name in _elsewhere(disks):
        mounts.setdefault(name, set())
    for name in sorted(mounts):
        yield from _file_system(disks, name, mounts[name])
    for name in sysfs.listed(f"{proc}/fs/jbd2"):
        # "sda1-8" is a journal in the file system itself, a plain name one on a device of its own
        # (jbd2_journal_init_dev() in fs/jbd2/journal.c).
        yield from disks.told(name, "a file system's journal is")
    yield from _swaps(disks, proc)
    for name, path in disks.paths.items():
        yield from _holders(disks, name, path)
    if _has_pools(proc):
        for name in disks.whole():
            yield from disks.told(name, "a ZFS pool may be")


class _Disks:
    """The block devices there are, and what is built of what."""

    def __init__(self, sys: str) -> None:
        self.sys = sys
        self.paths = sysfs.members(sys, "class/block")
        #: What dm devices are called below /dev/mapper.
        self.labels = {
            name: sysfs.text(f"{path}/dm/name")
            for name, path in self.paths.items()
            if name.startswith("dm-")
        }
        self._mapped = {label: name for name, label in self.labels.items() if label}

    def disk_of(self, name: str) -> str:
        """The disk that a partition is of; itself where it is none."""
        parent = os.path.basename(os.path.dirname(self.paths[name]))
        return parent if parent in self.paths else name

    def whole(self) -> list[str]:
        """Those that are no partitions."""
        return [name for name in self.paths if self.disk_of(name) == name]

    def by_source(self, source: str) -> str:
        """The device that a mount or a swap calls ``/dev/...``; empty: not known.

        The kernel writes the slash of a name like cciss/c0d0 as "!" (device_get_devnode()).
        """
        name = source.removeprefix("/dev/")
        if name == source:
            return ""
        if name.startswith("mapper/"):
            return self._mapped.get(name.removeprefix("mapper/"), "")
        name = name.replace("/", "!")
        return name if name in self.paths else ""

    def by_numbers(self, numbers: str) -> str:
        """The device of these numbers; empty: there is none."""
        if not _NUMBERS.fullmatch(numbers):
            return ""
        name = os.path.basename(sysfs.link(f"{self.sys}/dev/block", numbers))
        return name if name in self.paths else ""

    def lowest(self, name: str) -> list[str]:
        """What a device is made of in the end, itself where it is made of nothing."""
        found: dict[str, None] = {}
        seen: set[str] = set()
        ahead = [name]
        while ahead:
            one = ahead.pop()
            if one in seen or one not in self.paths:
                continue
            seen.add(one)
            # Only disks have slaves; a partition of a RAID is of what the RAID is of.
            below = sysfs.listed(f"{self.paths[self.disk_of(one)]}/slaves")
            ahead += below
            if not below:
                found[one] = None
        return sorted(found)

    def homes(self, name: str) -> list[str]:
        """Where a device is in /sys/devices: for NVMe multipath at each of the controllers.

        Its namespaces are below the subsystem, which belongs to no PCI function but links to its
        controllers (nvme_mpath_alloc_disk(), nvme_init_subsystem()).
        """
        path, subsystems = self.paths[name], f"{self.sys}/devices/virtual/nvme-subsystem/"
        if not path.startswith(subsystems):
            return [path]
        subsystem = subsystems + path.removeprefix(subsystems).partition("/")[0]
        links = [
            sysfs.link(subsystem, entry)
            for entry in sysfs.listed(subsystem)
            if _CONTROLLER.fullmatch(entry)
        ]
        return [link for link in links if link]

    def told(self, name: str, what: str) -> Iterator[Use]:
        """``what`` "on" each of the lowest devices; nothing where ``name`` is no device."""
        for low in self.lowest(name):
            by = "" if low == name else f" (by {name})"
            for home in self.homes(low):
                yield Use(home, f"{what} on {node(low)}{by}")


def node(name: str) -> str:
    """What people call a block device."""
    return legible("/dev/" + name.replace("!", "/"), TEXT_LIMIT)


def _mounts(disks: _Disks, proc: str) -> dict[str, set[str]]:
    """The mount points of each device, as far as this process can see."""
    found: dict[str, set[str]] = {}
    for mount in _mountinfo(proc):
        sources = [option.partition("=")[2] for option in mount.options]  # XFS: logdev=, rtdev=
        if mount.numbers.startswith("0:") and mount.source.startswith("/dev/"):
            # What may have several devices has numbers of none. bcachefs: /dev/sda:/dev/sdb.
            sources += [mount.source, *mount.source.split(":")]
        if mount.kind.startswith("fuse") and "user_id=0" not in mount.options:
            # An ordinary user may call the source of a FUSE mount what he likes, and so have any
            # disk refused to everybody. user_id is what fusermount says of him.
            sources = []
        names = {disks.by_source(source) for source in sources}
        names.add(disks.by_numbers(mount.numbers))
        for name in names - {""}:
            found.setdefault(name, set()).add(mount.where)
    return found


def _mountinfo(proc: str) -> Iterator[_Mount]:
    """The mounts of this process and, where that can be seen, of process 1.

    Of the two the first may lack what is below /home: ProtectHome= unmounts it in the unit's
    namespace. The second is hidden by ProtectProc=.
    """
    raw = sysfs.whole(f"{proc}/self/mountinfo")
    with contextlib.suppress(OSError):  # hidden, and no part of what is promised
        raw += sysfs.whole(f"{proc}/1/mountinfo")
    for line in filter(None, raw.split(b"\n")):
        words = line.split(b" ")
        try:
            # Optional fields end with a dash (Documentation/filesystems/proc.rst, 3.5).
            end = words.index(b"-", 6)
            kind, source, options = words[end + 1 : end + 4]
        except ValueError as error:
            raise ValueError("mountinfo: a line is not understood") from error
        yield _Mount(
            numbers=words[2].decode("ascii", "replace"),
            where=_unescaped(words[4]),
            kind=_unescaped(kind),
            source=_unescaped(source),
            options=_unescaped(options).split(","),
        )


def _unescaped(word: bytes) -> str:
    r"""A word as it was before seq_escape() wrote its spaces as ``\040``."""
    plain = re.sub(rb"\\([0-3][0-7]{2})", lambda match: bytes([int(match[1], 8)]), word)
    return plain.decode(errors="replace")


def _of_several(disks: _Disks) -> list[list[str]]:
    """The devices of each file system that may have several, in whatever namespace it is."""
    found = [
        sysfs.listed(f"{disks.sys}/fs/btrfs/{uuid}/devices")
        for uuid in sysfs.listed(f"{disks.sys}/fs/btrfs")
    ]
    for uuid in sysfs.listed(f"{disks.sys}/fs/bcachefs"):
        where = f"{disks.sys}/fs/bcachefs/{uuid}"
        links = [sysfs.link(f"{where}/{entry}", "block") for entry in sysfs.listed(where)]
        found.append([os.path.basename(link) for link in links if link])
    return [[name for name in names if name in disks.paths] for names in found]


def _elsewhere(disks: _Disks) -> Iterator[str]:
    """The devices of which the kernel has a superblock, mounted here or not."""
    for kind in _BY_DEVICE:
        for name in sysfs.listed(f"{disks.sys}/fs/{kind}"):
            if name in disks.paths:
                yield name


def _file_system(disks: _Disks, name: str, where: set[str]) -> Iterator[Use]:
    if not where:
        yield from disks.told(name, "file system in another mount namespace")
    points = sorted(where, key=lambda point: (len(point), point))
    for point in points[:_MOUNTS]:
        yield from disks.told(name, f"file system {legible(point, TEXT_LIMIT)}")
    if len(points) > _MOUNTS:
        yield from disks.told(name, f"{len(points) - _MOUNTS} other mounts of the file system")


def _swaps(disks: _Disks, proc: str) -> Iterator[Use]:
    try:
        lines = sysfs.whole(f"{proc}/swaps").split(b"\n")[1:]
    except FileNotFoundError:
        return  # a kernel without swap
    for line in filter(None, lines):
        source, kind = line.split()[:2]
        if kind != b"partition":
            continue  # a file; its file system is mounted
        # The node may have been made anew since (d_path(9) says so).
        name = disks.by_source(_unescaped(source).removesuffix(" (deleted)"))
        if name:
            yield from disks.told(name, "swap")
        else:
            for disk in disks.whole():
                yield from disks.told(disk, "swap may be")


def _holders(disks: _Disks, name: str, path: str) -> Iterator[Use]:
    holders = [
        f"{holder} ({legible(label, TEXT_LIMIT)})"
        if (label := disks.labels.get(holder))
        else holder
        for holder in sysfs.listed(f"{path}/holders")
    ]
    # A cache has no holder but this directory (register_cache() in drivers/md/bcache/super.c).
    if not holders and os.path.isdir(f"{path}/bcache"):
        holders = ["a bcache"]
    for holder in holders:
        for home in disks.homes(name):
            yield Use(home, f"{node(name)} is part of {holder}")


def _has_pools(proc: str) -> bool:
    """Whether ZFS has a pool. It says nowhere in /sys or /proc which disks are in it."""
    where = f"{proc}/spl/kstat/zfs"
    return any(os.path.isdir(f"{where}/{entry}") for entry in sysfs.listed(where))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's state as far as a test may not change it, and the difference of two of them.

Interfaces with their masters and addresses; nft's tables, chains, rules and set elements; which
driver has which PCI device; processes; units that are loaded and not idle; login sessions; files of
the places where something of ours or a test's may lie. :func:`settle` first lets come to rest what
ends by itself: what the last lease and the last session take along. A broker that holds nothing may
run or not: it ends by itself, and to start one for each test is what would take longest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from pathlib import Path

__all__ = ["State", "differences", "settle", "snapshot"]

#: The state: for each kind of thing, its names and what they are like.
State = dict[str, dict[str, str]]

BROKER = "sessionvirt-broker.service"
SETTLE_SECONDS = 40.0

#: Where files are looked for. Those of /run that daemons of the system write are left out.
TREES = ("/etc", "/home", "/tmp", "/var/tmp", "/run", "/usr/local", "/root", "/srv/packages")
IGNORED_FILES = re.compile(
    r"/run/(systemd|udev|log|lock|user|dbus|credentials|utmp|blkid|lvm|libvirt|initramfs|mount|testhost)\b"
    r"|/run/polkit|/run/agetty|/tmp/systemd-private|/var/tmp/systemd-private|/tmp/pytest-"
    r"|/etc/(resolv.conf|mtab|adjtime|\.pwd\.lock)|/run/sessionvirt-broker/lock$"
    r"|/run/(sessionvirt-broker|sessionvirt-broker/(records|holds|networks))$"
    r"|/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$"
    r"|/root/.cache|\.pyc$|__pycache__"
    r"|/etc/libvirt/"  # libvirtd writes it anew when it starts
)
#: Written anew by who adds a user and by who removes it: what is in them is what counts.
ACCOUNTS = tuple(f"/etc/{name}" for name in ("passwd", "group", "shadow", "gshadow"))
#: Processes that come and go by themselves. A broker that holds something has interfaces, too.
IGNORED_PROCESSES = re.compile(
    r"systemd-(udevd|userwork|hostnamed|timedated|locale[d]|nsresour)|\(udev-worker\)|\(sd-"
    r"|sessionvirt_broker$|agetty|polkitd|pytest|agent\.py|journalctl|^\(|dbus-daemon|libvirtd"
    r"|virtlogd|machined"
)
#: Units that come and go by themselves: by the clock, by a look at them, for a device; and what is
#: there for others alone.
IGNORED_UNITS = re.compile(
    r"\.(device|timer|mount|swap|path|target)$|^(machine\.slice|user-runtime-dir@|modprobe@|libvirt|virtlogd|polkit"
    r"|systemd-|dbus|getty@|autovt@|init\.scope|-\.slice|system.*\.slice|user\.slice|run-|logrotate)"
)


def _output(*argv: str) -> str:
    return subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True).stdout


def snapshot() -> State:
    """The state now."""
    return {
        "interface": _links(),
        "nft": _ruleset(),
        "driver": _drivers(),
        "process": _processes(),
        "unit": _units(),
        "session": _sessions(),
        "file": _files(),
    }


def settle() -> None:
    """Wait until the broker holds nothing, and until sessions have closed."""
    deadline = time.monotonic() + SETTLE_SECONDS
    records = Path("/run/sessionvirt-broker/records")
    while records.is_dir() and any(records.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)  # a look at what is there is all that a person could do, too
    while "closing" in _output("loginctl", "list-sessions", "--no-legend") and (
        time.monotonic() < deadline
    ):
        time.sleep(0.2)


def differences(before: State, after: State) -> list[str]:
    """What has come, gone and changed, a line each."""
    lines = []
    for kind, old in before.items():
        new = after[kind]
        lines += [f"{kind} is new: {name} {new[name]}" for name in new if name not in old]
        lines += [f"{kind} is gone: {name} {old[name]}" for name in old if name not in new]
        lines += [
            f"{kind} has changed: {name}: {old[name]} -> {new[name]}"
            for name in old
            if name in new and old[name] != new[name]
        ]
    return lines


def _links() -> dict[str, str]:
    links = {}
    for link in json.loads(_output("ip", "-json", "address")):
        addresses = sorted(one["local"] for one in link["addr_info"])
        links[link["ifname"]] = f"master {link.get('master')}, {' '.join(addresses)}"
    return links


def _ruleset() -> dict[str, str]:
    """Every object with its own words; counters and handles say nothing."""
    objects = {}
    for entry in json.loads(_output("nft", "--json", "list", "ruleset"))["nftables"]:
        ((kind, value),) = entry.items()
        if kind != "metainfo":
            name = " ".join(str(value.get(key, "")) for key in ("family", "table", "chain", "name"))
            text = re.sub(r'"(packets|bytes|handle|expires)": \d+', "", json.dumps(value))
            objects[f"{kind} {name} {hash(text)}" if kind == "rule" else f"{kind} {name}"] = text
    return objects


def _drivers() -> dict[str, str]:
    drivers = {}
    for device in Path("/sys/bus/pci/devices").iterdir():
        driver = device / "driver"
        name = driver.resolve().name if driver.exists() else "none"
        override = (device / "driver_override").read_text().strip()
        drivers[device.name] = name if override == "(null)" else f"{name}, override {override}"
    return drivers


def _processes() -> dict[str, str]:
    """By number and start, in the kernel's ticks since boot: a clock that jumps changes nothing."""
    processes = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            args = b" ".join(words).decode(errors="replace").strip()
            began = (directory / "stat").read_text().rpartition(")")[2].split()[19]
            uid = directory.stat().st_uid
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        # A kernel's thread and a zombie have no command line.
        if args and int(directory.name) != os.getpid() and not IGNORED_PROCESSES.search(args):
            processes[f"{directory.name} ({began})"] = f"uid {uid}: {args[:160]}"
    return processes


def _units() -> dict[str, str]:
    units = {}
    listing = _output("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager")
    for line in listing.splitlines():
        name, load, active, sub = line.split()[:4]
        idle = name == BROKER and active in ("active", "deactivating")
        if active != "inactive" and not idle and not IGNORED_UNITS.search(name):
            units[name] = f"{load} {active} {sub}"
    return units


def _sessions() -> dict[str, str]:
    listing = _output("loginctl", "list-sessions", "--no-legend", "--no-pager")
    return {line.split()[0]: " ".join(line.split()[1:4]) for line in listing.splitlines()}


def _files() -> dict[str, str]:
    files = {}
    for tree in TREES:
        for directory, names, leaves in os.walk(tree):
            for name in (*names, *leaves):
                path = f"{directory}/{name}"
                if not IGNORED_FILES.search(path):
                    files[path] = _look(path)
            names[:] = [name for name in names if not IGNORED_FILES.search(f"{directory}/{name}")]
    return files


def _look(path: str) -> str:
    """What a file is like: a directory's and a socket's time stamps are nobody's business."""
    try:
        status = os.lstat(path)
        if path in ACCOUNTS:
            return f"mode {status.st_mode:o}, {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"
    except FileNotFoundError:
        return "gone meanwhile"
    size = f", {status.st_size} bytes, {status.st_mtime_ns}" if os.path.isfile(path) else ""
    return f"mode {status.st_mode:o}, owner {status.st_uid}:{status.st_gid}{size}"

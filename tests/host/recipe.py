# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the test host is made of: packages, accounts, files. Its hash names what is built of it.

Pure data but for :func:`digest`, which also takes in the source of what the image contains. Change
something here and the next run builds anew; nothing else makes it build.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ACCOUNTS",
    "DISABLED",
    "FILES",
    "HOSTNAME",
    "LINKS",
    "MIRRORED",
    "PACKAGES",
    "QEMU_PACKAGES",
    "SUITE",
    "Account",
    "digest",
]

HERE = Path(__file__).resolve().parent

SUITE = "trixie"
HOSTNAME = "testhost"

#: Installed, without what they recommend. Those that our own packages depend on and nothing else
#: does are left to apt (:data:`MIRRORED`).
PACKAGES = (
    # A Debian as it is installed, as small as it can be.
    "adduser",
    "apt-utils",
    "ca-certificates",
    "dbus",
    "initramfs-tools",
    "kmod",
    "libpam-systemd",
    "linux-image-amd64",
    "login",
    "pkexec",
    "polkitd",
    "sudo",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "util-linux",
    "zstd",
    # Its neighbours and peers.
    "dnsmasq-base",
    "firewalld",
    "libvirt-clients",
    "libvirt-daemon-system",
    "network-manager",
    "nftables",
    "python3-libvirt",
    "qemu-system-x86",
    "qemu-utils",
    "swtpm",
    # What the tests run and look with.
    "busybox-static",
    "e2fsprogs",
    "ethtool",
    "extlinux",
    "iproute2",
    "iputils-ping",
    "less",
    "libglib2.0-bin",
    "nano",
    "pciutils",
    "procps",
    "psmisc",
    "python3-dbus-next",
    "python3-pydbus",
    "python3-pytest",
    "tcpdump",
    "usbutils",
    # Disks that hold more than a file system.
    "btrfs-progs",
    "cryptsetup-bin",
    "lvm2",
    "mdadm",
)

#: In an archive of the host's own, below /srv/archive, so that apt resolves what our packages
#: depend on, without a network.
MIRRORED = (
    "passt",
    "python3-dbus-fast",
    "python3-nftables",
    "python3-pyroute2",
)

#: A QEMU with igb (8.0 and newer), unpacked beside the image where this machine has none.
QEMU_PACKAGES = ("qemu-system-x86", "qemu-utils")


@dataclass(frozen=True)
class Account:
    """A person who can log in with a password."""

    name: str
    uid: int
    password: str
    groups: tuple[str, ...] = ()


#: polkit takes the members of sudo for administrators, as Debian has it.
ACCOUNTS = (
    Account("user1", 1001, "password of user1"),
    Account("user2", 1002, "password of user2"),
    Account("admin", 1003, "password of admin", ("sudo",)),
)

#: Files of the root file system, whole.
FILES = {
    "etc/hostname": f"{HOSTNAME}\n",
    "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {HOSTNAME}\n::1 localhost ip6-localhost\n",
    "etc/fstab": "/dev/vda / ext4 defaults,noatime 0 1\n",
    "etc/resolv.conf": "",
    "etc/apt/sources.list": "deb [trusted=yes] file:/srv/archive ./\n",
    # The agent: from early boot to the end, whatever happens to the bus.
    "etc/systemd/system/testhost-agent.service": """\
[Unit]
Description=Commands from the machine outside
DefaultDependencies=no
After=local-fs.target systemd-udevd.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/usr/bin/python3 -I /usr/local/lib/testhost/host/agent.py
Environment=HOME=/root LANG=C.UTF-8
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
Restart=always
RestartSec=1
KillMode=process
OOMScoreAdjust=-1000
TasksMax=infinity

[Install]
WantedBy=sysinit.target
""",
    "etc/modules-load.d/testhost.conf": "virtio_console\n",
    "etc/initramfs-tools/conf.d/testhost": "MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
    # Nothing that starts by the clock while a test looks.
    "etc/systemd/journald.conf.d/testhost.conf": (
        "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n"
    ),
    "etc/systemd/system.conf.d/testhost.conf": "[Manager]\nDefaultTimeoutStartSec=180s\n",
}

#: Not started at boot; their sockets start them, or a test does.
DISABLED = (
    "NetworkManager.service",
    "NetworkManager-dispatcher.service",
    "NetworkManager-wait-online.service",
    "firewalld.service",
    "libvirtd.service",
    "virtlogd.service",
    "systemd-resolved.service",
    "blk-availability.service",
    "lvm2-monitor.service",
)

#: Links: path below the root, and where it points. /dev/null masks a unit.
LINKS = {
    f"etc/systemd/system/{unit}": "/dev/null"
    for unit in (
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "e2scrub_reap.service",
        "fstrim.timer",
        "man-db.timer",
        "mdcheck_continue.timer",
        "mdcheck_start.timer",
        "mdmonitor-oneshot.timer",
        "systemd-tmpfiles-clean.timer",
        "libvirt-guests.service",
        # A console for the kernel and systemd; nobody logs in there.
        "serial-getty@ttyS0.service",
    )
} | {"etc/systemd/system/sysinit.target.wants/testhost-agent.service": "../testhost-agent.service"}


def digest() -> str:
    """Sixteen digits that change when what is built would change."""
    taken = hashlib.sha256()
    for name in ("recipe.py", "build.py", "agent.py", "channel.py"):
        taken.update((HERE / name).read_bytes())
    return taken.hexdigest()[:16]

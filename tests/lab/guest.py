# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest as small as can be: a Debian kernel, unpacked and not installed, and busybox.

:meth:`Guest.make` fetches the kernel's package once, with ``apt-get download``, and keeps what it
needs of it below ``~/.cache/sessionvirt-dev``. :meth:`Guest.with_script` appends a script, which
the guest runs when its network card is there, and which ends it. What a script says with ``say`` is
on the serial console, in lines that begin with ``GUEST: ``; the functions that it may use are in
``guest-init.sh``.
"""

from __future__ import annotations

import lzma
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.cpio import Entry, archive
from lab.namespaces import LAB

__all__ = ["CMDLINE", "Guest", "GuestError"]

#: In this order; the first that the archive has. The cloud kernel is a third of the size.
METAPACKAGES = ("linux-image-cloud-amd64", "linux-image-amd64")

#: What the guest loads; each with what it depends on.
MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "virtio-rng")

BUSYBOX = Path("/bin/busybox")

#: Boots quickly without KVM: no calibration, no mitigations, one serial port.
CMDLINE = (
    "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check mitigations=off"
    " 8250.nr_uarts=1 random.trust_cpu=on cryptomgr.notests"
)


class GuestError(Exception):
    """The guest's parts cannot be had; the text has the evidence."""


@dataclass(frozen=True)
class Guest:
    """Files that QEMU boots; everybody can read them."""

    kernel: Path
    initrd: Path

    @classmethod
    def make(cls, directory: Path = LAB / "guest") -> Guest:
        """Make the guest in *directory*; the kernel comes out of the cache or the archive.

        :raise GuestError: the package cannot be fetched or has not what is needed.
        """
        unpacked = fetch_kernel()
        directory.mkdir(parents=True, exist_ok=True)
        kernel = directory / "vmlinuz"
        shutil.copyfile(next((unpacked / "boot").glob("vmlinuz-*")), kernel)
        initrd = directory / "initrd"
        initrd.write_bytes(_base_archive(unpacked))
        for path in (kernel, initrd):
            path.chmod(0o644)
        return cls(kernel, initrd)

    def with_script(self, script: str, path: Path) -> Guest:
        """The same guest with *script* to run, its initramfs written to *path*."""
        entry = Entry.file("script", script.encode())
        path.write_bytes(self.initrd.read_bytes() + archive([entry]))
        path.chmod(0o644)
        return Guest(self.kernel, path)


def _base_archive(unpacked: Path) -> bytes:
    """busybox under its every name, /init and the modules in the order in which they load."""
    applets = subprocess.run([BUSYBOX, "--list"], stdout=subprocess.PIPE, text=True, check=True)
    entries = [Entry.directory(name) for name in ("bin", "dev", "etc", "proc", "sys", "modules")]
    # glibc, linked statically, crashes in getaddrinfo() without.
    entries.append(Entry.file("etc/nsswitch.conf", b"hosts: files\n"))
    entries.append(Entry.file("etc/hosts", b"127.0.0.1 localhost\n"))
    entries.append(Entry.file("bin/busybox", BUSYBOX.read_bytes(), executable=True))
    for applet in applets.stdout.split():
        if applet != "busybox":
            entries.append(Entry.link(f"bin/{applet}", "busybox"))
    init = Path(__file__).with_name("guest-init.sh").read_bytes()
    entries.append(Entry.file("init", init, executable=True))
    for number, content in enumerate(_modules(unpacked)):
        entries.append(Entry.file(f"modules/{number:02}.ko", content))
    return archive(entries)


def _modules(unpacked: Path) -> list[bytes]:
    """:data:`MODULES` and what they need, uncompressed, each after its dependencies."""
    files = {}
    for path in unpacked.rglob("*.ko*"):  # below lib in Debian 12, usr/lib in 13
        files[path.name.partition(".")[0].replace("-", "_")] = path
    if not files:
        raise GuestError(f"{unpacked} has no modules")
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in loaded or name not in files:  # not there: built in
            return
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        # .modinfo is a list of NAME=VALUE strings, each ended by a zero byte.
        match = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in match[1].decode().split(",") if match else ():
            load(needed.replace("-", "_"))
        loaded[name] = content

    for name in MODULES:
        load(name.replace("-", "_"))
    return list(loaded.values())


# The kernel's package


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "debian")
    return home / "sessionvirt-dev" / suite


def cached_kernel() -> Path | None:
    """What :func:`fetch_kernel` fetched before; it is used for good, whatever is the newest now."""
    return next(iter(sorted(_cache().glob("linux-image-*"))), None)


def fetch_kernel() -> Path:
    """The directory of an unpacked kernel package: boot/vmlinuz-*, and modules.

    :raise GuestError: apt has no such package, or cannot fetch it.
    """
    if known := cached_kernel():
        return known
    cache = _cache()
    package = _kernel_package()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        work = Path(name)
        _run(["apt-get", "download", package], work)
        archive_file = next(work.glob("*.deb"))
        _run(["dpkg-deb", "--extract", str(archive_file), "unpacked"], work)
        # linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb; complete or not there at all.
        target = cache / archive_file.stem
        (work / "unpacked").rename(target)
    return target


def _kernel_package() -> str:
    for metapackage in METAPACKAGES:
        listing = _run(["apt-cache", "depends", metapackage], Path("/"))
        if match := re.search(r"Depends: (linux-image-\S+)", listing):
            return match[1]
    raise GuestError(f"apt knows none of {', '.join(METAPACKAGES)}: is apt-get update needed?")


def _run(argv: list[str], directory: Path) -> str:
    done = subprocess.run(
        argv,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise GuestError(f"{' '.join(argv)}: status {done.returncode}\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(fetch_kernel())
    except GuestError as error:
        sys.exit(str(error))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The test host's image and its kernel; made once, then kept.

All of it lies below ``~/.cache/sessionvirt-dev/host/RECIPE``, where RECIPE is the recipe's hash; a
half-made one is called ``*.part`` and is made anew. mmdebstrap needs root and the archive, nothing
else does. What was built of another recipe and not used for a fortnight is removed.

It never changes the machine: no package is installed outside the root file systems that it makes.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from host import recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["BuildError", "Built", "bootstrap", "built", "cache", "remove"]

HERE = Path(__file__).resolve().parent

#: A sparse file's size; the host's own disk has room for what tests install.
IMAGE_BYTES = 6 << 30
KEEP_SECONDS = 14 * 86400
TAIL = 20


class BuildError(Exception):
    """Something cannot be made; the text ends with the tool's last lines."""


@dataclass(frozen=True)
class Built:
    """What :class:`host.machine.Machine` boots; never written to.

    :param x2apic: the kernel can reach a local APIC by MSR.
    """

    image: Path
    kernel: Path
    initrd: Path | None
    x2apic: bool = True


def cache() -> Path:
    """Where all of it lies."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "sessionvirt-dev/host"


def built(say: Callable[[str], None]) -> Built:
    """Everything, made where it is not there yet.

    :param say: is told what takes long, one sentence at a time.
    :raise BuildError: a tool is missing or failed.
    """
    directory = cache() / recipe.digest()
    if not directory.exists():
        if os.geteuid():
            raise BuildError("building the test host needs root")
        cache().mkdir(parents=True, exist_ok=True)
        with (cache() / "lock").open("w") as lock:
            # One builds; who comes meanwhile finds it built.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not directory.exists():
                _build(directory, say)
    os.utime(directory)
    _forget_old(directory)
    return Built(directory / "disk.img", directory / "vmlinuz", directory / "initrd")


def _build(directory: Path, say: Callable[[str], None]) -> None:
    part = directory.with_suffix(".part")
    remove(part)
    part.mkdir(parents=True)
    root = part / "root"
    say(f"test host: a {recipe.SUITE} root with {len(recipe.PACKAGES)} packages and what they need")
    (part / "archive/partial").mkdir(parents=True)
    # A hook sees apt as mmdebstrap set it up: the suite's archive, and this machine's way to it.
    apt = 'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get'
    where = f"-o Dir::Cache::archives={part}/archive"
    wanted = " ".join(recipe.MIRRORED)
    hook = f"{apt} install --yes --quiet --download-only --no-install-recommends {where} {wanted}"
    bootstrap(root, recipe.PACKAGES, "minbase", f"--customize-hook={hook}")
    say("test host: its files, accounts and boot image")
    _furnish(root, part / "archive")
    for name, target in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        shutil.copy(next((root / "boot").glob(target)), part / name)
    say("test host: its disk")
    _run(
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-L",
        "testhost",
        "-d",
        root,
        part / "disk.img",
        f"{IMAGE_BYTES >> 10}k",
    )
    remove(root)
    part.rename(directory)


def bootstrap(root: Path, packages: Sequence[str], variant: str, *options: str) -> None:
    """A root file system of the recipe's suite by mmdebstrap.

    :raise BuildError: mmdebstrap is not there or failed.
    """
    if not shutil.which("mmdebstrap"):
        raise BuildError("mmdebstrap is not installed; ./dev host installs it")
    _run(
        "mmdebstrap",
        "--quiet",
        f"--variant={variant}",
        '--aptopt=APT::Install-Recommends "false"',
        f"--include={','.join(packages)}",
        *options,
        recipe.SUITE,
        root,
    )


def _furnish(root: Path, archive: Path) -> None:
    """Make a plain Debian the host of the recipe."""
    for name, text in recipe.FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
    for name, target in recipe.LINKS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    agent = root / "usr/local/lib/testhost/host"
    agent.mkdir(parents=True)
    (agent / "__init__.py").touch()
    for name in ("agent.py", "channel.py"):
        shutil.copy(HERE / name, agent)
    _archive(root / "srv/archive", archive)
    for account in recipe.ACCOUNTS:
        words = ["useradd", "--create-home", "--shell=/bin/bash", f"--uid={account.uid}"]
        if account.groups:
            words.append(f"--groups={','.join(account.groups)}")
        _run("chroot", root, *words, account.name)
        _run("chroot", root, "chpasswd", text=f"{account.name}:{account.password}\n")
    _run("chroot", root, "passwd", "--delete", "root")
    _run("chroot", root, "systemctl", "disable", "--quiet", *recipe.DISABLED)
    _run("chroot", root, "update-initramfs", "-u")
    _run("chroot", root, "apt-get", "update", "-qq")
    # Each boot of a fresh disk would otherwise be the first, with a machine id of its own.
    (root / "etc/machine-id").write_text(sha256(recipe.digest().encode()).hexdigest()[:32] + "\n")
    # systemd-update-done(8): nothing was changed since, so no cache need be made anew at boot.
    for name in ("etc/.updated", "var/.updated"):
        (root / name).touch()


def _archive(directory: Path, packages: Path) -> None:
    """An archive that apt can read: the packages and their index."""
    directory.mkdir(parents=True)
    paragraphs = []
    for package in sorted(packages.glob("*.deb")):
        shutil.copy(package, directory)
        control = subprocess.run(
            ["dpkg-deb", "--field", package], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        content = package.read_bytes()
        paragraphs.append(
            f"{control.rstrip()}\nFilename: ./{package.name}\nSize: {len(content)}\n"
            f"SHA256: {sha256(content).hexdigest()}\n"
        )
    (directory / "Packages").write_text("\n".join(paragraphs), encoding="utf-8")


# Small things


def _run(*argv: str | Path, text: str = "") -> None:
    environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        [str(word) for word in argv],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode:
        tail = "\n  ".join(done.stdout.splitlines()[-TAIL:])
        raise BuildError(f"{argv[0]} failed with {done.returncode}:\n  {tail}")


def remove(path: Path) -> None:
    """A tree, and nothing that is mounted in it."""
    if path.exists():
        subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)


def _forget_old(current: Path) -> None:
    for path in cache().glob("*"):
        ours = re.fullmatch(r"[0-9a-f]{16}(\.part)?", path.name)
        if ours and path != current and time.time() - path.stat().st_mtime > KEEP_SECONDS:
            remove(path)

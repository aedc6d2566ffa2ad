# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which kernel the test host boots: Debian's own, or one with IOMMUFD and VFIO_DEVICE_CDEV.

Debian's kernels are built without CONFIG_IOMMUFD; Fedora's, Arch's and Ubuntu's have it. The other
one is Debian's source with ``kernel.fragment`` and everything built in: no initrd, no modules. It
is taken from where somebody has put it beforehand, else built once, in a root file system of its
own, and kept beside the image: eleven minutes on two cores.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import time
from collections import deque
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from host import recipe
from host.build import BuildError, bootstrap, cache, remove
from lab.stage import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from host.build import Built

__all__ = ["KERNELS", "chosen", "ready"]

KERNELS = ("debian", "iommufd")

#: Made beforehand, beside the checkout.
READY = ROOT.parent / "shared/testhost/bzImage-6.12-iommufd"

FRAGMENT = Path(__file__).with_name("kernel.fragment")
SOURCE = "linux-source-6.12"
#: The source, and what Documentation/process/changes.rst of it says is needed.
PACKAGES = (
    *(SOURCE, "bc", "bison", "flex", "gcc", "kmod", "libc6-dev", "libelf-dev", "libssl-dev"),
    *("make", "perl", "xz-utils"),
)
#: In the source's directory, in the root file system that they were unpacked in.
CONFIGURE = """\
set -e
mkdir -p /build
tar -xf /usr/src/{source}.tar.xz -C /build --strip-components=1
cd /build
make --silent x86_64_defconfig kvm_guest.config
./scripts/kconfig/merge_config.sh -m .config /kernel.fragment
make --silent olddefconfig
"""
COMPILE = "cd /build && exec make -j$(nproc) bzImage"

REPORT_SECONDS = 10.0
TAIL = 20


def chosen(built: Built, name: str, say: Callable[[str], None]) -> Built:
    """*built* with the kernel of that name.

    :raise BuildError: it is not there and cannot be built.
    """
    if name == "debian":
        return built
    return replace(built, kernel=ready() or _made(say), initrd=None, x2apic=False)


def ready() -> Path | None:
    """The one with IOMMUFD, where somebody has made it already."""
    return next((path for path in (READY, _cached()) if path.exists()), None)


def _cached() -> Path:
    words = (recipe.SUITE, *PACKAGES, CONFIGURE, COMPILE, FRAGMENT.read_text(encoding="utf-8"))
    digest = sha256("\n".join(words).encode()).hexdigest()[:16]
    return cache() / f"kernel-{digest}"


def _made(say: Callable[[str], None]) -> Path:
    """The one in the cache, built where it is not there yet."""
    kernel = _cached()
    if not kernel.exists():
        if os.geteuid():
            raise BuildError("building the test host's kernel needs root")
        cache().mkdir(parents=True, exist_ok=True)
        with (cache() / "kernel-lock").open("w") as lock:
            # One builds; who comes meanwhile finds it built.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kernel.exists():
                _build(kernel, say)
    return kernel


def _build(kernel: Path, say: Callable[[str], None]) -> None:
    root = kernel.with_suffix(".part")
    remove(root)
    say(f"test host: {SOURCE} and a compiler, in a root of their own")
    bootstrap(root, PACKAGES, "minbase")
    (root / "kernel.fragment").write_bytes(FRAGMENT.read_bytes())
    _make(root, CONFIGURE.format(source=SOURCE), say)
    _check((root / "build/.config").read_text(encoding="utf-8"))
    _make(root, COMPILE, say)
    (root / "build/arch/x86/boot/bzImage").rename(kernel)
    remove(root)


def _check(configuration: str) -> None:
    """Kconfig drops without a word what depends on something that is not there.

    :raise BuildError: it did.
    """
    lines = set(configuration.splitlines())
    for wanted in re.findall(r"^CONFIG_\w+=\w$", FRAGMENT.read_text(encoding="utf-8"), re.M):
        name, _, value = wanted.partition("=")
        there = any(line.startswith(f"{name}=") for line in lines) if value == "n" else False
        if there or (value != "n" and wanted not in lines):
            raise BuildError(f"the kernel of the test host would be built without {wanted}")


def _make(root: Path, script: str, say: Callable[[str], None]) -> None:
    """Run a script in the root, and say from time to time how far it has come."""
    began = said = time.monotonic()
    tail: deque[str] = deque(maxlen=TAIL)
    compiled = 0
    with subprocess.Popen(
        ["chroot", root, "/bin/sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        text=True,
        errors="replace",
    ) as make:
        assert make.stdout is not None
        for line in make.stdout:
            tail.append(line.rstrip())
            compiled += line.startswith("  CC")
            if (now := time.monotonic()) - said > REPORT_SECONDS:
                said = now
                say(f"test host: its kernel: {compiled} files compiled in {now - began:.0f} s")
    if make.returncode:
        raise BuildError("the kernel of the test host: make failed\n  " + "\n  ".join(tail))

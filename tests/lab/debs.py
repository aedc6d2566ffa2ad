# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian packages of the checkout, built once for each state of it.

The state is that of the files which git tracks, tests left out, as they are now. They are copied to
a temporary directory, so that a build leaves nothing in the checkout, and built there by
``dpkg-buildpackage`` and debian/ as anybody would. What lintian says about the result is a failure.
The same state gives the same bytes: every time stamp is that of the last commit.

A build needs one file from outside, qemu.qmp, which Debian does not have: :func:`fetch` gets it
with pip and its hash, once. The build itself touches no network.

As a program: ``python -m lab.debs [--fetch | --output DIR]``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.stage import ROOT

__all__ = ["DebError", "Source", "build", "built", "cached_vendored", "fetch", "lint"]

#: What is not in the repository, as sha256sum writes it.
SUMS = ROOT / "debian/vendor/SHA256SUMS"

#: Nothing of it is in a package, and nothing of the build looks at it.
NOT_PACKAGED = ("tests", ".ci")

#: So many states are kept.
KEPT = 6

#: Debian's programs alone, whatever environment the tests have.
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "PYTHONNOUSERSITE": "1",
    "HOME": "/nonexistent",
}


class DebError(Exception):
    """There are no packages; the text has the evidence."""


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "sessionvirt-dev"


# What comes from outside


def _vendored() -> tuple[str, str]:
    """Hash and name of the one file."""
    digest, name = SUMS.read_text().split()
    return digest, name


def cached_vendored() -> Path | None:
    """What :func:`fetch` fetched before."""
    digest, name = _vendored()
    path = _cache() / "vendor" / digest[:16] / name
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
        return path
    return None


def fetch() -> Path:
    """The wheel of qemu.qmp, by the pip of this interpreter.

    :raise DebError: pip cannot get it, or gets another.
    """
    if known := cached_vendored():
        return known
    digest, name = _vendored()
    # qemu_qmp-0.0.6-py3-none-any.whl
    project, version = name.split("-")[:2]
    cache = _cache() / "vendor"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        work = Path(directory)
        wanted = work / "requirements.txt"
        wanted.write_text(f"{project}=={version} --hash=sha256:{digest}\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--progress-bar=off"]
        _run([*pip, *options, "--dest", str(work), "--requirement", str(wanted)], work, None)
        target = cache / digest[:16]
        target.mkdir(exist_ok=True)
        (work / name).rename(target / name)
    return target / name


# The state of the checkout


def _git(*arguments: str) -> str:
    # A checkout may belong to the user who called sudo.
    return _run(["git", "-c", "safe.directory=*", *arguments], ROOT, None)


@dataclass(frozen=True)
class Source:
    """What is built, taken from the checkout at one moment; others may go on editing.

    :param tree: a copy of the files that git tracks and a package may hold.
    :param epoch: when something of them was last committed, in seconds.
    """

    tree: Path
    epoch: str

    @classmethod
    def take(cls, tree: Path) -> Source:
        """Copy the files to *tree*, which is made.

        :raise DebError: git cannot say which they are.
        """
        scope = ["--", ".", *(f":(exclude){name}" for name in NOT_PACKAGED)]
        for name in _git("ls-files", "-z", *scope).split("\0"):
            if name and (ROOT / name).is_file():
                copy = tree / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, copy)
                copy.chmod(0o755 if os.access(ROOT / name, os.X_OK) else 0o644)
        return cls(tree, _git("log", "-1", "--format=%ct", *scope).strip())

    def state(self, version: str | None) -> str:
        """A name for what would come of it here."""
        release = platform.freedesktop_os_release().get("VERSION_CODENAME", "debian")
        state = hashlib.sha256(repr((release, self.epoch, version)).encode())
        for path in sorted(self.tree.rglob("*")):
            if path.is_file():
                content = hashlib.sha256(path.read_bytes()).digest()
                entry = (str(path.relative_to(self.tree)), path.stat().st_mode & 0o100, content)
                state.update(repr(entry).encode())
        return state.hexdigest()[:16]


# The build


def built(version: str | None = None, source: Source | None = None) -> list[Path]:
    """The packages of the checkout as it is now, built where they are not there yet.

    :param version: another than debian/changelog's, as for a test of an upgrade.
    :param source: what was taken from the checkout before.
    :raise DebError: they cannot be built, or lintian objects.
    """
    cache = _cache() / "debs"
    with tempfile.TemporaryDirectory(prefix="sessionvirt-deb-") as directory:
        if source is None:
            source = Source.take(Path(directory, "source"))
        target = cache / source.state(version)
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True)
            work = Path(directory, "build")
            packages = build(source, work, version)
            lint(source, work)
            _put(packages, target)
            _forget_old(cache)
    return sorted(target.glob("*.deb"))


def build(source: Source, work: Path, version: str | None = None) -> list[Path]:
    """Build in *work*, which is made; lintian is not asked.

    :raise DebError: it failed.
    """
    vendored = cached_vendored()
    if vendored is None:
        raise DebError(f"{_vendored()[1]} is not here; ./dev deb fetches it")
    tree = work / "sessionvirt"
    shutil.copytree(source.tree, tree)
    shutil.copyfile(vendored, tree / "debian/vendor" / vendored.name)
    if version is not None:
        changelog = tree / "debian/changelog"
        text = re.sub(r"\(\S+\)", f"({version})", changelog.read_text(), count=1)
        changelog.write_text(text)
    for path in [tree, *tree.rglob("*")]:
        os.utime(path, (int(source.epoch), int(source.epoch)))
    # -I, -d: what is always expected, a compiler, nothing here has a use for.
    _run(["dpkg-checkbuilddeps", "-I"], tree, source.epoch)
    _run(["dpkg-buildpackage", "-b", "-d", "-us", "-uc"], tree, source.epoch)
    return sorted(work.glob("*.deb"))


def lint(source: Source, work: Path) -> None:
    """Ask lintian about what was built in *work*.

    :raise DebError: an error or a warning that no override argues away.
    """
    (changes,) = work.glob("*.changes")
    options = ("--fail-on=error,warning", "--tag-display-limit=0", "--no-user-dirs")
    _run(["lintian", *options, str(changes)], work, source.epoch)


def _put(packages: list[Path], target: Path) -> None:
    """Have them in *target*, all or none."""
    part = Path(tempfile.mkdtemp(dir=target.parent))
    for package in packages:
        shutil.copyfile(package, part / package.name)
        (part / package.name).chmod(0o644)
    part.chmod(0o755)
    try:
        part.rename(target)
    except OSError:  # somebody else was faster
        shutil.rmtree(part)


def _forget_old(cache: Path) -> None:
    by_age = sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def _run(argv: list[str], directory: Path, epoch: str | None) -> str:
    """Run a program to its end and return what it said.

    :param epoch: of a build: the time for everything that it makes. None: it is no build, and has
        this process's environment, in which pip finds its configuration.
    """
    build = ENVIRONMENT | {"SOURCE_DATE_EPOCH": epoch} if epoch else None
    if build:
        print(argv[0], flush=True)  # for who waits
    done = subprocess.run(
        argv,
        cwd=directory,
        env=build,
        umask=0o022,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise DebError(f"{done.stdout}\n{' '.join(argv[:3])}: status {done.returncode}")
    return done.stdout


def main(arguments: list[str]) -> int:
    """Entry of ``./dev deb``."""
    parser = argparse.ArgumentParser(prog="./dev deb")
    parser.add_argument("--fetch", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.fetch:
            fetch()
            return 0
        packages = built()
    except DebError as error:
        print(error, file=sys.stderr)
        return 1
    parsed.output.mkdir(parents=True, exist_ok=True)
    for package in packages:
        print(shutil.copy(package, parsed.output))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian packages hold the files of the wheel: names and contents; what else, is listed here.

They are built as ``./dev deb`` does, once for a state of the checkout, and unpacked, not installed:
what they do to a machine is tested on one (tests/host).
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import pytest

from lab import debs
from lab.stage import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit

PROGRAMS = ("dh", "dpkg-buildpackage", "dpkg-deb", "git", "lintian")
MODULES = "usr/lib/python3/dist-packages"

#: What the wheel has and the packages have not.
WHEEL_ONLY = {
    "*.dist-info/RECORD": "dpkg has a list of its own, and pip must not remove what dpkg installed",
    "*.dist-info/licenses/*": "the licence is in Debian's copyright file",
}

#: What the packages have and the wheel has not.
PACKAGES_ONLY = {
    "usr/bin/sessionvirt": "an installer makes it from entry_points.txt",
    "usr/share/doc/*/changelog.gz": "policy 12.7",
    "usr/share/doc/*/copyright": "policy 12.5",
    "usr/share/doc/*.rst": "documentation, which a wheel has no place for",
    "usr/share/lintian/overrides/*": "each with its reason",
    "usr/share/python3/runtime.d/*": "compiles the private directory for a new Python",
    "usr/share/sessionvirt/qemu/qmp/*": "qemu.qmp, which Debian has not",
}


@dataclass(frozen=True)
class Entry:
    """One file of a package or of the wheel."""

    package: str
    content: bytes
    mode: int = 0o644
    owner: tuple[str, str] = ("root", "root")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> debs.Source:
    """What everything here is made of: the checkout may change meanwhile."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        sentence = f"needs {', '.join(missing)}: ./dev test installs them"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence, pytrace=False)
        pytest.skip(sentence)
    if debs.cached_vendored() is None and os.environ.get("CI") != "true":
        pytest.skip("needs qemu.qmp: ./dev test fetches it")
    return debs.Source.take(tmp_path_factory.mktemp("source") / "sessionvirt")


@pytest.fixture(scope="module")
def packages(source: debs.Source) -> dict[str, Path]:
    """The .deb files, by package."""
    return {path.name.partition("_")[0]: path for path in debs.built(source=source)}


def members(deb: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The files and directories of a package's data."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as child:
        stream: IO[bytes] | None = child.stdout
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                file = archive.extractfile(info) if info.isreg() else None
                yield info, file.read() if file else b""


@pytest.fixture(scope="module")
def shipped(packages: dict[str, Path]) -> dict[str, Entry]:
    """Every file of all packages, by its path below /."""
    found: dict[str, Entry] = {}
    for package, deb in packages.items():
        for info, content in members(deb):
            assert info.isreg() or info.isdir(), f"{info.name} is neither file nor directory"
            if info.isreg():
                name = info.name.removeprefix("./")
                assert name not in found, f"{name} is in {package} and {found[name].package}"
                found[name] = Entry(package, content, info.mode, (info.uname, info.gname))
    return found


@pytest.fixture(scope="module")
def wheel(source: debs.Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The contents of the wheel by where an installation below /usr puts them.

    Made by the hatchling and the docutils that made the packages.
    """
    directory = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build as b; b.build_wheel(sys.argv[1])"
    python = ["/usr/bin/python3", "-IB", "-c", build, str(directory)]
    subprocess.run(python, cwd=source.tree, stdout=subprocess.DEVNULL, check=True)
    (path,) = directory.glob("*.whl")
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            _, data, below = name.partition(".data/data/")
            found[f"usr/{below}" if data else f"{MODULES}/{name}"] = archive.read(name)
    return found


def listed(name: str, table: dict[str, str]) -> bool:
    """Whether the file is an exception that the table argues for."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in table)


def test_the_wheel_and_the_packages_have_the_same_files(
    wheel: dict[str, bytes], shipped: dict[str, Entry]
) -> None:
    plain = {
        name.removesuffix(".gz") if name.startswith("usr/share/man/") else name for name in shipped
    }
    assert {one for one in wheel if not listed(one, WHEEL_ONLY)} - plain == set()
    assert {one for one in plain if not listed(one, PACKAGES_ONLY)} - wheel.keys() == set()


def test_they_have_the_same_contents(wheel: dict[str, bytes], shipped: dict[str, Entry]) -> None:
    differ = []
    for name, content in wheel.items():
        if listed(name, WHEEL_ONLY):
            continue
        if name.startswith("usr/share/man/"):
            there = gzip.decompress(shipped[f"{name}.gz"].content)
        else:
            there = shipped[name].content
        if there != content:
            differ.append(name)
    assert differ == []


def test_every_exception_is_needed(wheel: dict[str, bytes], shipped: dict[str, Entry]) -> None:
    for table, names in ((WHEEL_ONLY, wheel), (PACKAGES_ONLY, shipped)):
        unused = [one for one in table if not fnmatch.filter(names, one)]
        assert unused == []


def test_the_documents_are_those_of_the_checkout(
    shipped: dict[str, Entry], source: debs.Source
) -> None:
    pages = {name: one for name, one in shipped.items() if name.endswith(".rst")}
    assert {"usr/share/doc/sessionvirt/README.rst"} <= pages.keys()
    for name, one in pages.items():
        below = re.sub(r"^usr/share/doc/[^/]+/", "", name)
        places = [source.tree / below, source.tree / "docs" / below]
        (page,) = [place for place in places if place.exists()]
        assert one.content == page.read_bytes(), name


def test_each_half_is_in_its_package(shipped: dict[str, Entry]) -> None:
    broker = {name for name, one in shipped.items() if one.package == "sessionvirt-broker"}
    session = {name for name, one in shipped.items() if one.package == "sessionvirt"}
    assert {name.split("/")[4] for name in broker if name.startswith(MODULES)} == {
        "sessionvirt_broker"
    }
    assert not [name for name in session if "sessionvirt_broker" in name]
    # What gives rights comes with the broker alone.
    rights = ("dbus-1", "polkit", "systemd", "sysusers", "udev")
    assert not [name for name in session if any(word in name for word in rights)]


def test_everything_belongs_to_root_and_nobody_else_may_write(packages: dict[str, Path]) -> None:
    for deb in packages.values():
        for info, _ in members(deb):
            runs = info.isdir() or info.name.startswith("./usr/bin/")
            runs = runs or info.name.endswith(".rtupdate")
            assert (info.uname, info.gname) == ("root", "root"), info.name
            assert stat.S_IMODE(info.mode) == (0o755 if runs else 0o644), info.name


def test_the_command_is_the_entry_point(shipped: dict[str, Entry]) -> None:
    text = shipped["usr/bin/sessionvirt"].content.decode()
    assert re.match(r"#! ?/usr/bin/python3\n", text)
    with (ROOT / "pyproject.toml").open("rb") as file:
        entry = tomllib.load(file)["project"]["scripts"]["sessionvirt"]
    module, _, function = entry.partition(":")
    assert f"from {module} import {function}\n" in text


# qemu.qmp


def test_qemu_qmp_is_the_one_that_is_pinned_and_works_alone(
    shipped: dict[str, Entry], tmp_path: Path
) -> None:
    pinned = debs.cached_vendored()
    assert pinned is not None
    private = "usr/share/sessionvirt/"
    with zipfile.ZipFile(pinned) as archive:
        for name, one in shipped.items():
            if name.startswith(private):
                assert one.content == archive.read(name.removeprefix(private)), name
                path = tmp_path / name.removeprefix(private)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(one.content)
        programs = {name for name in archive.namelist() if re.search(r"legacy|qmp_shell|tui", name)}
    assert programs
    assert not any(private + name in shipped for name in programs)
    use = "import sys; sys.path.append(sys.argv[1]); from qemu.qmp import QMPClient, EventListener"
    subprocess.run(["/usr/bin/python3", "-ISB", "-c", use, str(tmp_path)], check=True)


def test_another_qemu_qmp_than_the_pinned_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, name = debs.SUMS.read_text().split()
    path = tmp_path / "sessionvirt-dev/vendor" / digest[:16] / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert debs.cached_vendored() is None
    path.write_bytes(b"")
    monkeypatch.setattr(debs, "_vendored", lambda: (hashlib.sha256(b"").hexdigest(), name))
    path.parent.rename(path.parent.with_name(hashlib.sha256(b"").hexdigest()[:16]))
    assert debs.cached_vendored() is not None


def test_the_version_that_is_pinned_is_the_documented_one() -> None:
    version = debs.SUMS.read_text().split("qemu_qmp-")[1].split("-")[0]
    assert f"``/usr/share/sessionvirt`` ({version}," in (ROOT / "docs/dependencies.rst").read_text()


# What a package says of itself


def field(deb: Path, name: str) -> str:
    done = subprocess.run(["dpkg-deb", "--field", deb, name], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().strip()


def test_one_package_is_for_every_machine(packages: dict[str, Path]) -> None:
    assert set(packages) == {"sessionvirt", "sessionvirt-broker", "sessionvirt-doc"}
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    for deb in packages.values():
        assert field(deb, "Architecture") == "all"
        assert field(deb, "Version") == version


def test_nothing_of_the_builders_release_is_in_the_dependencies(packages: dict[str, Path]) -> None:
    """debhelper writes what it likes of its own release; what it adds is written out here."""
    for package, added in (
        ("sessionvirt", ["python3:any"]),
        (
            "sessionvirt-broker",
            ["systemd | systemd-standalone-sysusers | systemd-sysusers", "python3:any"],
        ),
        ("sessionvirt-doc", []),
    ):
        text = (ROOT / "debian/control").read_text()
        paragraph = text.partition(f"Package: {package}\n")[2].partition("\n\n")[0]
        match = re.search(r"^Depends:((?:.*\n )*.*)$", paragraph, re.MULTILINE)
        assert match is not None
        written = [one.strip() for one in match[1].split(",") if one.strip()]
        depends = [one for one in written if not one.startswith("${")] + added
        assert sorted(filter(None, field(packages[package], "Depends").split(", "))) == sorted(
            depends
        )


@pytest.mark.parametrize("script", ["preinst", "postinst", "prerm", "postrm"])
def test_no_script_starts_or_enables_anything_by_debhelper(
    script: str, packages: dict[str, Path], tmp_path: Path
) -> None:
    """What units need is written in debian/sessionvirt-broker.*, argued there, and nowhere else."""
    for package, deb in packages.items():
        subprocess.run(["dpkg-deb", "--control", deb, tmp_path / package], check=True)
        path = tmp_path / package / script
        if not path.exists():
            continue
        subprocess.run(["sh", "-n", path], check=True)
        added = re.findall(
            r"# Automatically added by.*?# End automatically", path.read_text(), re.S
        )
        generated = "".join(added)
        words = set(re.findall(r"systemctl|deb-systemd-\w+|systemd-\w+|py3\w+|adduser", generated))
        assert words <= {"systemd-sysusers", "py3compile", "py3clean"}


def test_a_second_build_gives_the_same_bytes(
    packages: dict[str, Path], source: debs.Source, tmp_path: Path
) -> None:
    again = debs.build(source, tmp_path / "again")
    differ = [
        one.name
        for one in again
        if one.read_bytes() != packages[one.name.partition("_")[0]].read_bytes()
    ]
    assert differ == []
    assert len(again) == len(packages)

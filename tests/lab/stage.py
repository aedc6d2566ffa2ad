# SPDX-License-Identifier: LGPL-2.1-or-later
"""Install the project below a prefix, the way a distribution's package would below /usr.

The data files follow ``[tool.hatch.build.targets.wheel.shared-data]`` of pyproject.toml and the two
packages its ``packages``, so that what is tested is what would be shipped. Nothing points back to
the checkout: an ordinary user, who cannot read a checkout in /root, can run it.

As a program: ``python -m lab.stage DIR [pypi|debian]``.
"""

from __future__ import annotations

import compileall
import shutil
import sys
import tomllib
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

__all__ = ["ROOT", "Flavour", "missing_files", "stage"]

#: The checkout.
ROOT = Path(__file__).resolve().parent.parent.parent

#: What the privileged side and the command use that is not of the standard library.
LIBRARIES = ("dbus_fast", "pyroute2", "qemu.qmp")

#: Debian's own Python, which runs what is installed.
DEBIAN_PYTHON = "python3"

_COMMAND = f"""\
#!/usr/bin/{DEBIAN_PYTHON}
import sys

from sessionvirt.cli import main

sys.exit(main())
"""


class Flavour(StrEnum):
    """Whose libraries the installed project runs with."""

    #: PyPI's newest dbus-fast, pyroute2 and qemu.qmp, out of the virtual environment.
    PYPI = "pypi"
    #: Debian's python3-dbus-fast and python3-pyroute2; only qemu.qmp comes along.
    DEBIAN = "debian"


def _wheel_table() -> tuple[list[str], dict[str, str]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    return wheel["packages"], wheel["shared-data"]


def missing_files() -> list[str]:
    """What the table names and the checkout has not."""
    return [source for source in _wheel_table()[1] if not (ROOT / source).exists()]


def _library(name: str) -> Path:
    """Where the running interpreter imports *name* from: its directory."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{name} is not installed; ./dev installs it")
    return Path(next(iter(spec.submodule_search_locations)))


def stage(prefix: Path, flavour: Flavour = Flavour.PYPI) -> list[Path]:
    """Install below *prefix*, which is made where it is not there.

    :return: the data files that were installed.
    :raise FileNotFoundError: pyproject.toml names a file that the checkout has not.
    :raise ModuleNotFoundError: a library that *flavour* wants is not installed here.
    """
    sources, data = _wheel_table()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = prefix / f"lib/python{version}/dist-packages"
    packages.mkdir(parents=True, exist_ok=True)
    libraries = LIBRARIES if flavour is Flavour.PYPI else ("qemu.qmp",)
    for package in sources:
        shutil.copytree(ROOT / package, packages / Path(package).name)
    for library in libraries:
        shutil.copytree(_library(library), packages / library.replace(".", "/"))
    # As a package's installation does. What was compiled where it came from is taken as it is.
    compileall.compile_dir(packages, quiet=1, workers=1)
    command = prefix / "bin/sessionvirt"
    command.parent.mkdir(exist_ok=True)
    command.write_text(_COMMAND)
    command.chmod(0o755)
    installed = []
    for source, target in data.items():
        path = prefix / target
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / source, path)
        path.chmod(0o644)
        installed.append(path)
    # A checkout of umask 077 is still readable by everybody once it is installed.
    for path in [prefix, *prefix.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path == command else 0o644)
    return installed


def main(arguments: list[str]) -> int:
    """Entry of ``./dev stage``."""
    prefix = Path(arguments[0]).resolve()
    if prefix.exists() and (not prefix.is_dir() or any(prefix.iterdir())):
        # It sets the mode of everything below: in a directory that is in use, of others' files.
        print(f"stage: {prefix} is not an empty directory", file=sys.stderr)
        return 2
    installed = stage(prefix, Flavour(arguments[1]) if arguments[1:] else Flavour.PYPI)
    print(f"{len(installed)} data files, the packages and bin/sessionvirt below {prefix}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

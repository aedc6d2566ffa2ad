# SPDX-License-Identifier: LGPL-2.1-or-later
"""Put the checkout into a running test host: its packages by apt, its tests, the tiny guest.

The packages come from ``lab.debs`` and are installed as an administrator would install them, by
apt, with maintainer scripts, while the host runs. What they depend on is in the host's own archive.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lab import debs
from lab.guest import Guest
from lab.stage import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from host.connection import Connection

__all__ = ["GUEST", "PACKAGES", "TESTS", "furnish", "module", "put_tests"]

#: Where things are in the host. The tests have the names that they have in the checkout.
PACKAGES = "/srv/packages"
TESTS = "/srv/sessionvirt"
GUEST = "/srv/guest"

#: What the tests inside import or start, from the checkout.
PARTS = ("tests/host", "tests/lab", "README.rst", "pyproject.toml")


def furnish(host: Connection, say: Callable[[str], None]) -> None:
    """All of it.

    :raise lab.debs.DebError: the packages cannot be built.
    :raise HostError: apt refuses them, or the host is gone.
    """
    say("building the packages")
    packages = debs.built()
    say("copying packages, tests and the tiny guest into the test host")
    with tempfile.TemporaryDirectory() as name:
        guest = Guest.make(Path(name))
        host.put({f"{GUEST}/vmlinuz": guest.kernel, f"{GUEST}/initrd": guest.initrd})
    host.put({f"{PACKAGES}/{package.name}": package for package in packages})
    put_tests(host)
    say(f"installing {len(packages)} packages with apt")
    names = [f"{PACKAGES}/{package.name}" for package in packages]
    host.run(["apt-get", "install", "--yes", "--quiet", *names], timeout=600)


def put_tests(host: Connection) -> None:
    """The tests as they are in the checkout now."""
    host.run(["rm", "-rf", TESTS])
    host.put({f"{TESTS}/{part}": ROOT / part for part in PARTS})


def module(name: str, *arguments: str) -> list[str]:
    """The argv that runs a module of the tests in the host; no path of theirs is its children's."""
    program = f"import runpy, sys; sys.path[:0] = ['{TESTS}/tests']; "
    program += f"runpy.run_module('{name}', run_name='__main__')"
    return ["python3", "-B", "-c", program, *arguments]

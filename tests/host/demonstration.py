# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the demos that take place in the test host have in common: the host, and how they end."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from host import emulator, install, kernel, machine
from host.build import BuildError, built
from host.connection import HostError
from lab.debs import DebError
from lab.guest import GuestError
from sessionvirt.host.kvm import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from host.connection import Connection
    from lab.report import Report

__all__ = ["furnished", "main"]


@contextlib.contextmanager
def furnished(report: Report) -> Iterator[Connection]:
    """A test host with the packages of this checkout, built where there is none."""
    parts = (
        kernel.chosen(built(report.note), "debian", report.note),
        emulator.emulator(report.note),
    )
    with (
        machine.boot(parts, "demo", report.note, kvm=probe().usable) as one,
        one.connect() as host,
    ):
        install.furnish(host, report.note)
        yield host


def main(perform: Callable[[], int], option: str) -> int:
    """The exit status of a demo.

    :param option: of ``./dev demo``.
    """
    if os.geteuid():
        print(f"demo: needs root; ./dev demo {option} gets it through sudo", file=sys.stderr)
        return 1
    try:
        return perform()
    except (BuildError, DebError, GuestError, HostError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev demo --pci``: a PCI device of the host goes to an ordinary user's guest, and comes back.

In the test host, a Debian 13 with systemd and an emulated IOMMU, which is built where it is not
there, booted for this and gone afterwards; this machine is not changed. The packages of this
checkout are installed in it by apt. The guest is emulated in an emulated machine: a minute.

Exit status 0: everything that is printed as "ok" or "FAILED" was "ok". 1: something was not.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from host import emulator, install, kernel, machine
from host.build import BuildError, built
from host.connection import HostError
from lab.debs import DebError
from lab.guest import GuestError
from lab.report import Report, Step
from sessionvirt.host.kvm import probe

if TYPE_CHECKING:
    from host.connection import Connection


def perform() -> int:
    """The whole demo; its exit status."""
    report = Report()
    print(report.paint("sessionvirt demo: a PCI device", 1), flush=True)
    parts = (
        kernel.chosen(built(report.note), "debian", report.note),
        emulator.emulator(report.note),
    )
    with (
        machine.boot(parts, "demo", report.note, kvm=probe().usable) as one,
        one.connect() as host,
    ):
        install.furnish(host, report.note)
        for step in ("look", "plan", "guest", "afterwards"):
            report.tell(inside(host, step))
    report.total()
    return 1 if report.failed or not report.held else 0


def inside(host: Connection, step: str) -> Step:
    """One step of ``host.inside.hostdev_demo``."""
    done = host.run(install.module("host.inside.hostdev_demo", step), timeout=400)
    return Step(**json.loads(done.stdout))


def main() -> int:
    if os.geteuid():
        print("demo: needs root; ./dev demo --pci gets it through sudo", file=sys.stderr)
        return 1
    try:
        return perform()
    except (BuildError, DebError, GuestError, HostError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev demo --pci``: a PCI device of the host goes to an ordinary user's guest, and comes back.

In the test host, a Debian 13 with systemd and an emulated IOMMU, which is built where it is not
there, booted for this and gone afterwards; this machine is not changed. The packages of this
checkout are installed in it by apt. The guest is emulated in an emulated machine: a minute.

Exit status 0: everything that is printed as "ok" or "FAILED" was "ok". 1: something was not.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from host import install
from host.demonstration import furnished, main
from lab.report import Report, Step

if TYPE_CHECKING:
    from host.connection import Connection


def perform() -> int:
    """The whole demo; its exit status."""
    report = Report()
    print(report.paint("sessionvirt demo: a PCI device", 1), flush=True)
    with furnished(report) as host:
        for step in ("look", "plan", "guest", "afterwards"):
            report.tell(inside(host, step))
    report.total()
    return 1 if report.failed or not report.held else 0


def inside(host: Connection, step: str) -> Step:
    """One step of ``host.inside.hostdev_demo``."""
    done = host.run(install.module("host.inside.hostdev_demo", step), timeout=400)
    return Step(**json.loads(done.stdout))


if __name__ == "__main__":
    sys.exit(main(perform, "--pci"))

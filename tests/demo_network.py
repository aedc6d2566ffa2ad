# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev demo --network``: two users' guests on private and managed networks, a LAN and a VLAN.

Most of it takes place in namespaces on this machine (demo_network_lab.py), which is not changed.
VLANs take a kernel whose bridges filter them; where this machine's has none, that step takes place
in the test host, a Debian 13 that is built where it is not there, booted for this and gone
afterwards.

Exit status 0: everything that is printed as "ok" or "FAILED" was "ok". 1: something was not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from host import install
from host.demonstration import furnished, main
from host.inside.vlan_demo import filters_vlans
from lab.report import Report, Step

LAB = Path(__file__).with_name("demo_network_lab.py")


def perform() -> int:
    """The whole demo; its exit status."""
    report = Report()
    print(report.paint("sessionvirt demo: networks", 1), flush=True)
    report.note(
        "In namespaces of their own, then in a test host where this kernel cannot do VLANs:"
    )
    report.note("this machine is not changed.")
    if not in_lab(report):
        return 1
    if not filters_vlans():
        in_test_host(report)
    report.total()
    return 1 if report.failed else 0


def in_lab(report: Report) -> bool:
    """The part in namespaces, a process of its own: nobody comes back from there.

    :return: whether it came to its end; what held of it is in *report* then.
    """
    reader, writer = os.pipe()
    argv = [sys.executable, str(LAB), "--counts", str(writer)]
    with os.fdopen(reader) as counts, subprocess.Popen(argv, pass_fds=(writer,)):
        os.close(writer)
        told = counts.read()
    if told:
        report.steps, report.held, report.failed = json.loads(told)
    return bool(told)


def in_test_host(report: Report) -> None:
    """The VLAN, where there is a kernel for it."""
    report.note("")
    report.note(f"Bridges of this kernel, {os.uname().release}, cannot filter VLANs: what is next")
    report.note("takes place in the test host.")
    with furnished(report) as host:
        done = host.run(install.module("host.inside.vlan_demo"), timeout=400)
        for step in json.loads(done.stdout):
            report.tell(Step(**step))


if __name__ == "__main__":
    sys.exit(main(perform, "--network"))

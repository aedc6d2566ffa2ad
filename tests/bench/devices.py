# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev bench devices``: what a PCI request costs the broker before anything is done.

On a tree of 200 functions like /sys, which is a file system in memory as /sys is. The kernel's part
(waking a function that sleeps, locks) is not in it.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bench._rows import Row, in_turn, report
from lab.fakesysfs import FakeSysfs
from sessionvirt_broker.config import BUILTIN
from sessionvirt_broker.devices import Devices
from sessionvirt_broker.hostdev import PciKind
from sessionvirt_broker.kind import Owner
from sessionvirt_broker.pcinames import PciNames
from sessionvirt_broker.variants import Variants
from sessionvirt_broker.vfio import Vfio
from sessionvirt_broker.vfiodrivers import Drivers
from sessionvirt_broker.wire import Fields, VmName

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 15
FUNCTIONS, DISKS, GROUP = 200, 20, 8
PCI_IDS = Path("/usr/share/misc/pci.ids")


def address(number: int) -> str:
    return f"0000:{number // 8 + 1:02x}:00.{number % 8}"


def tree(root: Path) -> FakeSysfs:
    """Every slot's functions are a group, as of cards without ACS; disks and mounts on the last."""
    host = FakeSysfs(root)
    for number in range(FUNCTIONS):
        path = host.function(
            address(number), class_code=0x118000, driver="e1000e", group=number // GROUP
        )
        if number >= FUNCTIONS - DISKS:
            disk = host.block(f"sd{chr(97 + number % 26)}{number}", path / "ata1", f"8:{number}")
            host.mount(f"8:{number}", f"/srv/{number}", "ext4", f"/dev/{disk.name}")
    return host


def aliases(root: Path) -> Path:
    """As large as Debian's, with the lines that a kernel with every variant has, and more."""
    lines = [
        f"alias pci:v0000{n:04X}d00000001sv*sd*bc*sc*i* module_{n % 900}" for n in range(30000)
    ]
    lines += [f"alias vfio_pci:v00008086d0000{n:04X}sv*sd*bc*sc*i* a_vfio_pci" for n in range(64)]
    path = root / "modules.alias"
    path.write_text("\n".join([*lines, "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci", ""]))
    return path


def milliseconds(work: Callable[[], object]) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3

    return once


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        root = Path(directory)
        host = tree(root)
        names = PciNames(root / "udev", PCI_IDS)
        drivers = Drivers(Variants(aliases(root)))
        kind = PciKind(host.sys, host.proc, names, drivers, replaceable=False)
        links = SimpleNamespace(addresses=dict, default_routes=frozenset)
        vfio = Vfio(host.sys, root / "dev")
        there: Any = SimpleNamespace(links=links, vfio=vfio, stuck=set())
        configuration = replace(BUILTIN, source="file")
        owner = Owner(1000, VmName("bench"))
        values: dict[str, Any] = {"address": ("s", address(0)), "with_group": ("b", True)}
        request = kind.parse(Fields("requests[0]", values), 0, configuration)
        devices = Devices(host.sys, kind, names, drivers)

        def plan() -> None:
            kind.survey(request, owner, configuration, there)
            for shared in kind.plan(request, owner, configuration, there).shared:
                shared.steps()

        rows = []
        for what, work in (
            (f"Plan of a group of {GROUP}, {FUNCTIONS} functions", plan),
            (f"what the host uses, {FUNCTIONS} functions", lambda: kind.use(there)),
            (
                f"ListDevices, {FUNCTIONS} functions",
                lambda: devices.rows(configuration, there, {}),
            ),
        ):
            ours, _ = in_turn(ROUNDS, milliseconds(work), None)
            rows.append(Row(what, ours, "", None, "ms"))
    report("devices", rows)


if __name__ == "__main__":
    main()

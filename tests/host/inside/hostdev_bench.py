# SPDX-License-Identifier: LGPL-2.1-or-later
"""One card to VFIO and back, by turns: the broker, virsh, and bare writes to sysfs. Prints JSON.

``python3 -m host.inside.hostdev_bench ROUNDS``: milliseconds of each round. All three end when the
driver has the card again; who uses its interface then waits for udev, which is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from host.inside import machines, units
from host.inside.hostdevs import DEVICES, NIC, driver, holding, with_ids
from lab.rawbus import pci

if TYPE_CHECKING:
    from collections.abc import Callable

PROBE = Path("/sys/bus/pci/drivers_probe")


def by_broker(card: str) -> None:
    """Acquire and Release by an ordinary user's connection, with polkit, journal and all checks."""
    with holding("user1", pci(card)) as lease:
        lease.release()


def by_virsh(card: str) -> None:
    """virsh of root: two commands, and libvirt's daemon, which runs."""
    name = "pci_" + card.replace(":", "_").replace(".", "_")
    for words in (["nodedev-detach", name, "--driver", "vfio"], ["nodedev-reattach", name]):
        argv = ["virsh", "--quiet", "--connect", "qemu:///system", *words]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def by_hand(card: str) -> None:
    """The floor: nothing but what the kernel has to do."""
    device = DEVICES / card
    for override in ("vfio-pci\n", "\n"):
        (device / "driver_override").write_text(override)
        (device / "driver/unbind").write_text(card)
        PROBE.write_text(card)


WAYS: dict[str, Callable[[str], None]] = {
    "broker": by_broker, "virsh": by_virsh, "by hand": by_hand,
}  # fmt: skip


def main(rounds: int) -> None:
    card = with_ids(NIC)[0]
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    subprocess.run(["systemctl", "start", "libvirtd.service"], check=True)
    with machines.permitted():
        for number in range(rounds + 1):
            for name, way in WAYS.items():
                subprocess.run(["udevadm", "settle"], check=True)
                began = time.perf_counter()
                way(card)
                took = (time.perf_counter() - began) * 1e3
                assert driver(card) == "e1000e", name
                if number:  # the first loads modules and starts daemons
                    times[name].append(took)
    units.stop()
    print(json.dumps(times))


if __name__ == "__main__":
    main(int(sys.argv[1]))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev bench pci``: a card to VFIO and back, in the test host, which is booted for it.

The peers are virsh (nodedev-detach and nodedev-reattach, by root) and bare writes to sysfs, which
are the floor. All three by turns on the same card of the same host, emulated: quote the ratios.
"""

from __future__ import annotations

import json
import statistics
import sys

from bench._rows import Row, report
from host import emulator, install, kernel, machine
from host.build import built
from sessionvirt.host.kvm import probe

ROUNDS = 15


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def measured() -> dict[str, list[float]]:
    """Milliseconds of every round."""
    parts = (kernel.chosen(built(say), "debian", say), emulator.emulator(say))
    with machine.boot(parts, "bench", say, kvm=probe().usable) as one, one.connect() as host:
        install.furnish(host, say)
        argv = install.module("host.inside.hostdev_bench", str(ROUNDS))
        times: dict[str, list[float]] = json.loads(host.run(argv, timeout=600).stdout)
    return times


def main() -> None:
    times = measured()
    middle = {name: statistics.median(values) for name, values in times.items()}
    ours = middle["broker"]
    rows = [
        Row("a card to VFIO and back", ours, "virsh, by root", middle["virsh"], "ms", "<= 1.0"),
        Row("the same", ours, "bare writes to sysfs", middle["by hand"], "ms", "<= 1.3"),
    ]
    report("pci", rows)


if __name__ == "__main__":
    main()

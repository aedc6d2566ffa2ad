# SPDX-License-Identifier: LGPL-2.1-or-later
"""The filter of the Nth machine, by turns: the broker's and libvirt's ``clean-traffic``. JSON.

``python3 -m host.inside.nwfilter_bench SECONDS``: for each number of machines, milliseconds of each
round to add the last and to take it away again. When so many seconds are over, the number that
libvirt has come to is the last that is measured.

libvirt needs no QEMU for this: a filter is bound to a TAP by the code that the start of a machine
runs (``virNWFilterInstantiateFilter()`` in src/nwfilter/nwfilter_gentech_driver.c). Its TAP is
there before, and the address is told, so that it learns nothing from traffic. ``Acquire`` asks
polkit and makes its TAP, too.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING

import libvirt

from host.inside import machines, strangers

if TYPE_CHECKING:
    from collections.abc import Callable

COUNTS = (1, 10, 100, 1000)
ROUNDS = 3
#: Room for all of them as machines of one user.
ROOM = """\
[limits]
leases_per_user = 2000
leases_total = 2000
taps_per_user = 2000
queues_per_user = 2000
calls_per_second = 60000
"""
MADE: set[str] = set()
BINDING = """\
<filterbinding>
  <owner><name>{name}</name><uuid>{uuid}</uuid></owner>
  <portdev name='{name}'/>
  <mac address='52:54:00:09:{high:02x}:{low:02x}'/>
  <filterref filter='clean-traffic'><parameter name='IP' value='10.99.{high}.{low}'/></filterref>
</filterbinding>
"""


def tap(number: int) -> str:
    """The name of the TAP of libvirt's machine of this number, which is made where it is not."""
    name = f"peer{number}"
    if name not in MADE:
        subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
        MADE.add(name)
    return name


def bind(daemon: libvirt.virConnect, number: int) -> libvirt.virNWFilterBinding:
    """What the start of a machine with this interface would have libvirt do."""
    high, low = number >> 8, number & 255
    text = BINDING.format(name=tap(number), uuid=uuid.uuid4(), high=high, low=low)
    return daemon.nwfilterBindingCreateXML(text, 0)


def settle() -> None:
    """Until udev is done with the interfaces that have come and gone."""
    subprocess.run(["udevadm", "settle"], check=True)


def of_libvirt(daemon: libvirt.virConnect, number: int) -> tuple[float, float]:
    tap(number)
    settle()
    began = time.perf_counter()
    binding = bind(daemon, number)
    added = time.perf_counter()
    binding.delete()
    return (added - began) * 1e3, (time.perf_counter() - added) * 1e3


def of_broker(holder: machines.Holder, number: int) -> tuple[float, float]:
    settle()
    began = time.perf_counter()
    held = holder.take(vm=f"bench{number}")
    added = time.perf_counter()
    held.release()
    taken_away = time.perf_counter()
    held.close()
    return (added - began) * 1e3, (taken_away - added) * 1e3


def measure(
    daemon: libvirt.virConnect, holder: machines.Holder, seconds: float
) -> dict[int, dict[str, list[tuple[float, float]]]]:
    """By number of machines and by whose they are."""
    deadline = time.monotonic() + seconds
    found: dict[int, dict[str, list[tuple[float, float]]]] = {}
    ways: dict[str, Callable[[int], tuple[float, float]]] = {
        "broker": lambda number: of_broker(holder, number),
        "libvirt": lambda number: of_libvirt(daemon, number),
    }
    for way in ways.values():
        way(0)  # modules, tables and chains that all share; the network
    there = 0
    with contextlib.ExitStack() as stack:
        for count in COUNTS:
            while there < count - 1 and time.monotonic() < deadline:
                there += 1
                stack.enter_context(holder.take(vm=f"bench{there}"))
                bind(daemon, there)
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, way in ways.items():
                    times[name].append(way(there + 1))
            found[there + 1] = times
            if there < count - 1:
                break
        # Thousands of releases are nobody's figure, and the host is gone after this.
        stack.pop_all()
    return found


def main(seconds: float) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    subprocess.run(["systemctl", "start", "libvirtd.service"], check=True)
    daemon = libvirt.open("qemu:///system")
    with (
        strangers.configured(ROOM),
        machines.permitted(),
        machines.Holder("user1") as holder,
    ):
        found = measure(daemon, holder, seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]))

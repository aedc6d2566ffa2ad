# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev bench hostnet``: what of ``network`` needs the test host, which is booted for it.

Beside the broker is libvirt in system mode with its filter ``clean-traffic``; beside vhost-net and
its queues is one write(2) for each frame. The host is emulated: quote the ratios. ``--seconds N``:
how long machines may be added, which takes most of the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import TYPE_CHECKING, Any

from bench._rows import Row, report
from host import emulator, install, kernel, machine
from host.build import built
from sessionvirt.host.kvm import probe

if TYPE_CHECKING:
    from host.connection import Connection

ROUNDS = 60
#: So long machines may be added: enough for a hundred of libvirt's.
PATIENCE = 600
WANTED = (1, 10, 100, 1000)


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def inside(host: Connection, name: str, argument: int) -> dict[str, Any]:
    """What a program of ``host.inside`` prints; shown, too, for who wants more than medians."""
    argv = install.module(f"host.inside.{name}", str(argument))
    printed = host.run(argv, timeout=1200).text
    say(printed)
    found: dict[str, Any] = json.loads(printed)
    return found


def filters(found: dict[str, dict[str, list[tuple[float, float]]]], seconds: int) -> list[Row]:
    """A machine more, and away again; and a line for what was not reached."""
    rows = []
    for count, times in found.items():
        ours, theirs = (
            [statistics.median(part) for part in zip(*times[name], strict=True)]
            for name in ("broker", "libvirt")
        )
        peer = "libvirt, clean-traffic"
        rows += [
            Row(f"acquire number {count}", ours[0], peer, theirs[0], "ms"),
            Row(f"release number {count}", ours[1], peer, theirs[1], "ms"),
        ]
    last = max(map(int, found))
    why = f"not reached: it had {last} after {seconds} s"
    return rows + [
        Row(f"acquire number {count}", None, "libvirt, clean-traffic", None, "ms", why=why)
        for count in WANTED
        if count > last
    ]


def frames(found: dict[str, list[float]]) -> list[Row]:
    """By vhost-net and by write(2); one queue and two."""
    rate = {name: statistics.median(values) for name, values in found.items()}
    sizes = {name.partition(", ")[2] for name in rate}
    rows = []
    for size in sorted(sizes, key=int):
        words = f"{int(size):,} bytes"
        rows += [
            Row(f"{words} by vhost-net", rate[f"vhost, {size}"], "a write(2) each",
                rate[f"write, {size}"], "k frames/s"),
            Row(f"{words} by 2 queues", rate[f"2 queues, {size}"], "1 queue",
                rate[f"1 queue, {size}"], "k frames/s, clock"),
        ]  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seconds", type=int, default=PATIENCE)
    arguments, sys.argv[1:] = parser.parse_known_args()
    seconds = arguments.seconds
    parts = (kernel.chosen(built(say), "debian", say), emulator.emulator(say))
    with machine.boot(parts, "bench", say, kvm=probe().usable) as one, one.connect() as host:
        install.furnish(host, say)
        say("frames by vhost-net and by write(2)")
        sent = inside(host, "vhost_bench", ROUNDS)
        say(f"filters, the broker's and libvirt's; {seconds} s and a little more")
        added = inside(host, "nwfilter_bench", seconds)
    report("hostnet", [*filters(added, seconds), *frames(sent)])


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev bench firewall [PART ...]``: a change, a reload, a published port, a filtered frame.

Parts are ``changes``, ``reload``, ``published`` and ``frames``; without any, all of them. What a
thousand machines cost is asked of the whole way, over the bus; what a frame costs is the kernel's
time between two TAPs without a guest, as in ``./dev bench network``; published ports lead to guests
under TCG, whose own time is in both sides of the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bench._broker import LIMITS, alice, laboratory
from bench._forwards import BYTES, DIRECTIONS, WAYS, rates
from bench._rows import Row, report
from bench._thousand import Reloads, changes, flows, furnish
from bench.network import bridge
from lab.broker import Broker
from lab.outside import Outside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench._broker import Alice

PARTS = ("changes", "reload", "published", "frames")
COUNTS = (1, 100, 1000)
CYCLES, RELOADS, TRANSFERS, BURSTS = 20, 3, 5, 60
WORDS = {"publish": "a published port", "filter": "a filter", "bandwidth": "a bandwidth"}
GATEWAYS = ("10.60.0.1/20", "fd60::1/64")
CONFIGURATION = f"""{LIMITS}\
filter_entries_per_user = 60000
ports_per_user = 60000
[network.default]
ipv4 = "{GATEWAYS[0]}"
ipv6 = "{GATEWAYS[1]}"
"""
FEW, MANY = 2, 1000


def configured() -> Broker:
    """One to be started; it takes its configuration along when it ends."""
    broker = Broker()
    broker.configure(CONFIGURATION)
    return broker


def thousand(parts: Sequence[str]) -> list[Row]:
    """What needs them: changes of one, and reloads of all."""
    rows: list[Row] = []
    took: dict[tuple[str, int, str], float] = {}

    def change(client: Alice, number: int, others: str) -> None:
        if "changes" in parts:
            found = changes(client, CYCLES)
            print(f"changes, {number} {others}: {found}", file=sys.stderr)
            took.update({(kind, number, others): value for kind, value in found.items()})

    with ExitStack() as stack:
        outside = stack.enter_context(Outside())
        broker = stack.enter_context(configured())
        client = stack.enter_context(alice())
        # The namespaces end with this process; to give a thousand leases back takes half a minute.
        stack.callback(broker.kill)
        held = 0
        for number in COUNTS:
            client.do("hold", number - held)
            if not held:
                furnish(client, 0)  # or the table of filters would come and go each time
            held = number
            change(client, number, "bare")
        if "reload" in parts:
            rows += reloads(broker, outside, "TAPs alone")
        furnish(client, 1)
        change(client, held, "furnished")
        if "reload" in parts:
            rows += reloads(broker, outside, "furnished")
    return [*changing(took), *rows]


def changing(took: dict[tuple[str, int, str], float]) -> list[Row]:
    """Beside the same with nobody else."""
    return [
        Row(f"{words}, {number:,} {others}", value, "1 machine", took[kind, 1, "bare"], "ms",
            "<= 1.1 x")
        for kind, words in WORDS.items()
        for (of, number, others), value in took.items()
        if of == kind and number > 1
    ]  # fmt: skip


def reloads(broker: Broker, outside: Outside, others: str) -> list[Row]:
    """Of 1,000."""
    with flows(outside, GATEWAYS) as running:
        one = Reloads(broker, running)
        print(f"reloads, {others}", file=sys.stderr)
        one.nothing()
        for _ in range(RELOADS):
            one.restart()
            one.flush()
    print(one.took, one.lost, file=sys.stderr)
    rows = []
    for what, words in (("restart", "broker anew"), ("flush", "flush, until all is back")):
        took = statistics.median(one.took[what])
        rows.append(Row(f"{words}, 1,000 {others}", took, "", None, "ms", "<= 1000"))
    for (what, name), counts in one.lost.items():
        lost, sent = (statistics.median(column) for column in zip(*counts, strict=True))
        aim = "" if what == "flush" else "0"
        rows.append(Row(f"  {what}: lost, {name}", lost, "sent", sent, "datagrams", aim))
    return rows


def published() -> list[Row]:
    """Outside, a port of the host, a guest."""
    with Outside() as outside:
        # As libvirt's networks want it; set before the broker looks, so it is not its own.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        with configured():
            found = rates(outside, GATEWAYS[0], TRANSFERS)
    rate = {key: statistics.median(values) for key, values in found.items()}
    print(rate, file=sys.stderr)
    return [
        Row(f"{BYTES >> 20} MiB {words} the guest", rate["ours", direction], peer,
            rate.get((peer, direction)), "MB/s", ">= 1 x")
        for direction, words in zip(DIRECTIONS, ("to", "from"), strict=True)
        for peer in WAYS[1:]
    ]  # fmt: skip


def frames() -> list[Row]:
    """With filters, and without."""
    kinds = [("sets", FEW), ("filters10", FEW), ("filters10", MANY), ("filters64", FEW)]
    seen: dict[tuple[str, int, str], list[float]] = {}
    with ExitStack() as stack:
        bridges = {kind: stack.enter_context(bridge(kind[0])) for kind in kinds}
        for kind, one in bridges.items():
            one.do("machines", kind[1])
        for _ in range(BURSTS):
            for protocol in ("tcp", "udp"):
                for kind, one in bridges.items():
                    seen.setdefault((*kind, protocol), []).append(1e6 / one.do(protocol, 64))
    cost = {key: statistics.median(values) for key, values in seen.items()}
    rows = []
    for protocol in ("tcp", "udp"):
        none, few, many = (cost[*kind, protocol] for kind in kinds[:3])
        more, name = cost["filters64", FEW, protocol], protocol.upper()
        rows += [
            Row(f"{name}, 10 entries each, 2 machines", few, "no filter", none, "us/frame"),
            Row(f"{name}, 10 entries each, 1,000 machines", many, "2 machines", few, "us/frame",
                "1 x"),
            Row(f"{name}, 64 entries each, 2 machines", more, "10 entries", few, "us/frame", "1 x"),
        ]  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    arguments, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    parts = arguments.parts or PARTS
    rows = frames() if "frames" in parts else []
    if set(parts) != {"frames"}:
        with laboratory():
            if "published" in parts:
                rows = [*published(), *rows]
            if {"changes", "reload"} & set(parts):
                rows = [*thousand(parts), *rows]
    report("firewall", rows)


if __name__ == "__main__":
    main()

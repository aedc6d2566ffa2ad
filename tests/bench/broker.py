# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev bench broker``: what the broker costs: memory, activation, taking leases up again."""

from __future__ import annotations

import os
import select
import signal
import statistics
import subprocess
import time

from bench._broker import alice, laboratory, rss_mb
from bench._rows import Row, report
from lab.broker import Broker

ROUNDS, MANY = 7, 1000


NAME, PATH = "org.sessionvirt.Broker1", "/org/sessionvirt/Broker1"


def busctl(destination: str, path: str, *words: str) -> str:
    """A call to the interface that is called like its bus name."""
    argv = ["busctl", "--system", "call", destination, path, destination, *words]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def activate() -> float:
    """Once: ms from a call, with no broker there, to its answer; by dbus-daemon's activation."""
    start = time.perf_counter()
    busctl(NAME, PATH, "ListLeases", "a{sv}", "0")
    return (time.perf_counter() - start) * 1e3


def end_activated() -> None:
    """SIGTERM to the broker that the bus started; return when it has ended."""
    bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus")
    pid = int(busctl(*bus, "GetConnectionUnixProcessID", "s", NAME).split()[1])
    watched = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    select.select([watched], [], [])
    os.close(watched)


def started(broker: Broker) -> float:
    """Once: ms from exec to the owned name."""
    start = time.perf_counter()
    broker.start()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    rows = []
    with laboratory():
        cold, warm = [], []
        for _ in range(ROUNDS):
            cold.append(activate())
            warm.append(activate())
            end_activated()
        first = statistics.median(cold) - statistics.median(warm)
        rows.append(Row("cold activation to first answer", first, "", None, "ms", "<= 250"))
        with Broker() as broker:
            rows.append(Row("RSS idle", rss_mb(broker.daemon.pid), "", None, "MB", "<= 40"))
            with alice() as client:
                client.do("ask")
                client.do("hold", MANY)
                with_many = rss_mb(broker.daemon.pid)
                rows.append(Row(f"RSS, {MANY} leases", with_many, "", None, "MB", "<= 40"))
                many, none = [], []
                for _ in range(ROUNDS):
                    broker.kill()
                    many.append(started(broker))
                client.do("forget")
                for _ in range(ROUNDS):
                    broker.kill()
                    none.append(started(broker))
                took = statistics.median(many)
                rows.append(
                    Row(
                        f"SIGKILL to name owned, {MANY} leases",
                        took,
                        "ours, no lease",
                        statistics.median(none),
                        "ms",
                        "<= 1000",
                    )
                )
    report("broker", rows)


if __name__ == "__main__":
    main()

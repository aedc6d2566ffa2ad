# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev bench lease``: one filtered TAP, over the real bus and the real polkit.

The peer is qemu-bridge-helper, from fork to the fd in hand: it makes a TAP on a bridge, and neither
asks nor filters. It runs as root here, as its set-id bit would have it.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import time
from pathlib import Path

from bench._broker import alice, laboratory
from bench._rows import Row, report
from lab.broker import Broker

HELPER = Path("/usr/lib/qemu/qemu-bridge-helper")
BRIDGE = "br-bench"
ROUNDS, MANY = 100, 1000


def bridge_helper() -> tuple[float, float]:
    """Once: ms to have the fd, ms to give it back."""
    start = time.perf_counter()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with subprocess.Popen(
            [HELPER, "--use-vnet", f"--br={BRIDGE}", f"--fd={theirs.fileno()}"],
            pass_fds=[theirs.fileno()],
        ) as process:
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
            process.wait()
        acquired = time.perf_counter()
        os.close(fds[0])
    return (acquired - start) * 1e3, (time.perf_counter() - acquired) * 1e3


def prepare_peer() -> bool:
    """A bridge that the helper may use."""
    if not HELPER.exists():
        return False
    Path("/etc/qemu").mkdir(exist_ok=True)
    Path("/etc/qemu/bridge.conf").write_text(f"allow {BRIDGE}\n")
    for words in (["add", BRIDGE, "type", "bridge"], ["set", BRIDGE, "up"]):
        subprocess.run(["ip", "link", *words], check=True)
    return True


def main() -> None:
    rows = []
    with laboratory(), Broker(), alice() as client:
        with_peer = prepare_peer()
        first: list[list[float]] = []
        peers: list[tuple[float, float]] = []
        client.do("hold", 1)  # the network stays up: what is measured is a TAP
        for _ in range(ROUNDS):
            first.append(client.do("cycle"))
            if with_peer:
                peers.append(bridge_helper())
        client.do("hold", MANY - 2)
        last = [client.do("cycle") for _ in range(ROUNDS)]
        client.do("forget")
        acquire, release = (statistics.median(times) for times in zip(*first, strict=True))
        peer = [statistics.median(times) for times in zip(*peers, strict=True)] or [None, None]
        name = "qemu-bridge-helper"
        rows += [
            Row("acquire one filtered TAP", acquire, name, peer[0], "ms", "<= 1.5 x"),
            Row("give it back", release, f"{name}: close", peer[1], "ms"),
        ]
        acquire_last, release_last = (statistics.median(t) for t in zip(*last, strict=True))
        nth = f"the {MANY}th lease: acquire"
        rows += [
            Row(nth, acquire_last, "ours, the 1st", acquire, "ms", "<= 1.1 x"),
            Row("its release", release_last, "ours, the 1st", release, "ms", "<= 1.1 x"),
        ]
    report("lease", rows)


if __name__ == "__main__":
    main()

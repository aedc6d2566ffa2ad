# SPDX-License-Identifier: LGPL-2.1-or-later
"""A frame from one TAP of the broker's to another: by write(2), and by vhost-net. Prints JSON.

``python3 -m host.inside.vhost_bench ROUNDS``, by turns. There is no guest: what fills the queue is
this process, where it would be a guest's driver, and what a guest's exits cost is in no figure.
``write`` and ``vhost`` are thousands of frames for each second of a processor: with the one of this
process, with the other of the kernel's thread for the queue, which is a thread of this process
(``vhost_task_create()`` in kernel/vhost_task.c, Linux 6.4 and newer). ``queues`` are thousands a
second on the clock, by so many queues at once, each of which has a thread.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import TYPE_CHECKING

from host.inside.machines import permitted
from host.inside.strangers import connection, holding
from host.inside.vhost import ENTRIES, HEADER, Transmitter
from lab.rawbus import tap

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.tap import Tap

SIZES = (64, 1514)
#: Headers of Ethernet, IPv4 and UDP.
HEADERS = 14 + 20 + 8
QUEUES = 2
SENDER, PEER = "52:54:00:00:40:01", "52:54:00:00:40:02"
#: The peer's queue has room for a thousand frames.
BURSTS = 2


def drained(peer: Tap, frame: bytes, wanted: int = 0) -> int:
    """How often the frame has come, which is then gone; of *wanted* some may still be under way."""
    (descriptor,) = peer.fds
    found = 0
    while True:
        try:
            found += os.read(descriptor, 4096)[len(HEADER) :] == frame
        except BlockingIOError:
            if found >= wanted or not select.select([descriptor], [], [], 5)[0]:
                return found


def by_write(sender: Tap, frame: bytes) -> None:
    """As QEMU does without vhost: a system call for each."""
    packet, write, descriptor = HEADER + frame, os.write, sender.fds[0]
    for _ in range(BURSTS * ENTRIES):
        write(descriptor, packet)


def by_vhost(queues: list[Transmitter], frame: bytes) -> None:
    """The same number of frames by these queues."""
    for _ in range(BURSTS // len(queues)):
        for queue in queues:
            queue.post(frame, ENTRIES)
        for queue in queues:
            queue.wait()


def clock_of(thread: int) -> Callable[[], float]:
    """The seconds of a processor that a thread of ours has had.

    As pthread_getcpuclockid(3) makes it: CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED in the kernel's
    include/linux/posix-timers_types.h.
    """
    return lambda: time.clock_gettime(~thread << 3 | 6)


def rate(send: Callable[[], None], clock: Callable[[], float], peer: Tap, frame: bytes) -> float:
    """Thousands a second."""
    drained(peer, frame)
    began = clock()
    send()
    took = clock() - began
    sent = BURSTS * ENTRIES
    if (came := drained(peer, frame, sent)) != sent:
        raise SystemExit(f"{sent} frames were sent and {came} came")
    return sent / took / 1e3


def main(rounds: int) -> None:
    found: dict[str, list[float]] = {}
    requests = tap(mac=SENDER, queues=QUEUES, vhost=True), tap(mac=PEER)
    with permitted(), connection("user1") as client, holding(client, "bench", *requests) as held:
        sender, peer = held.taps
        if not sender.facts["vhost"]:
            raise SystemExit("this kernel has no vhost-net")
        taps, devices = sender.fds[:QUEUES], sender.fds[QUEUES:]
        before = set(os.listdir("/proc/self/task"))
        both = [Transmitter(taps[0], devices[0])]
        (thread,) = set(os.listdir("/proc/self/task")) - before
        both += [Transmitter(*pair) for pair in zip(taps[1:], devices[1:], strict=True)]
        for _ in range(rounds + 1):
            for size in SIZES:
                frame = sender.udp4(peer.mac, peer.ipv4, (5000, 5000), bytes(size - HEADERS))
                ways: dict[str, tuple[Callable[[], None], Callable[[], float]]] = {
                    "write": (lambda: by_write(sender, frame), time.process_time),  # noqa: B023
                    "vhost": (lambda: by_vhost(both[:1], frame), clock_of(int(thread))),  # noqa: B023
                    "1 queue": (lambda: by_vhost(both[:1], frame), time.perf_counter),  # noqa: B023
                    "2 queues": (lambda: by_vhost(both, frame), time.perf_counter),  # noqa: B023
                }
                for name, (send, clock) in ways.items():
                    value = rate(send, clock, peer, frame)
                    found.setdefault(f"{name}, {size}", []).append(value)
    print(json.dumps({name: values[1:] for name, values in found.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))

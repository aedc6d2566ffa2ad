# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's traffic by the clock: what it receives in a second, and the limits that it asks for.

A rate is what came between two moments in the middle of a flow that never ends, so neither a burst
at its beginning nor what a busy machine did before counts.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

from dbus_fast import Variant

from lab import frames, host
from lab.tap import HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.client import Lease
    from lab.tap import Tap

__all__ = [
    "GATEWAY", "TABLE", "WINDOW", "add", "bandwidth", "flow", "guest_reads_tcp", "is_queued",
    "known_to_gateway", "rate_of", "settles_at", "to_guest",
]  # fmt: skip

GATEWAY = "10.213.80.1"
TABLE = "netdev sessionvirt_limits"
#: Seconds that a rate is looked at.
WINDOW = 0.5


def bandwidth(tap: str = "tap0", /, **numbers: int) -> tuple[str, dict[str, Variant]]:
    """A request: ``inbound_average`` and so on."""
    rates = {key: Variant("u", value) for key, value in numbers.items()}
    return "bandwidth", {"tap": Variant("s", tap), **rates}


def add(lease: Lease, *requests: tuple[str, dict[str, Variant]]) -> list[dict[str, Any]]:
    """Lease.Add; the grants, plain."""
    reply = lease.client.call("Add", "a(sa{sv})a{sv}", list(requests), {}, lease=lease)
    return [{key: value.value for key, value in row.items()} for row in reply.body[0]]


def is_queued(ifname: str) -> bool:
    """Whether there is an htb qdisc, as tc(8) tells it."""
    shown = subprocess.run(
        ["tc", "qdisc", "show", "dev", ifname], capture_output=True, check=True, text=True
    )
    return "qdisc htb 5356: root" in shown.stdout


@contextlib.contextmanager
def flow(send: Callable[[], object]) -> Iterator[None]:
    """Somebody sends as fast as it goes."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                send()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def received(tap: Tap, seconds: float) -> int:
    """Bytes on the wire that a guest receives meanwhile."""
    total, end = 0, time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for descriptor in select.select(tap.fds, [], [], left)[0]:
            with contextlib.suppress(BlockingIOError):
                while time.monotonic() < end:
                    total += len(os.read(descriptor, 70000)) - len(HEADER)
    return total


def rate_of(tap: Tap, settle: float = 0.15) -> float:
    """Bytes a second, by the clock of what was read."""
    received(tap, settle)
    begin = time.monotonic()
    total = received(tap, WINDOW)
    return total / (time.monotonic() - begin)


def settles_at(measure: Callable[[], float], wanted: float) -> bool:
    """Whether a rate is within a tenth of what is wanted; a busy machine has some more looks at it.

    What is not limited, or otherwise, is not so in any of them.
    """
    found = []
    for _ in range(4):
        found.append(measure())
        if abs(found[-1] - wanted) <= wanted / 10:
            return True
    raise AssertionError(f"{[round(one) for one in found]} bytes a second, not {wanted:.0f}")


def to_guest(tap: Tap) -> contextlib.AbstractContextManager[None]:
    """Datagrams without end, from several ports, so that both queues have some."""
    senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4)]
    for sender in senders:
        sender.settimeout(0.1)
        sender.connect((tap.ipv4, 7000))

    def send() -> None:
        for sender in senders:
            sender.send(bytes(1400))

    @contextlib.contextmanager
    def sending() -> Iterator[None]:
        with flow(send):
            yield
        for sender in senders:
            sender.close()

    return sending()


@contextlib.contextmanager
def guest_reads_tcp(tap: Tap) -> Iterator[Callable[[], float]]:
    """A connection of the gateway's to the guest, which takes whatever comes.

    The guest's TCP is a few lines: it acknowledges what is in order. A window of 64 KiB is what a
    queue that drops nothing may hold.
    """
    gateway = str(host.link("svn_default")["address"])
    sender = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sender.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        sender.connect((tap.ipv4, 7000))
    sender.settimeout(0.1)
    following = 0

    def answer(segment: bytes, flags: int) -> None:
        ports = (7000, int.from_bytes(segment[0:2], "big"))
        numbers = (1000 if flags & 2 else 1001, following)
        text = frames.tcp(tap.ipv4, GATEWAY, ports, flags, numbers=numbers)
        os.write(tap.fds[0], HEADER + tap.to4(gateway, GATEWAY, frames.TCP, text))

    def read(seconds: float) -> int:
        nonlocal following
        total, end = 0, time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for descriptor in select.select(tap.fds, [], [], left)[0]:
                frame = os.read(descriptor, 70000)[len(HEADER) :]
                total += len(frame)
                if frame[23] != frames.TCP or frame[12:14] != b"\x08\0":
                    continue
                segment = frame[34:]
                number = int.from_bytes(segment[4:8], "big")
                body = int.from_bytes(frame[16:18], "big") - 20 - (segment[12] >> 4) * 4
                if segment[13] & 2:
                    following = number + 1 & 0xFFFFFFFF
                    answer(segment, 0x12)
                elif number == following:
                    following = following + body & 0xFFFFFFFF
                    answer(segment, 0x10)
        return total

    def rate() -> float:
        read(0.15)
        begin = time.monotonic()
        total = read(WINDOW)
        return total / (time.monotonic() - begin)

    try:
        with flow(lambda: sender.send(bytes(65536))):
            yield rate
    finally:
        sender.close()


@contextlib.contextmanager
def known_to_gateway(tap: Tap) -> Iterator[None]:
    """The host need not ask for the guest's address."""
    host.ip("neigh", "replace", tap.ipv4, "lladdr", tap.mac, "dev", "svn_default")
    try:
        yield
    finally:
        host.ip("neigh", "del", tap.ipv4, "dev", "svn_default")

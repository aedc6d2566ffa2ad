# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much one user, one connection and everybody together may have of everything.

All numbers stand in :class:`Limits`; broker.toml's ``[limits]`` changes each under the same name.
:class:`Usage` counts calls and prompts. Leases are counted (``tally.py``) on the worker thread
where they are made, so that two calls at once cannot both fit; :func:`check` compares.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import LimitsExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


#: What one message may carry, the hold included: dbus-daemon ends a connection that sends more
#: (max_message_unix_fds of the system bus), and with the broker's the process ends.
_FDS_PER_ANSWER = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """The ceilings. Units are in the names; the rest are counts."""

    requests_per_call: int = 16
    leases_per_user: int = 32
    leases_total: int = 1024
    taps_per_user: int = 64
    queues_per_tap: int = 8
    queues_per_user: int = 128
    #: Of /dev/vhost-net, open on the whole host, whoever opened them.
    vhost_descriptors: int = 1024
    devices_per_user: int = 8
    #: In the lists of filters; a filter without lists is one.
    filter_entries_per_user: int = 1024
    ports_per_request: int = 256
    ports_per_user: int = 512
    prompts_per_user: int = 4
    prompts_per_sender: int = 1
    calls_pending_per_user: int = 32
    calls_pending_per_sender: int = 8
    calls_per_second: int = 100
    prompt_seconds: int = 300
    #: What a QEMU with a PCI device may lock; 0, which no file can say: three quarters of all.
    lock_memory_gib: int = 0

    #: No configuration may exceed these: what the process and its unit can bear.
    CEILING = 65536


@dataclass(frozen=True, slots=True)
class Share:
    """What a user has, or is about to get.

    :param fds: what devices come with; a queue is one by itself.
    :param filter_entries: in the lists of filters.
    """

    leases: int = 0
    taps: int = 0
    queues: int = 0
    devices: int = 0
    fds: int = 0
    filter_entries: int = 0
    ports: int = 0

    def plus(self, other: Share) -> Share:
        """Both together."""
        return Share(*(mine + more for mine, more in zip(self, other, strict=True)))

    def minus(self, other: Share) -> Share:
        """What is left without the other."""
        return Share(*(mine - less for mine, less in zip(self, other, strict=True)))

    def __iter__(self) -> Iterator[int]:
        first = (self.leases, self.taps, self.queues, self.devices, self.fds)
        return iter((*first, self.filter_entries, self.ports))


class Usage:
    """Counts per uid and per sender. Lives on the loop's thread.

    A call is counted twice: its sender's when it comes in, before it is known whose it is, and its
    user's once that is known.

    :param clock: seconds, monotonic and running during suspend (CLOCK_BOOTTIME).
    """

    #: Users whose rate is remembered; the fullest bucket is forgotten first and harms nobody.
    REMEMBERED = 1024

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._calls: Counter[int | str] = Counter()
        self._prompts: Counter[int | str] = Counter()
        self._buckets: dict[int, tuple[float, float]] = {}

    @contextmanager
    def message(self, sender: str, limits: Limits) -> Iterator[None]:
        """One call of a sender, from its arrival to its end."""
        most = limits.calls_pending_per_sender
        with _one_more(self._calls, sender, most, "calls_pending_per_sender"):
            yield

    @contextmanager
    def call(self, uid: int, limits: Limits) -> Iterator[None]:
        """One call of a user; also takes one token of the user's rate (a burst is one second's)."""
        now = self._clock()
        tokens, then = self._buckets.pop(uid, (float(limits.calls_per_second), now))
        rate = limits.calls_per_second
        tokens = min(float(rate), tokens + (now - then) * rate)
        if len(self._buckets) >= self.REMEMBERED:
            self._buckets.pop(max(self._buckets, key=lambda user: self._buckets[user][0]))
        self._buckets[uid] = (max(tokens - 1, 0.0), now)
        if tokens < 1:
            raise LimitsExceeded(f"calls_per_second: {rate} for one user")
        most = limits.calls_pending_per_user
        with _one_more(self._calls, uid, most, "calls_pending_per_user"):
            yield

    @contextmanager
    def prompt(self, uid: int, sender: str, limits: Limits) -> Iterator[None]:
        """One prompt open or waiting for its turn."""
        with (
            _one_more(self._prompts, sender, limits.prompts_per_sender, "prompts_per_sender"),
            _one_more(self._prompts, uid, limits.prompts_per_user, "prompts_per_user"),
        ):
            yield


def lockable_bytes(limits: Limits) -> int:
    """How much a process with a PCI device may lock."""
    if limits.lock_memory_gib:
        return limits.lock_memory_gib << 30
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 * 3


def check(held: Share, wanted: Share, total: int, limits: Limits) -> None:
    """Whether ``wanted`` may come on top of what a user holds.

    :param total: leases of everybody.
    :raise LimitsExceeded: names the limit.
    """
    both = held.plus(wanted)
    for name, value, limit in (
        ("leases_per_user", both.leases, limits.leases_per_user),
        ("taps_per_user", both.taps, limits.taps_per_user),
        ("queues_per_user", both.queues, limits.queues_per_user),
        ("devices_per_user", both.devices, limits.devices_per_user),
        ("filter_entries_per_user", both.filter_entries, limits.filter_entries_per_user),
        ("ports_per_user", both.ports, limits.ports_per_user),
        ("leases_total", total + wanted.leases, limits.leases_total),
        # A queue is an fd, and so is the hold of a new lease.
        ("fds_per_call", wanted.queues + wanted.fds + wanted.leases, _FDS_PER_ANSWER),
    ):
        if value > limit:
            raise LimitsExceeded(f"{name}: {limit}")


@contextmanager
def _one_more(counter: Counter[int | str], key: int | str, limit: int, name: str) -> Iterator[None]:
    if counter[key] >= limit:
        raise LimitsExceeded(f"{name}: {limit}")
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]

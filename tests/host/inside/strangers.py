# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two users on the host's own bus: one holds a lease, the other looks.

Connections are the test's own (``lab.rawbus``); to the bus they are the users'. Nobody is logged
in, so polkit has to be told to say yes (``machines.permitted``).
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import bus, rawbus
from lab.rawbus import LEASE, Client, Lease, options, tap
from lab.tap import Tap
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dbus_fast import Message

__all__ = [
    "ACTIVATION",
    "Held",
    "Times",
    "configured",
    "connection",
    "drops",
    "holding",
    "interleaved",
]

#: systemd starts the broker for the first call; an emulated machine takes its time.
ACTIVATION = 90.0
CONFIGURATION = Path("/etc/sessionvirt/broker.toml")
PEER = "org.freedesktop.DBus.Peer"


@contextlib.contextmanager
def connection(name: str) -> Iterator[Client]:
    """A user's connection to the bus; the broker runs when this returns."""
    with Client(User.named(name)) as client:
        client.call("Ping", interface=PEER, timeout=ACTIVATION)
        yield client


@dataclass
class Held:
    """A lease, and what only its owner should know of it."""

    client: Client
    lease: Lease
    vm: str
    taps: list[Tap]

    @property
    def secrets(self) -> list[str]:
        """What gives it away, wherever it is read."""
        facts = [self.lease.path.rpartition("/")[2], self.vm]
        for one in self.taps:
            facts += [one.ifname, one.mac, one.ipv4, one.ipv6, one.link_local]
        return facts

    def told_by(self, text: object) -> list[str]:
        """Those of the secrets that are in a text, or in what is printed of something else."""
        words = repr(text).lower()
        return [secret for secret in self.secrets if secret.lower() in words]

    def add(self) -> Tap:
        """Lease.Add of one TAP more."""
        serial = self.client.ask("Add", [tap()], {}, path=self.lease.path, interface=LEASE)
        answer = self.client.answer(serial)
        (grant,) = answer.body[0]
        (descriptor,) = answer.fds
        answer.fds.clear()
        added = Tap([descriptor], {key: value.value for key, value in grant.items()})
        self.taps.append(added)
        return added

    def drops(self) -> dict[str, int]:
        """Frames dropped so far, by reason."""
        return drops(self.client, self.lease.path)


def drops(client: Client, path: str) -> dict[str, int]:
    """What a lease's ``drops`` say in ListLeases."""
    (listed,) = [lease for lease in client.leases() if lease["lease"] == path]
    return {reason: count for reason, count in listed["drops"].items() if count}


@contextlib.contextmanager
def holding(client: Client, vm: str, *requests: Sequence[Any]) -> Iterator[Held]:
    """A lease of that user, given back at the end.

    :param requests: of ``rawbus.tap``; none: one TAP of the network default.
    """
    serial = client.ask("Acquire", list(requests) or [tap()], options(vm=vm))
    answer = client.answer(serial, ACTIVATION)
    path, hold, grants = answer.body
    fds, answer.fds = answer.fds, []
    taps = []
    for grant in grants:
        facts = {key: value.value for key, value in grant.items()}
        if "ifname" in facts:
            taps.append(Tap([fds[index] for index in facts.pop("fds")], facts))
    held = Held(client, Lease(path, fds[hold], [], []), vm, taps)
    try:
        yield held
    finally:
        with contextlib.suppress(rawbus.BusError):  # the test may have given it back
            client.call("Release", {}, path=path, interface=LEASE, timeout=ACTIVATION)
        held.lease.close()
        for one in held.taps:
            one.close()


@contextlib.contextmanager
def configured(text: str) -> Iterator[None]:
    """broker.toml for a while; the broker finds out by itself."""
    CONFIGURATION.write_text(text)
    try:
        yield
    finally:
        CONFIGURATION.unlink()


# Timing


@dataclass
class Times:
    """How long the answers to one kind of question took, in seconds."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def noise(self) -> str:
        """How far the median would go by chance: its standard error, from the median deviation."""
        middle = self.median
        deviation = statistics.median(abs(value - middle) for value in self.values)
        error = 1.2533 * 1.4826 * deviation / len(self.values) ** 0.5
        return f"standard error of the median {1e3 * error:.3f} ms"

    def standing(self, other: Times) -> float:
        """How many standard deviations of chance these are above the others (Mann and Whitney).

        By ranks, so that neither the odd slow answer nor the shape of the distribution matters.
        """
        ranked = sorted(
            [(value, 1) for value in self.values] + [(value, 0) for value in other.values]
        )
        ranks = sum(rank for rank, (_, ours) in enumerate(ranked, 1) if ours)
        n, m = len(self.values), len(other.values)
        above = ranks - n * (n + 1) / 2
        return float((above - n * m / 2) / (n * m * (n + m + 1) / 12) ** 0.5)


def interleaved(rounds: int, questions: Mapping[str, Callable[[], object]]) -> dict[str, Times]:
    """Time each question once a round, in an order that is drawn anew for each round.

    So whatever else the machine does falls on all alike.
    """
    taken = {name: Times() for name in questions}
    order = list(questions)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            began = time.perf_counter()
            questions[name]()
            taken[name].values.append(time.perf_counter() - began)
    return taken


def heard(client: Client) -> list[Message]:
    """Everything that the bus has delivered until now."""
    serial = client.ask("GetId", signature="", destination=bus.BUS, path="/", interface=bus.BUS)
    found = []
    while (message := client.receive().message).reply_serial != serial:
        found.append(message)
    return found

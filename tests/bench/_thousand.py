# SPDX-License-Identifier: LGPL-2.1-or-later
"""A broker with a thousand leases, for ``./dev bench firewall``: changes of one, reloads of all.

What is *furnished* has a published port, a filter of ten entries and a bandwidth. Honest flows
meanwhile are of two more guests of the same user, with this kernel's own network behind the TAP:
request and answer from one to the other, to the world beyond the uplink, and from there to a
published port.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab import host
from lab.brokerlog import Log
from lab.client import Client, publish
from lab.kernelguest import KernelGuest
from lab.outside import ADDRESS4, PORT, UPLINK4
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench._broker import Alice
    from lab.broker import Broker
    from lab.outside import Outside

__all__ = ["CHANGED", "Flow", "Reloads", "changes", "flows", "furnish"]

FILTER = {
    "deny_outbound": [*(f"198.51.100.{n}" for n in range(3)), "tcp:25", "udp:1900@192.0.2.0/24"],
    "allow_inbound": ["tcp:22", "tcp:80", "tcp:443", "udp:5000-5100", "icmp"],
}
BANDWIDTH = {"inbound_average": 100_000, "outbound_average": 100_000}
#: To each lease its number is added.
PUBLISHED = {"protocol": "tcp", "host_port": 10_000, "guest_port": 80}
FURNITURE = {"publish": PUBLISHED, "filter": FILTER, "bandwidth": BANDWIDTH}
#: One that is free.
CHANGED = FURNITURE | {"publish": PUBLISHED | {"host_port": 9_000}}
#: Datagrams a second of each flow.
RATE = 200
TO_THE_PORT = 8080
#: Of how many rules the broker says that they are back (Kept.tables in upkeep.py).
PUT_BACK = ("bridge sessionvirt,", "sessionvirt_filter", "sessionvirt_limit")


def furnish(client: Alice, first: int) -> None:
    """Every lease from that one on."""
    client.do("furnish", first, FURNITURE)


def changes(client: Alice, cycles: int) -> dict[str, float]:
    """By kind: ms of one Add and one Drop of the first lease; medians."""
    found = {}
    for kind, fields in CHANGED.items():
        client.do("change", kind, fields)
        took = [sum(client.do("change", kind, fields)) for _ in range(cycles)]
        found[kind] = statistics.median(took)
    return found


class Flow:
    """One that goes on."""

    def __init__(self, stack: ExitStack, command: list[str]) -> None:
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._process = stack.enter_context(process)
        stack.callback(process.kill)

    def end_stretch(self) -> None:
        """Have it count; :meth:`counted` answers."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def counted(self) -> tuple[int, int]:
        """Sent and answered since the last time."""
        assert self._process.stdout is not None
        sent, answered = json.loads(self._process.stdout.readline())
        return int(sent), int(answered)


def back(log: Log) -> str:
    """What the broker says that it has put back."""
    return "\n".join(log.lines("rules-restored"))


@contextmanager
def flows(outside: Outside, gateways: tuple[str, str]) -> Iterator[dict[str, Flow]]:
    """The three, by name."""
    program = [sys.executable, "-I", str(Path(__file__).with_name("_flow.py"))]
    with ExitStack() as stack:
        client = stack.enter_context(Client(User.named("alice")))
        leases = [stack.enter_context(client.acquire(vm=name)) for name in ("one", "two")]
        leases[1].add_one(publish("tap0", TO_THE_PORT, 80, protocol="udp"))
        one, two = (
            stack.enter_context(KernelGuest(name, lease.tap, gateways))
            for name, lease in zip(("one", "two"), leases, strict=True)
        )
        ways: dict[str, tuple[KernelGuest | Outside, str, int]] = {
            "guest to guest": (one, two.tap.ipv4, 80),
            "guest to the world": (one, ADDRESS4, PORT),
            "the world to a port": (outside, UPLINK4, TO_THE_PORT),
        }
        yield {
            name: Flow(stack, where.command([*program, address, str(port), str(RATE)]))
            for name, (where, address, port) in ways.items()
        }


class Reloads:
    """What takes all rules away and puts them back, and the packets lost meanwhile."""

    def __init__(self, broker: Broker, running: dict[str, Flow]) -> None:
        self._broker = broker
        self._flows = running
        #: By what was done: ms; and by that and the flow: lost and sent.
        self.took: dict[str, list[float]] = {}
        self.lost: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def nothing(self) -> None:
        """To know what is lost without."""
        with self._counted("nothing"):
            time.sleep(2)

    def flush(self) -> None:
        """``nft flush ruleset``, until the broker says that all of it is back."""
        there = " ".join(one for one in host.tables())
        wanted = {one for one in PUT_BACK if one.rstrip(",") in there}
        log = Log()
        with self._counted("flush"):
            start = time.perf_counter()
            host.nft("flush", "ruleset")
            while any(one not in back(log) for one in wanted):
                if time.perf_counter() - start > 120:
                    raise SystemExit(f"the rules are not put back:\n{log.text()}")
                time.sleep(0.002)
            self.took.setdefault("flush", []).append((time.perf_counter() - start) * 1e3)
        for line in log.lines("rules-"):
            print(line, file=sys.stderr)

    def restart(self) -> None:
        """SIGKILL, and a new broker, until it owns its name: it has rebuilt the rules in place."""
        self._broker.kill()
        with self._counted("restart"):
            start = time.perf_counter()
            self._broker.start()
            self.took.setdefault("restart", []).append((time.perf_counter() - start) * 1e3)

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        self._count()
        yield
        for name, counts in self._count().items():
            sent, answered = counts
            self.lost.setdefault((what, name), []).append((sent - answered, sent))

    def _count(self) -> dict[str, tuple[int, int]]:
        for flow in self._flows.values():
            flow.end_stretch()
        return {name: flow.counted() for name, flow in self._flows.items()}

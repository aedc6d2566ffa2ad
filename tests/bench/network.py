# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev bench network``: what the thousandth machine costs, in adding it and in every frame.

Frames go from one TAP to another of a bridge, in namespaces: what is compared is the processor's
time that the kernel needs for a frame, without a guest's, so that the ratios are the worst that can
be seen. The peers are no filter at all, and a chain for each machine with a jump to it, which is
how libvirt's nwfilter is built; of a datagram to this machine passt and slirp. libvirt itself, and
vhost-net, are in ``./dev bench hostnet``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bench._broker import alice, laboratory
from bench._rows import Row, report
from lab.broker import Broker
from lab.client import Client
from lab.guest import CMDLINE, Guest
from lab.users import User
from sessionvirt.host.kvm import probe

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS, CYCLES, BOOTS = 100, 40, 5
COUNTS = (1, 10, 100, 1000)
SIZES = {64: "64 bytes", 1514: "1,514 bytes", 60000: "60,000 bytes (TSO)"}
FEW, MANY = 2, 1000
NF = "+br_netfilter"
SCRIPT = "dhcp\n"
IN_HOST = "./dev bench hostnet"


class Bridge:
    """A ``_bridge`` process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, *order: object) -> float:
        """One order, its answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        return float(json.loads(stdout.readline()))


@contextmanager
def bridge(variant: str) -> Iterator[Bridge]:
    """A bridge with its filter, in a network namespace of its own."""
    argv = ["unshare", "--net", sys.executable, "-m", "bench._bridge", variant]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        yield Bridge(process)


def per_frame() -> list[Row]:
    """Frames a second, and what one more machine's rules take."""
    with ExitStack() as stack:
        kinds = [("none", FEW), ("sets", FEW), ("sets", MANY), ("chains", FEW), ("chains", MANY)]
        kinds[3:3] = [("sets", 10), ("sets", 100)]
        kinds += [("chains", 10), ("chains", 100), (f"none{NF}", FEW), (f"sets{NF}", FEW)]
        bridges = {kind: stack.enter_context(bridge(kind[0])) for kind in kinds}
        added = {kind: one.do("machines", kind[1]) for kind, one in bridges.items()}
        sent = [
            (kind, "tcp", size)
            for size in SIZES
            for kind in (("none", FEW), ("sets", FEW), ("sets", MANY), ("chains", MANY))
        ]
        sent += [((name, FEW), "udp", 64) for name in ("none", "sets")]
        sent += [((f"{name}{NF}", FEW), "tcp", 64) for name in ("none", "sets")]
        seen: dict[tuple[str, int, str, int], list[float]] = {}
        for _ in range(ROUNDS):
            for kind, protocol, size in sent:
                took = bridges[kind].do(protocol, size) / 1e3
                seen.setdefault((*kind, protocol, size), []).append(took)
    rate = {key: statistics.median(values) for key, values in seen.items()}
    rows = [
        Row(f"rules of number {number}", added["sets", number], "a chain each",
            added["chains", number], "ms")
        for number in COUNTS[1:]
    ]  # fmt: skip
    unit, aim, peer = "k frames/s", ">= 0.9 x", "no filter"
    for size, words in SIZES.items():
        none, few = rate["none", FEW, "tcp", size], rate["sets", FEW, "tcp", size]
        many, chains = rate["sets", MANY, "tcp", size], rate["chains", MANY, "tcp", size]
        rows += [
            Row(f"{words}, 2 machines", few, peer, none, unit, aim),
            Row(f"{words}, 1,000 machines", many, "2 machines", few, unit, "1 x"),
            Row("the same", many, "1,000 chains", chains, unit),
        ]
    for what, more, protocol in (("UDP", "", "udp"), ("br_netfilter on", NF, "tcp")):
        none, few = (rate[f"{name}{more}", FEW, protocol, 64] for name in ("none", "sets"))
        rows.append(Row(f"64 bytes, {what}", few, peer, none, unit, aim))
    return rows


def adding() -> list[Row]:
    """Acquire of the Nth, over the bus; the first again at the end."""
    held, took = 0, {}
    with Broker(), alice() as client:

        def cycles() -> list[float]:
            client.do("cycle")
            return [client.do("cycle")[0] for _ in range(CYCLES)]

        client.do("hold", 1)  # the network is up: what is measured is a machine
        for number in COUNTS:
            client.do("hold", number - 1 - held)
            held = number - 1
            took[number] = cycles()
        client.do("forget")
        client.do("hold", 1)
        took[1] += cycles()
        client.do("forget")
    first = statistics.median(took[1])
    rows = [
        Row(f"acquire number {number}", statistics.median(took[number]), "number 1", first, "ms",
            "<= 1.1 x")
        for number in COUNTS[1:]
    ]  # fmt: skip
    peer = "libvirt, clean-traffic"
    return [*rows, Row("the same", None, peer, None, "ms", why=IN_HOST)]


def until_address() -> list[Row]:
    """From Acquire, or from nothing, to the address that the guest has by DHCP; under TCG."""
    directory = Path("/run/lab/bench-guest")
    guest = Guest.make(directory).with_script(SCRIPT, directory / "dhcp")
    ours, theirs = [], []
    with Broker(), Client(User.named("alice")) as client:
        for _ in range(BOOTS):
            start = time.perf_counter()
            with client.acquire() as lease:
                (descriptor,) = lease.tap.fds
                netdev, mac = f"tap,id=n,fd={descriptor}", lease.tap.mac
                ours.append(boot(guest, netdev, mac, start, descriptor))
            theirs.append(boot(guest, "user,id=n", "52:54:00:00:00:01", time.perf_counter()))
    words = "a booted guest's address by DHCP"
    mine, peers = statistics.median(ours), statistics.median(theirs)
    return [Row(words, mine, "QEMU's user network", peers, "s")]


def boot(guest: Guest, netdev: str, mac: str, start: float, *descriptors: int) -> float:
    """Seconds from *start* to the guest's line about its address."""
    argv = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-m", "128"),
        *("-accel", "tcg", "-kernel", str(guest.kernel), "-initrd", str(guest.initrd)),
        *("-append", CMDLINE, "-serial", "stdio", "-netdev", netdev),
        *("-device", f"virtio-net-pci,netdev=n,mac={mac}"),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, pass_fds=descriptors) as process:
        assert process.stdout is not None
        line = first_line(process.stdout, b"GUEST: address")
        took = time.perf_counter() - start
        process.kill()
    if not line:
        raise SystemExit("the guest has no address")
    return took


def first_line(stream: IO[bytes], beginning: bytes) -> bytes:
    """Empty where the stream ends before."""
    return next((line for line in stream if line.startswith(beginning)), b"")


def to_this_machine() -> list[Row]:
    """A datagram to a socket, in namespaces: by a TAP, and by what needs no privilege."""
    argv = ["unshare", "--net", sys.executable, "-m", "bench._usernet", str(ROUNDS)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    rate = {name: statistics.median(values) for name, values in json.loads(done.stdout).items()}
    return [
        Row(f"{SIZES[size]} to this machine", rate[f"tap, {size}"], peer,
            rate.get(f"{peer}, {size}"), "k datagrams/s")
        for size in (64, 1514)
        for peer in ("passt", "slirp")
    ]  # fmt: skip


def in_guests() -> list[Row]:
    """What only guests at speed can show, and why there is no figure of it."""
    kvm = probe()
    why = "needs two guests and iperf3" if kvm.usable else f"not measured: KVM {kvm.verdict.value}"
    if not kvm.usable:
        print(f"nothing is measured between guests: {kvm.reason}", file=sys.stderr)
    return [
        Row("between guests: vhost, 2 queues", None, peer, None, "Gbit/s", why=why)
        for peer in ("plain TAP", "passt", "slirp")
    ] + [Row("the same without guests", None, "plain TAP", None, "", why=IN_HOST)]


def main() -> None:
    rows = [*per_frame(), *to_this_machine()]
    with laboratory():
        rows = [*adding(), *rows, *until_address(), *in_guests()]
    report("network", rows)


if __name__ == "__main__":
    main()

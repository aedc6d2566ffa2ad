# SPDX-License-Identifier: LGPL-2.1-or-later
"""A datagram from a guest's end of its network to a socket of this machine, for ``network``.

Run as ``python -m bench._usernet ROUNDS``, below ``unshare --net``: prints JSON, for each way and
size the thousands of datagrams for each second of a processor. The ways are a TAP that the broker's
rules filter, passt, and slirp in a QEMU without a machine, by turns. This process is in the place
of a guest's QEMU. slirp is part of one, so there what this process does is not counted.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench._bridge import BRIDGE, NAMES, Sets, machine, run
from lab import frames
from lab.tap import HEADER
from sessionvirt_broker.tun import create

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (64, 1514)
#: Headers of Ethernet, IPv4 and UDP.
HEADERS = 14 + 20 + 8
BURST = 500
PORT = 7000
BRIDGES_MAC, GATEWAY, LENGTH = "02:00:00:00:00:01", "10.99.0.1", 16
SLIRPS = "10.0.2.15", "10.0.2.2"
#: asm-generic/socket.h; Python has no name for it.
SO_RCVBUFFORCE = 33
#: Room for a burst, whatever the kernel counts for a datagram.
ROOM = 32 << 20


def state(pid: int) -> str:
    """As in proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@dataclass(frozen=True)
class Way:
    """From a guest to this machine.

    :param addresses: the guest's, and what leads to this machine.
    :param program: the process that works at it, if any.
    :param sender_counts: what this process does, QEMU would have to do, too.
    """

    addresses: tuple[str, str]
    send: Callable[[bytes], object]
    program: int | None = None
    sender_counts: bool = True

    def work(self) -> float:
        """The program's seconds of a processor until it waits for more."""
        if self.program is None:
            return 0.0
        # Of what another process does the kernel has counted what is before its last wait, or tick
        # (thread_group_cputime() in kernel/sched/cputime.c).
        while state(self.program) != "S":
            os.sched_yield()
        # Another process's clock, as clock_getcpuclockid(3) makes it: CPUCLOCK_SCHED in the
        # kernel's include/linux/posix-timers_types.h.
        return time.clock_gettime(~self.program << 3 | 2)


def tapped() -> Way:
    """Within write(2) the kernel does all of it."""
    Sets().add(machine(0))
    (descriptor,) = create(NAMES[0], 1)
    run("set", NAMES[0], "master", BRIDGE, "up")
    return Way((machine(0).ipv4[0], GATEWAY), lambda frame: os.write(descriptor, HEADER + frame))


def piped(stack: ExitStack, argv: list[str]) -> tuple[Callable[[bytes], object], int]:
    """Start a program that has, for ``FD``, one end of a stream: each frame after its length."""
    ours, theirs = socket.socketpair()
    stack.enter_context(ours)
    with theirs:
        number = theirs.fileno()
        words = [word.replace("FD", str(number)) for word in argv]
        child = subprocess.Popen(words, pass_fds=[number], stderr=subprocess.DEVNULL)
    stack.callback(child.wait)
    stack.callback(child.kill)
    return lambda frame: ours.sendall(struct.pack("!I", len(frame)) + frame), child.pid


def ways(stack: ExitStack) -> dict[str, Way]:
    """Those that this machine has."""
    found = {"tap": tapped()}
    guest = machine(1).ipv4[0]
    if passt := shutil.which("passt"):
        words = [passt, "--foreground", "--quiet", "--ipv4-only", "--interface", BRIDGE]
        words += ["--address", guest, "--netmask", str(LENGTH), "--gateway", GATEWAY, "--fd", "FD"]
        found["passt"] = Way((guest, GATEWAY), *piped(stack, words))
    words = ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none"]
    words += ["-netdev", "user,id=u", "-netdev", "hubport,id=a,hubid=0,netdev=u"]
    words += ["-netdev", "stream,id=s,addr.type=fd,addr.str=FD"]
    words += ["-netdev", "hubport,id=b,hubid=0,netdev=s"]
    found["slirp"] = Way(SLIRPS, *piped(stack, words), sender_counts=False)
    return found


def rate(way: Way, size: int, receiver: socket.socket) -> float:
    """Thousands a second."""
    segment = frames.udp(*way.addresses, (5000, PORT), bytes(size - HEADERS))
    packet = frames.ipv4(*way.addresses, frames.UDP, segment)
    frame = frames.ethernet(BRIDGES_MAC, machine(0).mac, frames.IPV4, packet)
    work, began = way.work(), time.process_time()
    for _ in range(BURST):
        way.send(frame)
    sending = time.process_time() - began
    for _ in range(BURST):
        receiver.recv(size)
    work = way.work() - work
    return BURST / (work + sending * way.sender_counts) / 1e3


def measured(rounds: int) -> dict[str, list[float]]:
    """By way and size."""
    run("set", "lo", "up")
    run("add", BRIDGE, "address", BRIDGES_MAC, "type", "bridge", "mcast_snooping", "0")
    subprocess.run(["ip", "address", "add", f"{GATEWAY}/{LENGTH}", "dev", BRIDGE], check=True)
    run("set", BRIDGE, "up")
    found: dict[str, list[float]] = {}
    with ExitStack() as stack, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        receiver.bind(("", PORT))
        receiver.settimeout(20)
        there = ways(stack)
        for _ in range(rounds + 1):
            for size in SIZES:
                for name, way in there.items():
                    value = rate(way, size, receiver)
                    found.setdefault(f"{name}, {size}", []).append(value)
    return {name: values[1:] for name, values in found.items()}


if __name__ == "__main__":
    print(json.dumps(measured(int(sys.argv[1]))))

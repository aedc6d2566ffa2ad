# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bridge with two guests, in a network namespace of its own, for ``network`` and ``firewall``.

Run as ``python -m bench._bridge VARIANT``, below ``unshare --net``: ``none`` has no filter,
``sets`` the broker's rules and as many machines in them as are ordered, ``chains`` a chain for each
machine and a jump to it, as libvirt's nwfilter has it; ``filters10`` and ``filters64`` have the
``sets`` and for each machine a filter with as many entries. A new namespace has br_netfilter on
where it is in the kernel, a host only where somebody loads it: it is off, but for a variant that
ends in ``+br_netfilter``. Ports do not learn, and the bridge knows who is where, as the broker has
it.

Orders are JSON lines on standard input: ``["machines", N]`` answers the time in ms that one of the
last took to add, ``["tcp", BYTES]`` and ``["udp", BYTES]`` the frames for each second of a
processor from one guest to the other, in a burst that the other's queue has room for; more than
1,500 bytes are one frame that the kernel is not to divide (TSO), as guests send bulk data.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import frames
from lab.tap import HEADER
from sessionvirt_broker.filterlists import parse_entry
from sessionvirt_broker.filterrules import FilterRules
from sessionvirt_broker.firewall import Firewall, TapRules, link_local
from sessionvirt_broker.tun import create

if TYPE_CHECKING:
    from collections.abc import Callable

BRIDGE = "br-bench"
BRIDGE_NF = Path("/proc/sys/net/bridge")
#: A TAP's queue has room for a thousand.
BURST = 900
MTU = 1500
#: The receiver's.
PORT = 4001
#: Of so many additions the median is told.
LAST = 10
#: struct virtio_net_hdr: VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, the length of the
#: headers and of the segments, where the checksum begins and goes. TUN_F_CSUM | TUN_F_TSO4: the
#: other end takes such.
SEGMENTS = struct.pack("<BBHHHH", 1, 1, 54, 1446, 34, 16)
TUNSETOFFLOAD, OFFLOADS = 0x400454D0, 3
NAMES = ("svt000000000000", "svt000000000001")
#: What one chain holds: as much as the sets permit one machine, in words that nft takes for all.
CHAIN = """\
add chain bridge bench vm_{name}
add rule bridge bench vm_{name} ether saddr != {mac} drop
add rule bridge bench vm_{name} ether type {{ 8021q, 0x88a8, 0x9100 }} drop
add rule bridge bench vm_{name} ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop
add rule bridge bench vm_{name} ether type arp arp saddr ether {mac} arp saddr ip {ipv4} accept
add rule bridge bench vm_{name} udp sport 67 drop
add rule bridge bench vm_{name} ip saddr {ipv4} accept
add rule bridge bench vm_{name} icmpv6 type {{ nd-router-advert, nd-redirect }} drop
add rule bridge bench vm_{name} ip6 saddr {ipv6} accept
add rule bridge bench vm_{name} drop
add rule bridge bench prerouting iifname {name} jump vm_{name}
"""


def machine(number: int) -> TapRules:
    """The machine of this number; the first two are there, the others only in the rules."""
    name = NAMES[number] if number < 2 else f"svt{number:012x}"
    mac = f"52:54:00:01:{number >> 8:02x}:{number & 255:02x}"
    address = str(ipaddress.IPv4Address("10.99.0.2") + number)
    return TapRules(name, 1000, mac, (address,), (f"fd99::{number + 2:x}",), unbound=False)


class Filter:
    """None at all."""

    def add(self, rules: TapRules) -> None:
        pass


class Sets(Filter):
    """The broker's own code and rules."""

    def __init__(self) -> None:
        self._firewall = Firewall()
        self._firewall.ensure()

    def add(self, rules: TapRules) -> None:
        self._firewall.add_tap(rules)


class Filtered(Sets):
    """The broker's own filters of a guest, too: half of the entries deny, half allow.

    No frame of the two guests' is denied, so each is asked about all that is denied, and what is
    allowed is the last.
    """

    def __init__(self, entries: int) -> None:
        super().__init__()
        half = entries // 2
        denied = [
            f"198.51.{n}.0/24" if n % 2 else f"tcp:{n}@192.0.2.{n}" for n in range(1, half + 1)
        ]
        allowed = [f"tcp:{n}" if n % 2 else f"udp:{n}" for n in range(1, half)]
        self._lists = {
            "deny_outbound": tuple(map(parse_entry, denied)),
            "allow_outbound": (),
            "deny_inbound": (),
            "allow_inbound": tuple(map(parse_entry, [*allowed, f"udp:{PORT}"])),
        }

    def add(self, rules: TapRules) -> None:
        super().add(rules)
        filtered = FilterRules(
            ifname=rules.ifname,
            position=1,
            link_local=str(link_local(rules.mac)),
            lists=self._lists,
            deny=frozenset(),
            only_mac=(),
            addresses=(),
            no_broadcast=False,
            no_multicast=frozenset(),
            gateways=(),
            uid=rules.uid,
        )
        self._firewall.filters.add(filtered)


class Chains(Filter):
    """A chain a machine; libnftables takes text here, which is the faster of its two ways."""

    def __init__(self) -> None:
        import nftables

        self._nft = nftables.Nftables()
        self._run("add table bridge bench; add chain bridge bench prerouting"
                  " { type filter hook prerouting priority -300; }")  # fmt: skip

    def _run(self, text: str) -> None:
        code, _, message = self._nft.cmd(text)
        if code:
            raise SystemExit(message)

    def add(self, rules: TapRules) -> None:
        words = {
            "name": rules.ifname,
            "mac": rules.mac,
            "ipv4": rules.ipv4[0],
            "ipv6": rules.ipv6[0],
        }
        self._run(CHAIN.format(**words))


FILTERS: dict[str, Callable[[], Filter]] = {
    "none": Filter,
    "sets": Sets,
    "chains": Chains,
    "filters10": lambda: Filtered(10),
    "filters64": lambda: Filtered(64),
}


class Wire:
    """The bridge, and frames through it."""

    def __init__(self, variant: str) -> None:
        kind, _, more = variant.partition("+")
        self._filter = FILTERS[kind]()
        run("add", BRIDGE, "type", "bridge", "mcast_snooping", "0")
        run("set", BRIDGE, "up")
        for switch in BRIDGE_NF.glob("bridge-nf-call-*"):
            switch.write_text("1" if more == "br_netfilter" else "0")
        self._fds = []
        for number, name in enumerate(NAMES):
            (descriptor,) = create(name, 1)
            os.set_blocking(descriptor, False)
            fcntl.ioctl(descriptor, TUNSETOFFLOAD, OFFLOADS)
            run("set", name, "master", BRIDGE, "up")
            run("set", name, "type", "bridge_slave", "learning", "off")
            entry = (machine(number).mac, "dev", name, "master", "static")
            subprocess.run(["bridge", "fdb", "replace", *entry], check=True)
            self._fds.append(descriptor)

    def machines(self, wanted: int) -> float:
        took = []
        # The two that send come last: a list of jumps is walked to its end for them.
        for number in [*range(2, wanted), 0, 1]:
            start = time.perf_counter()
            self._filter.add(machine(number))
            took.append((time.perf_counter() - start) * 1e3)
        return statistics.median(took[-LAST:])

    def tcp(self, size: int) -> float:
        segment = frames.tcp(*self._where(), (4000, PORT), 0x10, bytes(size - 54))
        return self._send(size, frames.TCP, segment)

    def udp(self, size: int) -> float:
        return self._send(
            size, frames.UDP, frames.udp(*self._where(), (4000, PORT), bytes(size - 42))
        )

    @staticmethod
    def _where() -> tuple[str, str]:
        return machine(0).ipv4[0], machine(1).ipv4[0]

    def _send(self, size: int, protocol: int, payload: bytes) -> float:
        sender, target = machine(0), machine(1)
        packet = frames.ipv4(*self._where(), protocol, payload)
        header = HEADER if size <= MTU + 14 else SEGMENTS
        frame = header + frames.ethernet(target.mac, sender.mac, frames.IPV4, packet)
        burst = BURST if size <= MTU + 14 else BURST // 10
        took = 0.0
        for _ in ("to warm up", "to be measured"):
            took = self._burst(frame, burst)
        return burst / took

    def _burst(self, frame: bytes, count: int) -> float:
        self._drain()
        write, descriptor = os.write, self._fds[0]
        # The processor's time, for a frame's whole way is gone within the call, and a machine that
        # has other work would show how often it took the processor away.
        start = time.process_time()
        for _ in range(count):
            write(descriptor, frame)
        took = time.process_time() - start
        got = self._drain()
        if got != count:
            raise SystemExit(f"{count} frames were sent and {got} came")
        return took

    def _drain(self) -> int:
        """Read what has come; frames of the kernel's own (MLD) are not counted."""
        mark, found = machine(0).mac.replace(":", ""), 0
        while True:
            try:
                found += os.read(self._fds[1], 70000)[16:22].hex() == mark
            except BlockingIOError:
                return found


def run(*words: str) -> None:
    subprocess.run(["ip", "link", *words], check=True)


def main() -> None:
    wire = Wire(sys.argv[1])
    orders: dict[str, Any] = {"machines": wire.machines, "tcp": wire.tcp, "udp": wire.udp}
    for line in sys.stdin:
        name, value = json.loads(line)
        print(json.dumps(orders[name](value)), flush=True)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Four guests, each behind another way from a port of this host, for ``./dev bench firewall``.

All have the same kernel and program, under TCG: a port that takes so many bytes and says so, and
one that gives them. Who asks is in another namespace, beyond a veth pair. The ways are the broker's
published ports; a bridge with the rules of a libvirt network that does NAT, and those that a hook
script adds for a port; passt's ``-t``; ``hostfwd`` of QEMU's own network. They are measured by
turns. What passes the second bridge passes our ``inet forward`` chain as well, to its end.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bench.network import first_line
from lab import host
from lab.client import Client, network_tap, publish
from lab.guest import CMDLINE, Guest
from lab.outside import UPLINK4
from lab.users import User

if TYPE_CHECKING:
    from lab.outside import Outside

__all__ = ["DIRECTIONS", "WAYS", "rates"]

BYTES = 8 << 20
WAYS = ("ours", "hook's DNAT", "passt", "slirp")
#: To the number that is added to the first port of a way; in the guest they are 80 and 81.
DIRECTIONS = {"in": 0, "out": 1}
#: Of the host's ports the first of each way.
PORTS = dict(zip(WAYS, range(8080, 8090, 2), strict=False))
#: Who gives does not end first: the passt of Debian 12 loses what is on its way then.
SCRIPT = """\
ip address add {address} dev eth0
ip route add default via {gateway}
printf '#!/bin/sh\\nhead -c {count} >/dev/null\\necho done\\n' >/take
printf '#!/bin/sh\\nhead -c {count} /dev/zero\\nread end\\n' >/give
chmod +x /take /give
nc -ll -p 81 -e /give &
nc -ll -p 80 -e /take &
say listens
wait
"""
#: Connect, send or receive, and say how many seconds it took.
ASK = """\
import socket, sys, time
address, port, way, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
block = memoryview(bytearray(1 << 18))
start = time.perf_counter()
with socket.create_connection((address, port), timeout=60) as caller:
    if way == "in":
        for _ in range(0, count, len(block)):
            caller.sendall(block)
        left = 0 if caller.recv(10) == b"done\\n" else count
    else:
        left = count
        while left > 0 and (more := caller.recv_into(block)):
            left -= more
print(time.perf_counter() - start if left <= 0 else f"{left} did not come")
"""
#: What libvirt's network and a hook script for a port write, in nft's words.
HOOK = """\
table ip bench_hook {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr {uplink} tcp dport {first} dnat to {guest}:80
    ip daddr {uplink} tcp dport {last} dnat to {guest}:81
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname "{bridge}" ip daddr {guest} tcp dport 80 accept
    oifname "{bridge}" ip daddr {guest} tcp dport 81 accept
    oifname "{bridge}" ip daddr {net} ct state established,related accept
    iifname "{bridge}" ip saddr {net} accept
    iifname "{bridge}" oifname "{bridge}" accept
    oifname "{bridge}" reject
    iifname "{bridge}" reject
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {net} ip daddr != {net} masquerade
  }}
}}
"""
BRIDGE, TAP = "virbr-bench", "vnet-bench"
IPV4_CONF = Path("/proc/sys/net/ipv4/conf")


class Guests:
    """Those that run; they end with the stack."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._directory = Path("/run/lab/bench-guest")
        self._guest = Guest.make(self._directory)

    def boot(self, name: str, netdev: str, mac: str, where: tuple[str, str], *fds: int) -> None:
        """Return when it listens."""
        script = SCRIPT.format(address=where[0], gateway=where[1], count=BYTES)
        guest = self._guest.with_script(script, self._directory / f"initrd-{name}")
        argv = [
            *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-m", "128", "-accel", "tcg", "-kernel", str(guest.kernel)),
            *("-initrd", str(guest.initrd), "-append", CMDLINE, "-serial", "stdio"),
            *("-netdev", netdev, "-device", f"virtio-net-pci,netdev=n,mac={mac}"),
        ]
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=fds
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        self._stack.callback(process.stdout.close)
        if not first_line(process.stdout, b"GUEST: listens"):
            raise SystemExit(f"the guest behind {name} did not start")


def _ours(stack: ExitStack, guests: Guests, gateway: str) -> None:
    client = stack.enter_context(Client(User.named("alice")))
    lease = stack.enter_context(client.acquire(network_tap(), vm="bench"))
    lease.add_one(publish("tap0", PORTS["ours"], 80, ports=2))
    (fd,) = lease.tap.fds
    length = gateway.partition("/")[2]
    where = f"{lease.tap.ipv4}/{length}", gateway.partition("/")[0]
    guests.boot("ours", f"tap,id=n,fd={fd}", lease.tap.mac, where, fd)


def _hook(guests: Guests) -> None:
    host.ip("link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0")
    host.ip("address", "add", "10.98.0.1/24", "dev", BRIDGE)
    host.ip("link", "set", BRIDGE, "up")
    host.ip("tuntap", "add", TAP, "mode", "tap", "vnet_hdr")
    host.ip("link", "set", TAP, "master", BRIDGE, "up")
    (IPV4_CONF / BRIDGE / "forwarding").write_text("1")
    first = PORTS["hook's DNAT"]
    text = HOOK.format(
        uplink=UPLINK4, guest="10.98.0.2", net="10.98.0.0/24", bridge=BRIDGE,
        first=first, last=first + 1,
    )  # fmt: skip
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
    netdev = f"tap,id=n,ifname={TAP},script=no,downscript=no"
    guests.boot("hook", netdev, "52:54:00:00:00:02", ("10.98.0.2/24", "10.98.0.1"))


def _passt(stack: ExitStack, guests: Guests, program: str) -> None:
    first = PORTS["passt"]
    near, far = (stack.enter_context(one) for one in socket.socketpair())
    argv = [program, "--foreground", "--quiet", "--ipv4-only", "--interface", "up0"]
    argv += ["--address", "10.97.0.2", "--netmask", "24", "--gateway", "10.97.0.1"]
    argv += ["--tcp-ports", f"{first}:80,{first + 1}:81", "--fd", str(far.fileno())]
    child = subprocess.Popen(argv, pass_fds=[far.fileno()], stderr=subprocess.DEVNULL)
    stack.callback(child.wait)
    stack.callback(child.kill)
    netdev = f"stream,id=n,server=off,addr.type=fd,addr.str={near.fileno()}"
    where = "10.97.0.2/24", "10.97.0.1"
    guests.boot("passt", netdev, "52:54:00:00:00:03", where, near.fileno())


def _slirp(guests: Guests) -> None:
    first = PORTS["slirp"]
    forwards = [f"hostfwd=tcp:{UPLINK4}:{first + n}-:{80 + n}" for n in DIRECTIONS.values()]
    netdev = ",".join(["user", "id=n", *forwards])
    guests.boot("slirp", netdev, "52:54:00:00:00:04", ("10.0.2.15/24", "10.0.2.2"))


def _rate(outside: Outside, port: int, direction: str) -> float | None:
    """MB a second; None: not all of it came."""
    words = [UPLINK4, str(port), direction, str(BYTES)]
    said = outside.run([sys.executable, "-I", "-c", ASK, *words]).strip()
    try:
        return BYTES / float(said) / 1e6
    except ValueError:
        print(f"{direction} through port {port}: {said}", file=sys.stderr)
        return None


def rates(outside: Outside, gateway: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """By way and direction; a way whose program is not installed is not there.

    :param gateway: of the network default, with the prefix's length.
    """
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        guests = Guests(stack)
        _hook(guests)
        _ours(stack, guests, gateway)
        _slirp(guests)
        if passt := shutil.which("passt"):
            _passt(stack, guests, passt)
        ways = [way for way in WAYS if way != "passt" or passt]
        for number in range(rounds + 1):
            for direction, more in DIRECTIONS.items():
                for way in ways:
                    rate = _rate(outside, PORTS[way] + more, direction)
                    if number and rate is not None:
                        found.setdefault((way, direction), []).append(rate)
    subprocess.run(["nft", "delete", "table", "ip", "bench_hook"], check=True)
    host.ip("link", "delete", BRIDGE)
    return found

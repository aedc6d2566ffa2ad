# SPDX-License-Identifier: LGPL-2.1-or-later
"""What conntrack helpers expect: of others than the flow's own two ends it opens nothing.

Whoever speaks in a flow that has a helper says what is expected. The broker assigns none to any.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.client import network_tap, publish
from lab.expecting import Flow, assigned, expect
from lab.kernelguest import KernelGuest
from lab.outside import ADDRESS4, ADDRESS6, PORT, UPLINK4, UPLINK6, Outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client, Lease

pytestmark = pytest.mark.kernel

CONFIGURATION = """
[network.n]
ipv4 = "10.68.0.1/24"
ipv6 = "fd68::1/64"
nat6 = true
"""
GATEWAYS = ("10.68.0.1/24", "fd68::1/64")
GATEWAY4, GATEWAY6 = "10.68.0.1", "fd68::1"
#: The helper of H.323's calls: a "callForwarded" names any address (net/netfilter/
#: nf_conntrack_h323_main.c, expect_callforwarding()).
CALLS = "Q.931"
PUBLISHED, SERVICE = 8400, 9997

#: In the guest: a client of FTP, whose server is only patient. What was said has been received, and
#: so has passed the helper (SIOCOUTQ, tcp(7)).
CLIENT = """
import fcntl, socket, sys, termios, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as server:
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(*server.getsockname()[:2], flush=True)
    server.sendall(b"GET /hold HTTP/1.0\\r\\n\\r\\n")
    for line in sys.stdin:
        server.sendall(line.strip().encode() + b"\\r\\n")
        while any(fcntl.ioctl(server, termios.TIOCOUTQ, bytes(4))):
            time.sleep(0.001)
        print("said", flush=True)
"""


@pytest.fixture(scope="module")
def world(lasting_broker: Broker) -> Iterator[Outside]:
    lasting_broker.configure(CONFIGURATION)
    with Outside() as outside:
        for target, via in (("10.68.0.0/24", UPLINK4), ("fd68::/64", UPLINK6)):
            outside.run(["ip", "route", "add", target, "via", via])
        yield outside


@pytest.fixture(scope="module")
def web(world: Outside, alices: Client) -> Iterator[Lease]:
    with alices.acquire(network_tap("n"), vm="web") as lease:
        yield lease


@pytest.fixture(scope="module")
def alice(web: Lease) -> Iterator[KernelGuest]:
    with KernelGuest("alice", web.tap, GATEWAYS) as guest:
        yield guest


@pytest.fixture(scope="module")
def bob(world: Outside, bobs: Client) -> Iterator[KernelGuest]:
    with (
        bobs.acquire(network_tap("n"), vm="other") as lease,
        KernelGuest("bob", lease.tap, GATEWAYS) as guest,
    ):
        yield guest


@contextlib.contextmanager
def connected(
    guest: KernelGuest, address: str, port: int = PORT
) -> Iterator[subprocess.Popen[str]]:
    """A connection of a guest's; what it prints first are its own address and port."""
    argv = guest.command([sys.executable, "-I", "-c", CLIENT, address, str(port)])
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "said\n"


def own(process: subprocess.Popen[str]) -> tuple[str, int]:
    assert process.stdout is not None
    address, port = process.stdout.readline().split()
    return address, int(port)


def data_port(address: str, port: int) -> str:
    """FTP: where the server shall connect to."""
    if ":" in address:
        return f"EPRT |2|{address}|{port}|"
    return f"PORT {address.replace('.', ',')},{port >> 8},{port & 255}"


@pytest.mark.parametrize(
    ("server", "uplink"), [(ADDRESS4, UPLINK4), (ADDRESS6, UPLINK6)], ids=["ipv4", "ipv6"]
)
def test_f67_a_client_of_ftp_opens_its_own_port_and_nobody_elses(
    server: str, uplink: str, world: Outside, alice: KernelGuest, bob: KernelGuest
) -> None:
    def ends(guest: KernelGuest) -> str:
        return guest.tap.ipv6 if ":" in server else guest.tap.ipv4

    with assigned("ftp", PORT), connected(alice, server) as control:
        own(control)
        assert world.ask("tcp", uplink, 81) == "ConnectionRefusedError"
        say(control, data_port(ends(bob), 81))
        assert world.ask("tcp", uplink, 81) == "ConnectionRefusedError"
        assert world.ask("tcp", ends(bob), 81, timeout=0.3) == "TimeoutError"
        say(control, data_port(ends(alice), 81))
        assert world.ask("tcp", uplink, 81) == f"alice 81 {server}"


@pytest.mark.parametrize("version", [4, 6])
def test_f67_nobody_outside_is_forwarded_to_anothers_guest(
    version: int, world: Outside, web: Lease, alice: KernelGuest, bob: KernelGuest
) -> None:
    """By a guest that has published a port and says that the call goes on there."""
    theirs, uplink = (ADDRESS4, UPLINK4) if version == 4 else (ADDRESS6, UPLINK6)
    target = bob.tap.ipv4 if version == 4 else bob.tap.ipv6
    source = 41000 + version
    grant = web.add_one(publish("tap0", PUBLISHED, 80))
    try:
        with assigned(CALLS, 80):
            answer = world.ask("tcp", uplink, PUBLISHED, source=theirs, sport=source)
            assert answer == f"alice 80 {theirs}"
            expect(Flow(theirs, uplink, (source, PUBLISHED)), Flow(theirs, target, (0, 82)))
            assert world.ask("tcp", target, 82, timeout=0.3) == "TimeoutError"
    finally:
        web.drop(grant["id"])


@pytest.mark.parametrize(
    ("server", "gateway"), [(ADDRESS4, GATEWAY4), (ADDRESS6, GATEWAY6)], ids=["ipv4", "ipv6"]
)
def test_f67_no_guest_is_forwarded_to_the_host_or_anothers_guest(
    server: str, gateway: str, world: Outside, alice: KernelGuest, bob: KernelGuest
) -> None:
    """By somebody outside whom it asked."""
    other = bob.tap.ipv6 if ":" in server else bob.tap.ipv4
    with (
        assigned(CALLS, PORT),
        host.listener(gateway, SERVICE, socket.SOCK_STREAM) as service,
        connected(alice, server) as call,
    ):
        address, port = own(call)
        for target, theirs in ((gateway, SERVICE), (other, 82)):
            expect(Flow(address, server, (port, PORT)), Flow(address, target, (0, theirs)))
            assert alice.ask("tcp", target, theirs) == "TimeoutError"
        with pytest.raises(BlockingIOError):
            service.accept()


@pytest.mark.usefixtures("bridge_nf")
@pytest.mark.parametrize("bridge_nf", [False], indirect=True, ids=["no-nf"])
@pytest.mark.parametrize("gateway", [GATEWAY4, GATEWAY6], ids=["ipv4", "ipv6"])
def test_f67_no_guest_is_called_back_by_whom_it_asked(
    gateway: str, web: Lease, alice: KernelGuest, bob: KernelGuest
) -> None:
    """Where what is published turns round: it is translated, and so is what is expected of it."""
    own_address = alice.tap.ipv6 if ":" in gateway else alice.tap.ipv4
    grant = web.add_one(publish("tap0", PUBLISHED, 80))
    try:
        for helper, answer in ((CALLS, "TimeoutError"), ("ftp", f"bob 82 {gateway}")):
            with assigned(helper, 80), connected(bob, gateway, PUBLISHED) as call:
                address, port = own(call)
                master = Flow(address, gateway, (port, PUBLISHED))
                expect(master, Flow(own_address, gateway, (0, 9000)), back=82)
                assert alice.ask("tcp", gateway, 9000) == answer
    finally:
        web.drop(grant["id"])

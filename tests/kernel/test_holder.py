# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who holds a TAP's fd is hostile: nothing that it can do outlives the lease, or touches others'.

The ioctls are done by a program of the user's, without any capability, as a QEMU would be.
"""

from __future__ import annotations

import os
import struct
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.broker import RUNTIME
from lab.client import Client, RefusalError, network_tap
from lab.links import wait_for_link
from lab.tap import as_user
from lab.users import User
from sessionvirt_broker.tun import create

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Lease

pytestmark = pytest.mark.kernel

BRIDGE = "svn_default"
VICTIM = "52:54:00:00:44:02"


@pytest.fixture(scope="module")
def alice_(lasting_broker: Broker) -> User:
    return User.named("alice")


@pytest.fixture
def lease(lasting_broker: Broker, alices: Client) -> Iterator[Lease]:
    with alices.acquire(network_tap(mac="52:54:00:00:44:01")) as given:
        yield given


@pytest.fixture
def victim(lasting_broker: Broker, bobs: Client) -> Iterator[Lease]:
    with bobs.acquire(network_tap(mac=VICTIM)) as given:
        yield given


def hostile(user: User, lease: Lease, program: str) -> None:
    as_user(user, lease.tap.fds[0], program)


SET_MAC = """
address = bytes.fromhex("{mac}")
request = struct.pack("16sH6s16x", b"{name}", 1, address)
fcntl.ioctl(fd, 0x8924, request)  # SIOCSIFHWADDR
"""


def set_mac(lease: Lease, mac: str) -> str:
    return SET_MAC.format(mac=mac.replace(":", ""), name=lease.tap.ifname)


def gone(lease: Lease) -> None:
    """Wait for the broker to have ended a lease, and look for anything left of it."""
    wait_for_link(lease.tap.ifname, present=False)
    lease.client.settle()
    with pytest.raises(KeyError):
        lease.listed()
    assert lease.tap.ifname not in host.nft("list", "ruleset")
    assert not (RUNTIME / "holds" / lease.id).exists()
    assert not (RUNTIME / "records" / f"lease-{lease.id}.json").exists()


@pytest.mark.parametrize("mac", [VICTIM, "00:00:00:00:00:44"], ids=["victim", "lowest"])
def test_d44_a_changed_address_ends_the_lease(
    mac: str, lease: Lease, victim: Lease, alice_: User
) -> None:
    bridge = host.link(BRIDGE)["address"]
    hostile(alice_, lease, set_mac(lease, mac))
    gone(lease)
    # The other guest's address leads to the other guest again, and the bridge kept its own.
    assert host.link(BRIDGE)["address"] == bridge
    assert victim.tap.ask_arp("10.213.80.1") == bridge
    with pytest.raises(OSError, match="bad state"):
        lease.tap.send(bytes(60))


PERSIST, OWNER, GROUP = (
    "fcntl.ioctl(fd, 0x400454CB, 1)",
    "fcntl.ioctl(fd, 0x400454CC, os.getuid())",
    "fcntl.ioctl(fd, 0x400454CE, os.getgid())",
)


@pytest.mark.parametrize("end", ["release", "hold"])
@pytest.mark.parametrize(
    "program",
    [PERSIST, f"{OWNER}\n{PERSIST}", f"{GROUP}\n{PERSIST}"],
    ids=["persist", "owner", "group"],
)
def test_d44_a_persistent_tap_does_not_outlive_its_lease(
    program: str, end: str, lease: Lease, alice_: User
) -> None:
    hostile(alice_, lease, program)
    if end == "release":
        lease.release()
        assert host.ours() == []
    else:
        lease.close()
    gone(lease)


@pytest.mark.parametrize(
    "program",
    [
        "fcntl.ioctl(fd, 0x400454CD, 512)",  # TUNSETLINK
        "fcntl.ioctl(fd, 0x800454CF)",  # a wrong one
        "fcntl.ioctl(fd, 0x8914, struct.pack('16sH22x', b'{name}', 0))",  # SIOCSIFFLAGS: down
        "fcntl.ioctl(fd, 0x8923, struct.pack('16s16sxxxxxxxx', b'{name}', b'mine'))",  # SIOCSIFNAME
    ],
    ids=["link-type", "unknown", "down", "rename"],
)
def test_d44_what_the_kernel_refuses(program: str, lease: Lease, alice_: User) -> None:
    text = f"try:\n    {program}\nexcept OSError:\n    print('refused')"
    said = as_user(alice_, lease.tap.fds[0], text.replace("{name}", lease.tap.ifname))
    assert said == "refused\n"
    assert lease.tap.ask_arp("10.213.80.1")


#: What a holder may do to its own end: after each a forged frame is dropped and counted as before.
OWN_END = {
    "attach-filter": """
import ctypes
everything = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF))  # BPF_RET
fcntl.ioctl(fd, 0x401054D5, struct.pack("HxxxxxxQ", 1, ctypes.addressof(everything)))
""",
    "header-size": "fcntl.ioctl(fd, 0x400454D8, struct.pack('i', 12))",  # TUNSETVNETHDRSZ
    "big-endian": "fcntl.ioctl(fd, 0x400454DE, struct.pack('i', 1))",  # TUNSETVNETBE
    "offloads": "fcntl.ioctl(fd, 0x400454D0, 0x1F)",  # TUNSETOFFLOAD
    "send-buffer": "fcntl.ioctl(fd, 0x400454D4, struct.pack('i', 1))",  # TUNSETSNDBUF
    "carrier": "fcntl.ioctl(fd, 0x400454E2, struct.pack('i', 0))\n"  # TUNSETCARRIER
    "fcntl.ioctl(fd, 0x400454E2, struct.pack('i', 1))",
}


@pytest.mark.parametrize("how", OWN_END)
def test_d44_what_a_holder_does_to_its_own_end_opens_nothing(
    how: str, lease: Lease, victim: Lease, alice_: User
) -> None:
    tap, header = lease.tap, 12 if how == "header-size" else 10
    gateway = tap.ask_arp("10.213.80.1")
    text = f"try:\n    {OWN_END[how].strip().replace(chr(10), chr(10) + '    ')}"
    as_user(alice_, tap.fds[0], f"{text}\nexcept OSError as error:\n    print(error)")
    honest = tap.udp4(gateway, "10.213.80.1", (4000, 4000))
    before = lease.drops()  # its question about the gateway is not for others
    os.write(tap.fds[0], bytes(header) + honest)
    assert lease.drops() == before
    os.write(tap.fds[0], bytes(header) + forged_mac(honest))
    assert lease.drops() == {**before, "mac": 1}
    assert lease.listed()["state"].value == "held"
    assert victim.tap.ask_arp("10.213.80.1") == gateway


def forged_mac(frame: bytes) -> bytes:
    return frame[:6] + frames.mac_bytes(VICTIM) + frame[12:]


#: struct virtio_net_hdr, of TCP over IPv4 without options: VIRTIO_NET_HDR_F_NEEDS_CSUM,
#: VIRTIO_NET_HDR_GSO_TCPV4, the headers' length, the segments', where the checksum is, and goes to.
SEGMENTS = struct.pack("<BBHHHH", 1, 1, 54, 100, 34, 16)


def test_d44_a_forged_frame_that_the_kernel_is_to_divide_is_dropped_too(
    lease: Lease, victim: Lease, lasting_broker: Broker, alices: Client
) -> None:
    with alices.acquire(network_tap(mac="52:54:00:00:44:03"), vm="peer") as peer:
        a, b = lease.tap, peer.tap
        segment = frames.tcp(a.ipv4, b.ipv4, (4000, 4001), 0x10) + bytes(1000)
        honest = a.to4(b.mac, b.ipv4, frames.TCP, segment)
        os.write(a.fds[0], SEGMENTS + honest)
        b.until(lambda p: p.ports == (4000, 4001) and p.source_mac == a.mac)
        b.waiting()
        os.write(a.fds[0], SEGMENTS + forged_mac(honest))
        assert lease.drops()["mac"] == 1
        assert a.reaches(b, a.udp4(b.mac, b.ipv4, (4002, 4003)))


#: With an open /dev/net/tun in its hands, which everybody can open on most hosts.
ATTACH = """
for flags in (0x5102, 0x5002, 0x1102, 0x0102):
    try:
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"{name}", flags))
    except OSError:
        continue
    print(f"attached with {{flags:#x}}")
"""


def attach(user: User, lease: Lease) -> str:
    device = os.open("/dev/net/tun", os.O_RDWR)
    try:
        return as_user(user, device, ATTACH.format(name=lease.tap.ifname))
    finally:
        os.close(device)


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_d44_nobody_adds_a_queue_to_a_tap(
    name: str, lasting_broker: Broker, alices: Client
) -> None:
    with alices.acquire(network_tap(queues=2)) as lease:
        assert len(lease.tap.fds) == 2
        said = attach(User.named(name), lease)
        assert said == ""


def test_d44_an_owner_can_only_add_a_queue_to_what_is_theirs(
    lasting_broker: Broker, alices: Client, alice_: User
) -> None:
    # A holder may make itself the owner, and may then attach: to its own TAP.
    with alices.acquire(network_tap(queues=2)) as lease:
        hostile(alice_, lease, OWNER)
        said = attach(alice_, lease)
        assert "attached" in said
        said = attach(User.named("bob"), lease)
        assert said == ""
    assert host.ours() == []


def test_d42_a_lease_lives_as_long_as_any_copy_of_its_hold(
    lasting_broker: Broker, alices: Client
) -> None:
    with alices.acquire() as lease:
        copy = os.dup(lease.hold)
        lease.let_go()
        alices.settle()
        assert lease.listed()["state"].value == "held"
        lease.tap.ask_arp("10.213.80.1")
        os.close(copy)
        gone(lease)


def test_d44_a_holder_that_writes_keeps_its_lease_and_nobody_awake(
    lasting_broker: Broker, alices: Client
) -> None:
    with alices.acquire() as lease:
        os.set_blocking(lease.hold, False)
        with suppress(BlockingIOError):
            while True:
                os.write(lease.hold, b"x" * 4096)
        busy = cpu(lasting_broker.daemon.pid)
        for _ in range(5):
            alices.settle()
        assert cpu(lasting_broker.daemon.pid) - busy < 50  # hundredths of a second
        assert lease.listed()
        lease.let_go()
        gone(lease)


def cpu(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# Names, and what is taken away


def test_d37_an_interface_of_the_networks_name_is_not_taken_over(
    lasting_broker: Broker, alices: Client
) -> None:
    for kind in (["type", "bridge"], ["type", "veth", "peer", "name", "sqt0"], None):
        if kind:
            host.ip("link", "add", BRIDGE, *kind)
        else:
            host.ip("tuntap", "add", BRIDGE, "mode", "tap")
        before = host.link(BRIDGE)
        try:
            with pytest.raises(RefusalError, match="is not ours") as refusal:
                alices.acquire()
            assert refusal.value.name == "DeviceUnsafe"
            assert host.link(BRIDGE) == before
            assert host.forwarding(BRIDGE) == "0"
            assert BRIDGE not in host.nft("list", "ruleset").replace('"svn_*"', "")
        finally:
            host.ip("link", "del", BRIDGE)
        with alices.acquire() as lease:
            assert lease.tap.ask_arp("10.213.80.1")


@pytest.mark.parametrize("queues", [1, 2])
def test_d37_a_tap_of_the_name_is_not_taken_over(queues: int) -> None:
    """The name is by chance; were it another's, even a persistent one's, that stays theirs."""
    name = "svt000000000037"
    host.ip("tuntap", "add", name, "mode", "tap", *(["multi_queue"] if queues > 1 else []))
    try:
        before = host.link(name)
        with pytest.raises(OSError, match="busy"):
            create(name, queues)
        assert host.link(name) == before
    finally:
        host.ip("link", "del", name)


def test_d45_a_bridge_that_is_removed_ends_its_leases(lease: Lease, victim: Lease) -> None:
    host.ip("link", "del", BRIDGE)
    gone(lease)
    gone(victim)
    assert host.ours() == []
    with lease.client.acquire() as again:
        assert again.tap.ask_arp("10.213.80.1")


def test_d45_a_tap_that_is_taken_from_its_bridge_ends_its_lease(
    lease: Lease, victim: Lease
) -> None:
    host.ip("link", "set", lease.tap.ifname, "nomaster")
    gone(lease)
    assert victim.tap.ask_arp("10.213.80.1")


def test_d45_a_tap_that_is_deleted_ends_its_lease(lease: Lease, victim: Lease) -> None:
    host.ip("link", "del", lease.tap.ifname)
    gone(lease)
    assert victim.tap.ask_arp("10.213.80.1")


def test_d45_what_an_administrator_does_not_harm_with_is_left_alone(lease: Lease) -> None:
    host.ip("link", "set", BRIDGE, "down")
    host.ip("link", "set", lease.tap.ifname, "txqueuelen", "500")
    lease.client.settle()
    assert lease.listed()
    host.ip("link", "set", BRIDGE, "up")
    subprocess.run(["ip", "address", "replace", "10.213.80.1/20", "dev", BRIDGE], check=True)
    assert lease.tap.ask_arp("10.213.80.1")

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Packets that are large: in fragments on a network of 1500 bytes, whole on one of 9000.

To the host, to a guest of the same user and to the world, for IPv4 and IPv6, by UDP, TCP and ICMP;
with br_netfilter, which puts together and divides again, and without.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.client import network_tap
from lab.outside import ADDRESS4, PORT, UPLINK4, Outside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.broker import Broker
    from lab.client import Client
    from lab.frames import Packet
    from lab.tap import Tap

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.usefixtures("bridge_nf"),
    pytest.mark.parametrize("bridge_nf", [True, False], indirect=True, ids=["nf", "no-nf"]),
]

SMALL, JUMBO = "10.213.80.1", "10.214.0.1"
SMALL6, JUMBO6 = "fd53:7669:7274:1::1", "fd53:7669:7274:9::1"
NETWORKS = f"""
[network.default]
ipv4 = "{SMALL}/20"
ipv6 = "{SMALL6}/64"

[network.jumbo]
ipv4 = "{JUMBO}/24"
ipv6 = "{JUMBO6}/64"
mtu = 9000
"""
#: Bytes of a datagram: three fragments of 1500 bytes; whole in 9000.
LARGE = 4000
PAYLOAD = bytes(number % 251 for number in range(LARGE))


@pytest.fixture(scope="module")
def world(lasting_broker: Broker) -> Iterator[Outside]:
    with Outside() as outside:
        yield outside


@pytest.fixture(scope="module")
def pairs(
    world: Outside, lasting_broker: Broker, alices: Client
) -> Iterator[dict[str, tuple[Tap, Tap]]]:
    """Two guests of one user on each of the networks."""
    lasting_broker.configure(NETWORKS)
    with alices.acquire(*[network_tap()] * 2, *[network_tap("jumbo")] * 2) as lease:
        for tap in lease.taps:
            tap.attentive = True
        one, two, three, four = lease.taps
        assert (one.facts["mtu"], three.facts["mtu"]) == (1500, 9000)
        yield {"small": (one, two), "jumbo": (three, four)}


def pieces(a: Tap, mac: str, target: str, protocol: int, segment: bytes, size: int) -> list[bytes]:
    """A packet in frames of *size* bytes at most, as a guest's IP would make them."""
    six = ":" in target
    step = (size - 48 if six else size - 20) // 8 * 8
    if len(segment) <= size - (40 if six else 20):
        whole = a.to6(mac, a.ipv6, target, protocol, segment)
        return [whole if six else a.to4(mac, target, protocol, segment)]
    found = []
    for offset in range(0, len(segment), step):
        part, more = segment[offset : offset + step], offset + step < len(segment)
        if six:
            head = frames.fragment6(protocol, offset, more=more)
            found.append(a.to6(mac, a.ipv6, target, frames.FRAGMENT, head + part))
        else:
            frame = a.to4(mac, target, protocol, part, identification=9, offset=offset, more=more)
            found.append(frame)
    return found


def part_of(packet: Packet) -> tuple[int, bytes, bool]:
    """Offset, bytes and whether more come, of a packet that may be a fragment."""
    body = packet.frame[14:]
    if packet.ethertype == frames.IPV4:
        flags = int.from_bytes(body[6:8], "big")
        length = int.from_bytes(body[2:4], "big")
        return (flags & 0x1FFF) * 8, body[(body[0] & 15) * 4 : length], bool(flags & 0x2000)
    if body[6] != frames.FRAGMENT:
        return 0, body[40:], False
    word = int.from_bytes(body[42:44], "big")
    return word & 0xFFF8, body[48:], bool(word & 1)


def whole(tap: Tap, source: str) -> bytes:
    """The next packet of *source*, put together: what is behind its IP header.

    :raise TimeoutError: some of it did not come.
    """
    parts: dict[int, bytes] = {}
    end = 0

    def complete(packet: Packet) -> bool:
        nonlocal end
        if packet.source != source or packet.ethertype == frames.ARP:
            return False
        if packet.protocol == frames.ICMP6 and packet.kind in (135, 136):
            return False
        offset, data, more = part_of(packet)
        parts[offset] = data
        end = end if more else offset + len(data)
        return end > 0 and sum(map(len, parts.values())) == end

    tap.until(complete)
    return b"".join(parts[offset] for offset in sorted(parts))


def segment_of(protocol: int, source: str, target: str) -> bytes:
    """A large one."""
    if protocol == frames.UDP:
        return frames.udp(source, target, (4000, 4001), PAYLOAD)
    if protocol == frames.ICMP:
        return frames.echo4(9, PAYLOAD)
    if protocol == frames.ICMP6:
        return frames.icmp6(source, target, 128, b"\0\x09\0\x01" + PAYLOAD)
    return frames.tcp(source, target, (4000, 4001), 0x10, PAYLOAD)


BETWEEN = [
    ("ipv4", frames.UDP),
    ("ipv4", frames.TCP),
    ("ipv4", frames.ICMP),
    ("ipv6", frames.UDP),
    ("ipv6", frames.TCP),
    ("ipv6", frames.ICMP6),
]


@pytest.mark.parametrize("size", ["small", "jumbo"])
@pytest.mark.parametrize(("family", "protocol"), BETWEEN)
def test_large_packets_pass_between_guests_of_one_user(
    family: str, protocol: int, size: str, pairs: dict[str, tuple[Tap, Tap]]
) -> None:
    for a, b in (pairs[size], pairs[size][::-1]):
        source, target = getattr(a, family), getattr(b, family)
        segment = segment_of(protocol, source, target)
        b.waiting()
        sent = pieces(a, b.mac, target, protocol, segment, a.facts["mtu"])
        assert len(sent) == (1 if size == "jumbo" else 3)
        a.send(*sent)
        assert whole(b, source) == segment


@pytest.mark.parametrize(
    ("size", "gateway"),
    [("small", SMALL), ("small", SMALL6), ("jumbo", JUMBO), ("jumbo", JUMBO6)],
)
def test_the_host_answers_a_large_ping(
    size: str, gateway: str, pairs: dict[str, tuple[Tap, Tap]]
) -> None:
    tap = pairs[size][0]
    six = ":" in gateway
    mac = tap.ask_arp(JUMBO if size == "jumbo" else SMALL)
    source, protocol = (tap.ipv6, frames.ICMP6) if six else (tap.ipv4, frames.ICMP)
    segment = segment_of(protocol, source, gateway)
    tap.waiting()
    tap.send(*pieces(tap, mac, gateway, protocol, segment, tap.facts["mtu"]))
    answer = whole(tap, gateway)
    assert answer[0] == (129 if six else 0)
    assert answer[8:] == PAYLOAD


@pytest.mark.parametrize("uplink", [1500, 9000])
@pytest.mark.parametrize("size", ["small", "jumbo"])
def test_large_datagrams_reach_the_world(
    size: str, uplink: int, pairs: dict[str, tuple[Tap, Tap]], world: Outside
) -> None:
    host.ip("link", "set", "up0", "mtu", str(uplink))
    world.run(["ip", "link", "set", "out0", "mtu", str(uplink)])
    tap = pairs[size][0]
    mac = tap.ask_arp(JUMBO if size == "jumbo" else SMALL)
    segment = frames.udp(tap.ipv4, ADDRESS4, (6200 + uplink, PORT), PAYLOAD)
    tap.send(*pieces(tap, mac, ADDRESS4, frames.UDP, segment, tap.facts["mtu"]))
    answer = tap.until(lambda p: p.ports == (PORT, 6200 + uplink))[-1]
    assert answer.payload == f"{UPLINK4}\n".encode()
    # And a large ping comes back as it went.
    segment = frames.echo4(9, PAYLOAD)
    tap.waiting()
    tap.send(*pieces(tap, mac, ADDRESS4, frames.ICMP, segment, tap.facts["mtu"]))
    answer_ping = whole(tap, ADDRESS4)
    assert (answer_ping[0], answer_ping[8:]) == (0, PAYLOAD)


def test_a_guest_hears_how_much_the_way_out_takes(
    pairs: dict[str, tuple[Tap, Tap]], world: Outside
) -> None:
    """What must not be divided is answered with the size that would pass (RFC 1191)."""
    host.ip("link", "set", "up0", "mtu", "1500")
    tap = pairs["jumbo"][0]
    mac = tap.ask_arp(JUMBO)
    segment = frames.udp(tap.ipv4, ADDRESS4, (6300, PORT), PAYLOAD)
    tap.send(undivided(tap.to4(mac, ADDRESS4, frames.UDP, segment)))
    told = tap.until(lambda p: p.protocol == frames.ICMP and p.kind == 3)[-1]
    assert told.source == JUMBO
    assert int.from_bytes(told.payload[2:4], "big") == 1500
    quoted = told.payload[4:]
    assert str(ipaddress.IPv4Address(quoted[12:16])) == tap.ipv4


def undivided(frame: bytes) -> bytes:
    """With the bit that forbids fragments."""
    head = frame[14:20] + b"\x40\0" + frame[22:24] + b"\0\0" + frame[26:34]
    head = head[:10] + frames.checksum(head).to_bytes(2, "big") + head[12:]
    return frame[:14] + head + frame[34:]


FORGED: dict[str, Callable[[Tap, Tap], bytes]] = {
    "mac": lambda a, b: pieces(a, b.mac, b.ipv4, frames.UDP, PAYLOAD, 9000)[0].replace(
        frames.mac_bytes(a.mac), frames.mac_bytes(b.mac), 1
    ),
    "ipv4": lambda a, b: frames.ethernet(
        b.mac, a.mac, frames.IPV4, frames.ipv4(b.ipv4, a.ipv4, frames.UDP, PAYLOAD)
    ),
    "ipv6": lambda a, b: a.to6(b.mac, b.ipv6, a.ipv6, frames.UDP, PAYLOAD),
}


@pytest.mark.parametrize("reason", FORGED)
def test_d40_a_large_forged_frame_is_dropped(
    reason: str, pairs: dict[str, tuple[Tap, Tap]], alices: Client
) -> None:
    a, b = pairs["jumbo"]

    def drops() -> int:
        (lease,) = alices.leases()
        return int(lease["drops"].value.get(reason, 0))

    before = drops()
    assert not a.reaches(b, FORGED[reason](a, b))
    assert drops() == before + 1


def test_more_than_the_network_takes_is_not_delivered(pairs: dict[str, tuple[Tap, Tap]]) -> None:
    a, b = pairs["small"]
    assert not a.reaches(b, a.udp4(b.mac, b.ipv4, (4000, 4001), PAYLOAD))

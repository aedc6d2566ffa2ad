# SPDX-License-Identifier: LGPL-2.1-or-later
"""Filters with real packets: what a list forbids is dropped and counted, and its twin arrives.

Two guests of one user: the filter is always the first one's. A frame has been delivered, or not,
when it is sent; so "it did not arrive" needs no waiting.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from lab import frames, host
from lab.client import RefusalError, frame_filter, network_tap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.broker import Broker
    from lab.client import Client, Lease
    from lab.tap import Tap

pytestmark = pytest.mark.kernel

GATEWAY, GATEWAY6 = "10.213.80.1", "fd53:7669:7274:1::1"
TABLE = "bridge sessionvirt_filter"
LISTS = ("deny_outbound", "allow_outbound", "deny_inbound", "allow_inbound")
ACK, GRE = 0x10, 47
_ports = itertools.count(30000)


@dataclass(frozen=True)
class Guests:
    """A lease with the guest that is filtered, its TAP, and its neighbour's."""

    lease: Lease
    one: Tap
    two: Tap

    def ends(self, direction: str) -> tuple[Tap, Tap]:
        """Sender and receiver."""
        return (self.one, self.two) if direction.endswith("outbound") else (self.two, self.one)

    def dropped(self) -> int:
        return self.lease.drops().get("filter", 0)


@pytest.fixture(scope="module")
def guests(lasting_broker: Broker, alices: Client) -> Iterator[Guests]:
    with (
        alices.acquire(network_tap(), vm="filtered") as one,
        alices.acquire(network_tap(), vm="free") as two,
    ):
        yield Guests(one, one.tap, two.tap)


@pytest.fixture(autouse=True)
def _nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "guests" in request.fixturenames:
        lease = request.getfixturevalue("guests").lease
        ids = [grant["id"].value for grant in lease.listed()["grants"].value]
        lease.drop(*(one for one in ids if one.startswith("filter")))
        assert TABLE not in host.tables()


def passes(sender: Tap, receiver: Tap, frame: bytes) -> bool:
    """Whether a frame arrives."""
    receiver.waiting()
    sender.send(frame)
    return frame in [packet.frame for packet in receiver.waiting()]


# Frames


def packet(sender: Tap, receiver: Tap, version: int, protocol: int, payload: bytes) -> bytes:
    if version == 4:
        return sender.to4(receiver.mac, receiver.ipv4, protocol, payload)
    return sender.to6(receiver.mac, sender.ipv6, receiver.ipv6, protocol, payload)


def addresses(sender: Tap, receiver: Tap, version: int) -> tuple[str, str]:
    return (sender.ipv4, receiver.ipv4) if version == 4 else (sender.ipv6, receiver.ipv6)


def udp(port: int, source: int = 0) -> Callable[[Tap, Tap, int], bytes]:
    """A datagram, by default from a port that nothing else in the file has."""

    def make(sender: Tap, receiver: Tap, version: int) -> bytes:
        ports = (source or next(_ports), port)
        segment = frames.udp(*addresses(sender, receiver, version), ports, b"datagram")
        return packet(sender, receiver, version, frames.UDP, segment)

    return make


def tcp(port: int, flags: int = 0x02) -> Callable[[Tap, Tap, int], bytes]:
    def make(sender: Tap, receiver: Tap, version: int) -> bytes:
        ports = (5000, port)
        segment = frames.tcp(*addresses(sender, receiver, version), ports, flags)
        return packet(sender, receiver, version, frames.TCP, segment)

    return make


def echo(sender: Tap, receiver: Tap, version: int) -> bytes:
    if version == 4:
        return packet(sender, receiver, version, frames.ICMP, frames.echo4(7))
    message = frames.echo6(*addresses(sender, receiver, version), 7)
    return packet(sender, receiver, version, frames.ICMP6, message)


def echo_reply(sender: Tap, receiver: Tap, version: int) -> bytes:
    if version == 4:
        return packet(sender, receiver, version, frames.ICMP, bytes(8)[:2] + b"\xff\xff" + bytes(4))
    message = frames.icmp6(*addresses(sender, receiver, version), 129, bytes(4))
    return packet(sender, receiver, version, frames.ICMP6, message)


def gre(sender: Tap, receiver: Tap, version: int) -> bytes:
    return packet(sender, receiver, version, GRE, b"\0\0\x65\x58")


#: What no list judges: what goes on, what answers, and what no network works without.
SPARED = (tcp(22, ACK), tcp(22, 0x12), tcp(22, 0x11), tcp(22, 0x04), echo_reply)
#: An entry ({v4}, {v6}: the neighbour's address), what it means, and what it does not.
ENTRIES: dict[str, tuple[list[Any], list[Any]]] = {
    "udp:7000-7100": ([udp(7000), udp(7050), udp(7100)], [udp(6999), udp(7101), tcp(7050), echo]),
    "tcp:22": ([tcp(22), tcp(22, 0xC2)], [tcp(23), udp(22), echo, gre]),
    "tcp": ([tcp(22), tcp(65535)], [udp(22), echo, gre]),
    "icmp": ([echo], [tcp(22), udp(22), gre]),
    "any": ([tcp(22), udp(22), echo, gre], []),
    "{}": ([tcp(22), udp(22), echo, gre], []),
    "udp:9@{}": ([udp(9)], [udp(10), tcp(9), echo]),
    "tcp@{}": ([tcp(1)], [udp(1), echo]),
    "198.51.100.0/24": ([], [tcp(22), udp(22), echo, gre]),
    "udp@2001:db8::/32": ([], [tcp(22), udp(22), echo, gre]),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("list_", LISTS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_list_forbids_what_it_says_and_no_more(
    entry: str, list_: str, version: int, guests: Guests
) -> None:
    sender, receiver = guests.ends(list_)
    peer = guests.two.ipv4 if version == 4 else guests.two.ipv6
    meant, others = ENTRIES[entry]
    guests.lease.filter(**{list_: [entry.format(peer)]})
    denied, permitted = (meant, others) if list_.startswith("deny") else (others, meant)
    for make in (*permitted, *SPARED):
        assert passes(sender, receiver, make(sender, receiver, version))
    assert guests.dropped() == 0
    for make in denied:
        assert not passes(sender, receiver, make(sender, receiver, version))
    assert guests.dropped() == len(denied)
    # The other direction is nobody's business.
    for make in (udp(22), tcp(22), echo):
        assert passes(receiver, sender, make(receiver, sender, version))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("direction", ["outbound", "inbound"])
def test_deny_wins(direction: str, version: int, guests: Guests) -> None:
    sender, receiver = guests.ends(direction)
    guests.lease.filter(
        **{f"allow_{direction}": ["tcp:20-30", "udp"], f"deny_{direction}": ["tcp:22", "udp:53"]}
    )
    for make in (tcp(23), tcp(30), udp(54)):
        assert passes(sender, receiver, make(sender, receiver, version))
    for make in (tcp(22), udp(53), tcp(31), echo):
        assert not passes(sender, receiver, make(sender, receiver, version))


@pytest.mark.parametrize("version", [4, 6])
def test_long_lists_that_overlap_are_as_short_ones(version: int, guests: Guests) -> None:
    """By sets, in layers: none of the entries covers another one of these."""
    peer = guests.two.ipv4 if version == 4 else guests.two.ipv6
    wide = "10.0.0.0/8" if version == 4 else "fd00::/8"
    entries = [
        *(f"udp:{port}" for port in range(1000, 1020, 2)),
        *(f"udp:{2000 + n * 10}-{2015 + n * 10}@{net}" for n in range(4) for net in (peer, wide)),
        *(f"tcp:{port}@{peer}" for port in range(1000, 1020, 2)),
    ]
    guests.lease.filter(deny_outbound=entries)
    for port in (1000, 1018, 2000, 2015, 2030, 2045):
        assert not passes(guests.one, guests.two, udp(port)(guests.one, guests.two, version))
    for port in (1001, 1020, 1999, 2046):
        assert passes(guests.one, guests.two, udp(port)(guests.one, guests.two, version))
    assert not passes(guests.one, guests.two, tcp(1002)(guests.one, guests.two, version))
    assert passes(guests.one, guests.two, tcp(1003)(guests.one, guests.two, version))


# Answers


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("list_", ["allow_inbound", "deny_inbound", "allow_outbound"])
def test_answers_to_datagrams_pass(list_: str, version: int, guests: Guests) -> None:
    sender, receiver = guests.ends(list_)
    entry = "any" if list_.startswith("deny") else "tcp:22"
    guests.lease.filter(**{list_: [entry]})
    answer = udp(6001, source=6000)(sender, receiver, version)
    assert not passes(sender, receiver, answer)
    assert passes(receiver, sender, udp(6000, source=6001)(receiver, sender, version))
    assert passes(sender, receiver, answer)
    for ports in ((6000, 6002), (6002, 6001)):
        other = udp(ports[1], source=ports[0])(sender, receiver, version)
        assert not passes(sender, receiver, other)


def test_an_answer_does_not_open_the_way_for_more(guests: Guests) -> None:
    """Else a flow that a new list forbids would go on for as long as both sides talk."""
    lease, one, two = guests.lease, guests.one, guests.two
    lease.filter(allow_inbound=["tcp:22"], deny_outbound=["udp:9"])
    there, back = udp(6100, source=6101)(one, two, 4), udp(6101, source=6100)(two, one, 4)
    assert passes(one, two, there)
    assert passes(two, one, back)
    lease.filter(allow_inbound=["tcp:22"], deny_outbound=["udp:6100"])
    assert not passes(one, two, there)


def test_a_flood_of_one_guest_takes_no_answers_from_another(guests: Guests, alices: Client) -> None:
    lease, one, two = guests.lease, guests.one, guests.two
    lease.filter(allow_inbound=["tcp:22"])
    with alices.acquire(network_tap(), vm="third") as third:
        third.filter(allow_inbound=["tcp:22"])
        for port in range(1, 6000):
            one.send(one.udp4(two.mac, two.ipv4, (port, 7)))
        assert 4000 < len(host.nft("list", "set", *TABLE.split(), "asked4").split(" . ")) / 4 < 5500
        tap = third.tap
        assert passes(tap, two, udp(6200, source=6201)(tap, two, 4))
        assert passes(two, tap, udp(6201, source=6200)(two, tap, 4))


def test_a_user_notes_no_more_by_changing_his_filter(guests: Guests) -> None:
    """A change has the TAP's own limit begin anew, and is to be had as often as one likes."""
    lease, one, two = guests.lease, guests.one, guests.two
    since = time.monotonic()
    for change in range(6):
        lease.filter(allow_inbound=[f"tcp:{22 + change}"])
        for port in range(4200):
            one.send(one.udp4(two.mac, two.ipv4, (1 + change * 4200 + port, 7)))
    noted = len(host.nft("list", "set", *TABLE.split(), "asked4").split(" . ")) / 4
    # What is asked for in the same second differs by what the table's text has besides.
    assert 16000 < noted < 16900 + 256 * (time.monotonic() - since)


# Streams


@pytest.mark.parametrize("version", [4, 6])
def test_a_stream_goes_on_under_every_change(version: int, guests: Guests) -> None:
    lease, one, two = guests.lease, guests.one, guests.two
    for sender, receiver in ((one, two), (two, one)):
        assert passes(sender, receiver, tcp(8022)(sender, receiver, version))
    former = ""
    for fields in (
        {"deny_outbound": ["any"], "deny_inbound": ["any"]},
        {"allow_outbound": ["udp:1"], "allow_inbound": ["udp:1"]},
        {"deny_outbound": ["tcp:8022"], "deny_inbound": ["tcp:1-65535"]},
    ):
        added = lease.filter(**fields)
        if former:
            lease.drop(former)
        former = added
        for sender, receiver in ((one, two), (two, one)):
            for flags in (0x12, ACK, 0x18, 0x11):
                assert passes(sender, receiver, tcp(8022, flags)(sender, receiver, version))
            assert not passes(sender, receiver, tcp(8022)(sender, receiver, version))


# What is never cut off


NOTHING = {"allow_outbound": ["tcp:1"], "allow_inbound": ["tcp:1"]}
WORDS = {"no_broadcast": True, "no_multicast4": True, "no_multicast6": True}


@pytest.mark.parametrize(
    "fields", [NOTHING, {**NOTHING, **WORDS}, WORDS], ids=["lists", "all", "words"]
)
def test_arp_nd_dhcp_and_the_networks_dns_are_spared(fields: Any, guests: Guests) -> None:
    one = guests.one
    guests.lease.filter(**fields)
    gateway = one.ask_arp(GATEWAY)
    group = frames.solicited_node(GATEWAY6)
    question = frames.neighbour_solicitation(one.ipv6, group, GATEWAY6, one.mac)
    one.send(one.to6(frames.multicast_mac(group), one.ipv6, group, frames.ICMP6, question))
    one.until(lambda p: p.protocol == frames.ICMP6 and p.kind == 136)
    discover = frames.udp("0.0.0.0", "255.255.255.255", (68, 67), frames.dhcp4(1, one.mac))
    sent = frames.ipv4("0.0.0.0", "255.255.255.255", frames.UDP, discover)
    asked = frames.ethernet(frames.BROADCAST, one.mac, frames.IPV4, sent)
    query = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\x07default\x08internal\0\0\1\0\1"
    for _ in range(50):  # dnsmasq may still be starting
        one.send(asked, one.udp4(gateway, GATEWAY, (5353, 53), query))
        seen = {p.ports for p in one.until(lambda p: p.protocol == frames.UDP, timeout=1)}
        if seen & {(67, 68)}:
            break
    one.send(one.udp4(gateway, GATEWAY, (5354, 53), query))
    one.until(lambda p: p.ports == (53, 5354))
    assert guests.dropped() == 0


def test_dhcp_and_dns_spare_no_more_than_themselves(guests: Guests) -> None:
    """Neither is a way out by its ports: DHCP only to all, DNS only to the gateway."""
    lease, one, two = guests.lease, guests.one, guests.two
    lease.filter(deny_outbound=["any"], deny_inbound=["any"])
    tried = frames.dhcp4(1, one.mac)
    for frame in (
        one.udp4(two.mac, two.ipv4, (68, 67), tried),
        one.udp4(two.mac, two.ipv4, (5000, 53)),
        one.tcp4(two.mac, two.ipv4, (5000, 53)),
    ):
        assert not passes(one, two, frame)
    assert guests.dropped() == 3
    assert not passes(two, one, two.udp4(one.mac, one.ipv4, (53, 5000)))


# Fragments


@pytest.mark.parametrize("bridge_nf", [False], indirect=True)
@pytest.mark.usefixtures("bridge_nf")
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("direction", ["outbound", "inbound"])
def test_f67_a_fragment_is_no_way_around_a_list(
    direction: str, version: int, guests: Guests
) -> None:
    sender, receiver = guests.ends(direction)
    guests.lease.filter(**{f"deny_{direction}": ["udp:9", "tcp:22", "udp@198.51.100.0/24"]})

    def piece(protocol: int, payload: bytes, offset: int, *, more: bool) -> bytes:
        if version == 4:
            return sender.to4(
                receiver.mac, receiver.ipv4, protocol, payload, offset=offset, more=more
            )
        head = frames.fragment6(protocol, offset, more=more)
        ends = addresses(sender, receiver, version)
        return sender.to6(receiver.mac, *ends, frames.FRAGMENT, head + payload)

    def segment(port: int) -> bytes:
        return frames.udp(*addresses(sender, receiver, version), (5000, port), bytes(24))

    syn = frames.tcp(*addresses(sender, receiver, version), (5000, 22))
    ack = frames.tcp(*addresses(sender, receiver, version), (5000, 22), ACK)
    assert not passes(sender, receiver, piece(frames.UDP, segment(9)[:16], 0, more=True))
    assert passes(sender, receiver, piece(frames.UDP, segment(10)[:16], 0, more=True))
    # What follows has no ports, and is of no use without the first.
    assert passes(sender, receiver, piece(frames.UDP, segment(9)[16:], 16, more=False))
    # Ports without flags begin something; flags that come after them are not looked at, so never.
    assert not passes(sender, receiver, piece(frames.TCP, syn[:8], 0, more=True))
    assert not passes(sender, receiver, piece(frames.TCP, syn[8:16], 8, more=True))
    assert passes(sender, receiver, piece(frames.TCP, ack[:16], 0, more=True))
    assert passes(sender, receiver, piece(frames.TCP, ack[16:], 16, more=False))
    # Who is denied whatever the port is denied all of it.
    peer = guests.two.ipv4 if version == 4 else guests.two.ipv6
    guests.lease.filter(**{f"deny_{direction}": [f"udp@{peer}"]})
    assert not passes(sender, receiver, piece(frames.UDP, segment(10)[16:], 16, more=False))


@pytest.mark.parametrize("bridge_nf", [False], indirect=True)
@pytest.mark.usefixtures("bridge_nf")
def test_a_first_fragment_without_ports_is_refused(guests: Guests) -> None:
    """IPv6 could have them in the second one (RFC 7112), which no list sees."""
    guests.lease.filter(deny_inbound=["tcp:22"])
    before = guests.dropped()
    sender, receiver = guests.two, guests.one
    head = frames.fragment6(frames.DESTINATION_OPTIONS, 0, more=True)
    payload = head + frames.extension(frames.TCP)
    ends = (sender.ipv6, receiver.ipv6)
    frame = sender.to6(receiver.mac, *ends, frames.FRAGMENT, payload)
    assert not passes(sender, receiver, frame)
    assert guests.dropped() - before in (0, 1)  # the sender's own rules refuse it before


# Several guests, several filters


def test_the_filter_of_one_guest_is_not_anothers(guests: Guests, alices: Client) -> None:
    lease, one, two = guests.lease, guests.one, guests.two
    with alices.acquire(network_tap(), vm="third") as third:
        tap = third.tap
        lease.filter(deny_outbound=["udp:9"])
        mine = third.filter(deny_outbound=["udp:10"])
        for sender, port, arrives in (
            (one, 9, False),
            (one, 10, True),
            (tap, 9, True),
            (tap, 10, False),
        ):
            assert passes(sender, two, udp(port)(sender, two, 4)) is arrives
        assert (guests.dropped(), third.drops()) == (1, {"filter": 1})
        third.drop(mine)
        assert passes(tap, two, udp(10)(tap, two, 4))
        assert not passes(one, two, udp(9)(one, two, 4))
        third.filter(deny_outbound=["udp:10"])
    # With its TAP and its lease what it had is gone.
    assert "svt" + tap.ifname[3:] not in host.nft("list", "table", *TABLE.split())


def test_the_newest_holds_whichever_goes_first(guests: Guests) -> None:
    lease, one, two = guests.lease, guests.one, guests.two

    def denied() -> set[int]:
        return {p for p in (1, 2, 3) if not passes(one, two, udp(p)(one, two, 4))}

    first = lease.filter(deny_outbound=["udp:1"])
    second = lease.filter(deny_outbound=["udp:2"], allow_inbound=["tcp:5"])
    assert denied() == {2}
    lease.drop(first)
    assert denied() == {2}
    third = lease.filter(deny_outbound=["udp:3"])
    assert denied() == {3}
    assert passes(two, one, udp(1)(two, one, 4))
    lease.drop(third)
    assert denied() == {2}
    assert not passes(two, one, udp(1)(two, one, 4))
    lease.drop(second)
    assert denied() == set()


def test_a_filter_comes_with_the_start(alices: Client, guests: Guests) -> None:
    with alices.acquire(network_tap(), frame_filter(deny_outbound=["udp:9"]), vm="third") as lease:
        assert not passes(lease.tap, guests.two, udp(9)(lease.tap, guests.two, 4))
        grants = lease.listed()["grants"].value
        assert [grant["id"].value for grant in grants] == ["tap0", "filter1"]
        plain = {key: variant.value for key, variant in grants[1].items()}
        assert (plain["tap"], plain["deny_outbound"]) == ("tap0", ["udp:9"])
        assert lease.drops() == {"filter": 1}
        lease.drop("tap0")
        assert TABLE not in host.tables()


# Refused


BAD = (
    "", "tcp:", "tcp:0", "tcp:65536", "tcp:22-", "tcp:30-20", "tcp:022", "icmp:8", "any:22",
    "sctp", "TCP:22", "tcp:22 ", " tcp", "tcp:22\n", "tcp:٢٢", "10.0.0.1/8", "10.0.0.0/33",
    "10.0.0.0/08", "10.0.0.0/255.0.0.0", "010.0.0.0/8", "fd00::1/8", "fe80::1%eth0",
    "fe80::%25/10", "::ffff:10.0.0.0/104", "::ffff:10.0.0.1", "tcp@", "@10.0.0.0/8", "example.org",
    "tcp:22@example.org", "svt000000000000", "x" * 60000,
)  # fmt: skip


@pytest.mark.parametrize("entry", BAD, ids=range(len(BAD)))
def test_what_is_no_entry_is_refused(entry: str, guests: Guests) -> None:
    with pytest.raises(RefusalError) as refusal:
        guests.lease.filter(deny_outbound=["tcp:1", entry])
    assert refusal.value.name == "InvalidArgs"
    assert "deny_outbound[1]" in refusal.value.text
    assert len(refusal.value.text) < 200


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "InvalidArgs"),
        ({"deny_outbound": ["tcp:1"] * 65}, "InvalidArgs"),
        ({"deny_outbound": [f"tcp:{n % 65535 + 1}" for n in range(100000)]}, "InvalidArgs"),
        ({"deny": ["stp"]}, "InvalidArgs"),
        ({"only_mac": ["ff:ff:ff:ff:ff:ff"]}, "InvalidArgs"),
        ({"addresses": ["10.213.80.0/20"]}, "InvalidArgs"),
        ({"addresses": ["192.0.2.1"]}, "InvalidArgs"),
        ({"ifname": "svt000000000000", "deny": ["arp"]}, "InvalidArgs"),
        ({"tap": "tap7", "deny": ["arp"]}, "NotFound"),
        ({"tap": "svt000000000000", "deny": ["arp"]}, "InvalidArgs"),
        ({"tap": "direct0", "deny": ["arp"]}, "NotSupported"),
        ({"tap": "filter1", "deny": ["arp"]}, "InvalidArgs"),
    ],
)
def test_what_no_filter_can_be_is_refused(fields: Any, name: str, guests: Guests) -> None:
    with pytest.raises(RefusalError) as refusal:
        guests.lease.filter(**fields)
    assert refusal.value.name == name


def test_f68_a_hundred_thousand_rules_are_not_had(
    guests: Guests, alices: Client, bobs: Client
) -> None:
    """In one list, in one filter after the other, and by another machine; and nobody else pays."""

    def refused(lease: Lease, **fields: Any) -> tuple[str, str]:
        with pytest.raises(RefusalError) as refusal:
            lease.filter(**fields)
        return refusal.value.name, refusal.value.text

    entries = [f"udp:{number % 65535 + 1}" for number in range(100_000)]
    for number, why in ((100_000, "larger than 65536 bytes"), (3000, "at most 64 entries")):
        name, text = refused(guests.lease, deny_outbound=entries[:number])
        assert (name, why in text) == ("InvalidArgs", True), text
    assert TABLE not in host.tables()
    lists = {each: entries[number * 64 :][:64] for number, each in enumerate(LISTS)}
    rules = set()
    for _ in range(4):
        guests.lease.filter(**lists)
        rules.add(host.nft("list", "table", *TABLE.split()))
    assert len(rules) == 1  # the newest is in force, and the others have none
    quota = ("LimitsExceeded", "filter_entries_per_user: 1024")
    assert refused(guests.lease, deny=["arp"]) == quota
    with (
        alices.acquire(network_tap(), vm="third") as third,
        bobs.acquire(network_tap()) as other,
    ):
        assert refused(third, deny=["arp"]) == quota
        assert {host.nft("list", "table", *TABLE.split())} == rules
        other.filter(deny_outbound=["udp:9"])


def test_nobody_filters_anothers_guest(guests: Guests, bobs: Client) -> None:
    former, guests.lease.client = guests.lease.client, bobs
    try:
        with pytest.raises(RefusalError) as refusal:
            guests.lease.filter(deny=["arp"])
    finally:
        guests.lease.client = former
    assert refusal.value.name == "NotFound"

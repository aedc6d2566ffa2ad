# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's side of a list: entries read, and sets whose members never overlap."""

from __future__ import annotations

import itertools
import random

import pytest

from sessionvirt_broker.filterlists import Entry, Lookups, lookups, parse_entry

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("tcp:22", "tcp:22"),
        ("tcp:22-22", "tcp:22"),
        ("udp:1-65535@10.0.0.0/8", "udp:1-65535@10.0.0.0/8"),
        ("any@10.0.0.1/32", "10.0.0.1/32"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("icmp@2001:0db8::/32", "icmp@2001:db8::/32"),
        ("any", "any"),
    ],
)
def test_an_entry_has_one_form(text: str, shortest: str) -> None:
    assert str(parse_entry(text)) == shortest
    assert parse_entry(shortest) == parse_entry(text)


def test_what_another_entry_covers_is_left_out() -> None:
    texts = ("tcp", "tcp:22", "tcp@10.0.0.0/8", "udp:5@10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24",
             "udp:6@10.1.0.0/16", "udp:7", "udp:8", "udp:7@10.0.0.0/8")  # fmt: skip
    found = lookups([parse_entry(text) for text in texts])
    assert found[None].protocols == ((None, 6),)
    assert [(b.first, b.last) for layer in found[None].layers for b in layer] == [(7, 8)]
    assert [str(one) for one in found[4].addresses] == ["10.1.0.0/16"]
    assert [(str(b.network), b.first) for (b,) in found[4].layers] == [("10.0.0.0/8", 5)]
    assert found[6] == Lookups()
    everything = lookups([parse_entry("any"), parse_entry("tcp:1")])
    assert everything[None] == Lookups(everything=True)
    assert everything[4] == everything[6] == Lookups()


def _has(found: dict[int | None, Lookups], version: int, packet: tuple[object, int, int]) -> bool:
    """What the rules that are made of it say of a packet."""
    address, protocol, port = packet
    for one in (found[None], found[version]):
        if one.everything or any(address in net for net in one.addresses):
            return True
        if any(n == protocol and (net is None or address in net) for net, n in one.protocols):
            return True
        if any(
            box.protocol == protocol
            and box.first <= port <= box.last
            and (box.network is None or address in box.network)
            for layer in one.layers
            for box in layer
        ):
            return True
    return False


def _means(entry: Entry, packet: tuple[object, int, int]) -> bool:
    address, protocol, port = packet
    word = {"any": (6, 17, 58, 1, 47), "tcp": (6,), "udp": (17,), "icmp": (1, 58)}[entry.protocol]
    return (
        protocol in word
        and (entry.ports is None or entry.ports[0] <= port <= entry.ports[1])
        and (entry.prefix is None or address in entry.prefix)
    )


@pytest.mark.parametrize("seed", range(20))
def test_any_list_means_what_its_entries_do(seed: int) -> None:
    rng = random.Random(seed)
    prefixes = ["", "@10.0.0.0/8", "@10.1.0.0/16", "@10.1.2.0/24", "@10.1.2.3", "@fd00::/8"]
    texts = []
    for _ in range(rng.randint(1, 24)):
        word = rng.choice(["tcp", "udp", "tcp", "udp", "icmp", "any"])
        first = rng.randint(1, 12)
        ports = f":{first}-{rng.randint(first, 12)}" if word in ("tcp", "udp") else ""
        wide = word == "any" or (ports and rng.random() < 0.1)
        prefix = rng.choice(prefixes[2:] if wide else prefixes)
        texts.append(f"{word}{'' if rng.random() < 0.1 else ports}{prefix}")
    entries = [parse_entry(text) for text in texts]
    found = lookups(entries)
    for one in found.values():
        for layer in one.layers:
            assert not any(a.overlaps(b) for a, b in itertools.combinations(layer, 2))
    import ipaddress

    for text, version in (("10.1.2.3", 4), ("10.1.9.9", 4), ("10.9.9.9", 4), ("11.0.0.1", 4),
                          ("fd00::1", 6), ("2001:db8::1", 6)):  # fmt: skip
        address = ipaddress.ip_address(text)
        for protocol in (6, 17, 1 if version == 4 else 58, 47):
            for port in range(14):
                packet = (address, protocol, port)
                meant = any(
                    _means(entry, packet)
                    for entry in entries
                    if entry.prefix is None or entry.prefix.version == version
                )
                assert _has(found, version, packet) is meant, (texts, packet)

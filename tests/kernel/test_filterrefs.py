# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each of libvirt's stock filters: its forbidden frame is dropped and counted, its twin passes.

From the XML to the packet: what the session makes of ``<filterref>`` is asked of the real broker.
"By the rules" says that every interface is kept from it, with another reason.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from lab import frames
from lab.client import network_tap
from lab.filterframes import (
    ANNOUNCED,
    ARP,
    ARP6,
    BROADCAST,
    FOREIGN,
    FOREIGN6,
    FORGED_ARP_MAC,
    FORGED_MAC,
    FROM_GATEWAY,
    GATEWAY,
    IN4,
    IN6,
    IN_ARP,
    IN_LLDP,
    IN_RARP,
    LINK_LOCAL,
    MAC,
    MULTICAST,
    MULTICAST6,
    OTHER,
    OWN,
    OWN6,
    PEER,
    PEER6,
    PLAIN,
    PLAIN6,
    PROBE,
    SERVER,
    SPOOFED,
    SPOOFED_ARP,
    advertisement,
    discover,
    solicitation,
    v4,
    v6,
)
from lab.lan import lan_bridge
from lab.tap import HEADER
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.filterref import STOCK, guest_filter
from sessionvirt_broker.tun import create

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.broker import Broker
    from lab.client import Client, Lease
    from lab.tap import Tap

pytestmark = pytest.mark.kernel


class Case(NamedTuple):
    """Frames of the guest's and to it, which pass, and which are dropped by the filter.

    :param otherwise: which are dropped by every interface's rules: what it would permit or forbids,
        with the reason.
    """

    passes: tuple[bytes, ...] = (PLAIN,)
    dropped: tuple[bytes, ...] = ()
    passes_in: tuple[bytes, ...] = (IN4,)
    dropped_in: tuple[bytes, ...] = ()
    otherwise: tuple[tuple[bytes, str], ...] = ()


CASES = {
    "allow-arp": Case((PLAIN, ARP, PLAIN6), passes_in=(IN4, IN6, IN_ARP)),
    "allow-dhcp": Case((PLAIN, discover()), otherwise=((SERVER, "dhcp"),)),
    "allow-dhcp-server": Case((PLAIN, discover()), otherwise=((SERVER, "dhcp"),)),
    "allow-dhcpv6": Case((PLAIN6,), passes_in=(IN6,)),
    "allow-dhcpv6-server": Case((PLAIN6,), passes_in=(IN6,)),
    "allow-incoming-ipv4": Case((PLAIN, PLAIN6), passes_in=(IN4, IN6)),
    "allow-incoming-ipv6": Case((PLAIN, PLAIN6), passes_in=(IN4, IN6)),
    "allow-ipv4": Case((PLAIN, PLAIN6), passes_in=(IN4, IN6)),
    "allow-ipv6": Case((PLAIN, PLAIN6), passes_in=(IN4, IN6)),
    "clean-traffic": Case(
        (PLAIN, ARP, PROBE, discover(), BROADCAST),
        (SPOOFED, SPOOFED_ARP, PLAIN6, ARP6),
        (IN4, IN_ARP),
        (IN6, IN_RARP, IN_LLDP),
        ((FORGED_MAC, "mac"), (FORGED_ARP_MAC, "arp"), (ANNOUNCED, "type")),
    ),
    "clean-traffic-gateway": Case(
        (v4(OWN, PEER, to=GATEWAY), ARP, discover(), ARP6),
        (PLAIN, BROADCAST, v4(FOREIGN, PEER, to=GATEWAY), SPOOFED_ARP, solicitation(FOREIGN6),
         advertisement(FOREIGN6, OWN6), v6(FOREIGN6, PEER6, to=GATEWAY)),
        (FROM_GATEWAY, IN_ARP),
        (IN4, IN6, IN_RARP),
    ),
    "no-arp-ip-spoofing": Case((PLAIN, ARP, PROBE), (SPOOFED_ARP,)),
    "no-arp-mac-spoofing": Case((PLAIN, ARP), otherwise=((FORGED_ARP_MAC, "arp"),)),
    "no-arp-spoofing": Case((ARP,), (SPOOFED_ARP,), otherwise=((FORGED_ARP_MAC, "arp"),)),
    "no-ip-multicast": Case((PLAIN, BROADCAST, MULTICAST6), (MULTICAST,)),
    "no-ip-spoofing": Case((PLAIN, PLAIN6, discover()), (SPOOFED,)),
    "no-ipv6-multicast": Case((PLAIN6, MULTICAST, ARP6), (MULTICAST6,), (IN6,)),
    "no-ipv6-spoofing": Case(
        (PLAIN6, ARP6, solicitation("::"), advertisement(OWN6, OWN6),
         advertisement(LINK_LOCAL, LINK_LOCAL), SPOOFED),
        (v6(FOREIGN6, PEER6), solicitation(FOREIGN6), advertisement(FOREIGN6, OWN6),
         v6("::", PEER6)),
        (IN6,),
    ),
    "no-mac-broadcast": Case((PLAIN, ARP, discover()), (BROADCAST,)),
    "no-mac-spoofing": Case((PLAIN,), otherwise=((FORGED_MAC, "mac"),)),
    "no-other-l2-traffic": Case(
        (), (PLAIN, ARP, PLAIN6), (), (IN4, IN6, IN_ARP, IN_RARP, IN_LLDP)
    ),
    "no-other-rarp-traffic": Case(
        (PLAIN,), passes_in=(IN4, IN_LLDP), dropped_in=(IN_RARP,), otherwise=((ANNOUNCED, "type"),)
    ),
    "qemu-announce-self": Case(
        (PLAIN,), passes_in=(IN4,), dropped_in=(IN_RARP,), otherwise=((ANNOUNCED, "type"),)
    ),
    "qemu-announce-self-rarp": Case(
        (PLAIN,), passes_in=(IN4, IN_RARP), otherwise=((ANNOUNCED, "type"),)
    ),
}  # fmt: skip


class Wire(NamedTuple):
    """A guest on a LAN bridge, and a port of that which is nobody's."""

    lease: Lease
    tap: Tap
    send: Callable[[bytes], None]
    heard: Callable[[], list[bytes]]


@pytest.fixture(scope="module")
def wire(lasting_broker: Broker, alices: Client) -> Iterator[Wire]:
    import os

    from lab import host

    lasting_broker.configure("[bridge.br8]\n")
    with lan_bridge("br8"), alices.acquire(network_tap("", bridge="br8", mac=MAC)) as lease:
        (port,) = create("uplink0", 1)
        try:
            os.set_blocking(port, False)
            host.ip("link", "set", "uplink0", "master", "br8", "up")

            def heard() -> list[bytes]:
                found = []
                while True:
                    try:
                        found.append(os.read(port, 70000)[len(HEADER) :])
                    except BlockingIOError:
                        return found

            def send(frame: bytes) -> None:
                os.write(port, HEADER + frame)

            # The bridge forwards to a port from the moment on that it has seen its carrier.
            for _ in range(100):
                lease.tap.send(PLAIN)
                if PLAIN in heard():
                    break
            yield Wire(lease, lease.tap, send, heard)
        finally:
            os.close(port)


def filterref(name: str) -> dict[str, Any]:
    """What of a filter the broker is asked for; empty: nothing."""
    parameters = {"IP": OWN, "IPV6": OWN6, "GATEWAY_MAC": GATEWAY}
    inside = "".join(f"<parameter name='{n}' value='{v}'/>" for n, v in parameters.items())
    (nic,) = parse_domain(
        f"""<domain type='kvm'><name>vm</name><memory>65536</memory><os><type>hvm</type></os>
        <devices><interface type='bridge'><source bridge='br8'/>
        <filterref filter='{name}'>{inside}</filterref></interface></devices></domain>"""
    ).value.interfaces
    said = asdict(guest_filter(nic)).items()
    return {key: list(one) if isinstance(one, tuple) else one for key, one in said if one}


def test_none_is_forgotten() -> None:
    assert set(CASES) == set(STOCK)


@pytest.mark.parametrize("name", CASES)
def test_a_stock_filter(name: str, wire: Wire) -> None:
    case, fields = CASES[name], filterref(name)
    held = wire.lease.filter(**fields) if fields else ""
    assert bool(case.dropped or case.dropped_in) <= bool(held)

    def out(frame: bytes) -> bool:
        wire.heard()
        wire.tap.send(frame)
        return frame in wire.heard()

    def into(frame: bytes) -> bool:
        wire.tap.waiting()
        wire.send(frame)
        return frame in [packet.frame for packet in wire.tap.waiting()]

    try:
        before = wire.lease.drops()
        assert [number for number, frame in enumerate(case.passes) if not out(frame)] == []
        assert [number for number, frame in enumerate(case.passes_in) if not into(frame)] == []
        assert wire.lease.drops() == before
        assert [number for number, frame in enumerate(case.dropped) if out(frame)] == []
        assert [number for number, frame in enumerate(case.dropped_in) if into(frame)] == []
        dropped = len(case.dropped) + len(case.dropped_in)
        assert wire.lease.drops() == before | ({"filter": dropped} if dropped else {})
        for frame, reason in case.otherwise:
            count = wire.lease.drops().get(reason, 0)
            assert not out(frame)
            assert wire.lease.drops()[reason] == count + 1
    finally:
        if held:
            wire.lease.drop(held)


def test_a_tag_hides_nothing_from_a_list(wire: Wire) -> None:
    packet = IN4[14:]
    tagged = frames.ethernet(MAC, OTHER, frames.IPV4, packet, tags=frames.tag(5))

    def arrives(frame: bytes) -> bool:
        wire.tap.waiting()
        wire.send(frame)
        return frame in [one.frame for one in wire.tap.waiting()]

    assert arrives(tagged)
    held = wire.lease.filter(deny_inbound=["tcp:1"])
    try:
        assert not arrives(tagged)
        assert arrives(IN4)
    finally:
        wire.lease.drop(held)

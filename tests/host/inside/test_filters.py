# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each of libvirt's stock filters beside ours: the same XML, the same frames, who lets which pass.

That what is dropped here is counted by its reason is asked, too. ``kernel/test_filterrefs.py`` has
the forbidden frame and its twin of each filter by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from lab import filterframes as f
from lab import frames
from sessionvirt.model.filterref import STOCK

if TYPE_CHECKING:
    from sessionvirt.model.filter import GuestFilter

pytestmark = pytest.mark.host

OUTBOUND = {
    "IPv4": f.PLAIN,
    "IPv4 to the gateway": f.v4(f.OWN, f.PEER, to=f.GATEWAY),
    "IPv4 from 0.0.0.0": f.v4("0.0.0.0", f.PEER),
    "IPv4 from another's": f.SPOOFED,
    "IPv4 from another's to the gateway": f.v4(f.FOREIGN, f.PEER, to=f.GATEWAY),
    "IPv4 by another's MAC": f.FORGED_MAC,
    "broadcast": f.BROADCAST,
    "multicast": f.MULTICAST,
    "DHCP": f.discover(),
    "DHCP as a server": f.SERVER,
    "ARP": f.ARP,
    "ARP: is it free?": f.PROBE,
    "ARP from another's": f.SPOOFED_ARP,
    "ARP by another's MAC": f.FORGED_ARP_MAC,
    "IPv6": f.PLAIN6,
    "IPv6 to the gateway": f.v6(f.OWN6, f.PEER6, to=f.GATEWAY),
    "IPv6 from ::": f.v6("::", f.PEER6),
    "IPv6 from another's": f.v6(f.FOREIGN6, f.PEER6),
    "IPv6 from another's to the gateway": f.v6(f.FOREIGN6, f.PEER6, to=f.GATEWAY),
    "IPv6 from another's link-local": f.v6("fe80::66", f.PEER6),
    "IPv6 multicast": f.MULTICAST6,
    "DHCPv6": f.solicit6(),
    "asks for a neighbour": f.ARP6,
    "asks from link-local": f.solicitation(f.LINK_LOCAL),
    "asks from another's": f.solicitation(f.FOREIGN6),
    "is it free?": f.solicitation("::"),
    "advertises": f.advertisement(f.OWN6, f.OWN6),
    "advertises link-local": f.advertisement(f.LINK_LOCAL, f.LINK_LOCAL),
    "advertises another's": f.advertisement(f.FOREIGN6, f.OWN6),
    "announcement": f.ANNOUNCED,
    "RARP for another": f.rarp(frames.BROADCAST, f.MAC, f.OTHER),
    "RARP to one": f.rarp(f.OTHER, f.MAC),
    "other": frames.ethernet(f.OTHER, f.MAC, 0x88B5, bytes(46)),
}
INBOUND = {
    "in: IPv4": f.IN4,
    "in: IPv4 from the gateway": f.FROM_GATEWAY,
    "in: broadcast": f.v4(f.PEER, "192.0.2.255", to=frames.BROADCAST, sender=f.OTHER),
    "in: multicast": f.v4(
        f.PEER, f.GROUP, to=frames.multicast_mac(f.GROUP), sender=f.OTHER
    ),
    "in: DHCP": f.to_client(f.PEER, f.OTHER),
    "in: DHCP from the gateway": f.to_client(f.PEER, f.GATEWAY),
    "in: DHCP of another server": f.to_client(f.FOREIGN, f.OTHER),
    "in: ARP": f.IN_ARP,
    "in: IPv6": f.IN6,
    "in: IPv6 from the gateway": f.v6(f.PEER6, f.OWN6, to=f.MAC, sender=f.GATEWAY),
    "in: announcement": f.rarp(frames.BROADCAST, f.OTHER),
    "in: announcement of its own": f.rarp(frames.BROADCAST, f.OTHER, f.MAC),
    "in: RARP": f.IN_RARP,
    "in: other": f.IN_LLDP,
}  # fmt: skip
EVERYTHING = frozenset({*OUTBOUND, *INBOUND})
NOTHING: frozenset[str] = frozenset()

ANOTHERS4 = {"IPv4 from another's", "IPv4 from another's to the gateway"}
ARP_IP = {"ARP: is it free?", "ARP from another's"}
ARP_MAC = {"ARP by another's MAC"}
RARP = {"RARP for another", "RARP to one", "in: announcement", "in: RARP"}
ALL_RARP = RARP | {"announcement", "in: announcement of its own"}
NEIGHBOURS_MULTICAST = {
    "asks for a neighbour", "asks from link-local", "asks from another's", "is it free?"
}  # fmt: skip

#: What libvirt's drops; all else passes.
LIBVIRT: dict[str, frozenset[str] | set[str]] = {
    "allow-arp": NOTHING,
    "allow-dhcp": NOTHING,
    "allow-dhcp-server": NOTHING,
    "allow-dhcpv6": NOTHING,
    "allow-dhcpv6-server": NOTHING,
    "allow-incoming-ipv4": NOTHING,
    "allow-incoming-ipv6": NOTHING,
    "allow-ipv4": NOTHING,
    "allow-ipv6": NOTHING,
    "clean-traffic": EVERYTHING
    - {"IPv4", "IPv4 to the gateway", "IPv4 from 0.0.0.0", "broadcast", "multicast", "DHCP",
       "DHCP as a server", "ARP", "announcement", "in: IPv4", "in: IPv4 from the gateway",
       "in: broadcast", "in: multicast", "in: DHCP", "in: DHCP from the gateway",
       "in: DHCP of another server", "in: ARP", "in: announcement of its own"},
    "clean-traffic-gateway": EVERYTHING
    - {"IPv4 to the gateway", "ARP", "IPv6 to the gateway", "IPv6 from another's to the gateway",
       "announcement", "in: IPv4 from the gateway", "in: DHCP from the gateway", "in: ARP",
       "in: IPv6 from the gateway", "in: announcement of its own"},
    "no-arp-ip-spoofing": ARP_IP,
    "no-arp-mac-spoofing": ARP_MAC,
    "no-arp-spoofing": ARP_IP | ARP_MAC,
    "no-ip-multicast": {"multicast"},
    "no-ip-spoofing": ANOTHERS4,
    "no-ipv6-multicast": {"IPv6 multicast", "DHCPv6"} | NEIGHBOURS_MULTICAST,
    "no-ipv6-spoofing": {
        "IPv6 from ::", "IPv6 from another's", "IPv6 from another's to the gateway",
        "asks from link-local", "asks from another's", "is it free?", "advertises link-local",
    },
    "no-mac-broadcast": {"broadcast", "DHCP"},
    "no-mac-spoofing": {"IPv4 by another's MAC"},
    "no-other-l2-traffic": EVERYTHING,
    "no-other-rarp-traffic": ALL_RARP,
    "qemu-announce-self": RARP,
    "qemu-announce-self-rarp": NOTHING,
}  # fmt: skip

#: What ours drops without any filter: by which reason it is counted.
ALWAYS = {
    "IPv4 by another's MAC": "mac",
    "ARP by another's MAC": "arp",
    "DHCP as a server": "dhcp",
    "announcement": "type",
    "RARP for another": "type",
    "RARP to one": "type",
    "other": "type",
}


class Difference(NamedTuple):
    """What of a filter ours drops and libvirt's lets pass, or the other way round."""

    filters: tuple[str, ...]
    stricter: frozenset[str] | set[str] = NOTHING
    looser: frozenset[str] | set[str] = NOTHING


#: By the reason. What is in ALWAYS is one more of each filter's.
DIFFERENCES = {
    "an address is the only one in ARP and IPv4 alike, whichever of the two a filter is about": (
        Difference(("no-arp-ip-spoofing", "no-arp-spoofing"), ANOTHERS4),
        Difference(("no-ip-spoofing",), {"ARP from another's"}),
    ),
    "from 0.0.0.0 comes DHCP, and nothing else": (
        Difference(
            ("clean-traffic", "no-arp-ip-spoofing", "no-arp-spoofing", "no-ip-spoofing"),
            {"IPv4 from 0.0.0.0"},
        ),
    ),
    "whoever takes an address asks whether it is free (RFC 5227)": (
        Difference(
            ("clean-traffic", "clean-traffic-gateway", "no-arp-ip-spoofing", "no-arp-spoofing"),
            looser={"ARP: is it free?"},
        ),
    ),
    "without neighbour discovery there is no IPv6": (
        Difference(("no-ipv6-multicast",), looser=NEIGHBOURS_MULTICAST),
        Difference(
            ("no-ipv6-spoofing",),
            looser={"asks from link-local", "is it free?", "advertises link-local"},
        ),
        Difference(
            ("clean-traffic-gateway",),
            looser={"asks for a neighbour", "asks from link-local", "is it free?", "advertises",
                    "advertises link-local"},
        ),
    ),
    "what is advertised is one's own, and so is the link-local address": (
        Difference(
            ("no-ipv6-spoofing",), {"advertises another's", "IPv6 from another's link-local"}
        ),
    ),
    "clean is IPv6, too": (
        Difference(("clean-traffic-gateway",), {"IPv6 from another's to the gateway"}),
    ),
    "without DHCP a guest loses its address": (
        Difference(("no-ipv6-multicast",), looser={"DHCPv6"}),
        Difference(("no-mac-broadcast",), looser={"DHCP"}),
        Difference(
            ("clean-traffic-gateway",),
            looser={"DHCP", "DHCPv6", "in: DHCP", "in: DHCP of another server"},
        ),
    ),
    "RARP is of no use to a guest": (
        Difference(
            ("clean-traffic", "clean-traffic-gateway", "qemu-announce-self"),
            {"in: announcement of its own"},
        ),
    ),
}  # fmt: skip


def ours_passes(name: str) -> frozenset[str]:
    """What ours should let pass: what libvirt's does, but for what is listed."""
    passes = EVERYTHING - LIBVIRT[name]
    for reason, differences in DIFFERENCES.items():
        for one in differences:
            if name in one.filters:
                assert one.stricter <= passes, (name, reason)
                assert not one.looser & passes, (name, reason)
                passes = (passes - one.stricter) | one.looser
    return passes - ALWAYS.keys()


def unlike(found: frozenset[str], expected: frozenset[str]) -> list[str]:
    """In words, which frames did not as they should."""
    return [f"passes: {one}" for one in sorted(found - expected)] + [
        f"is dropped: {one}" for one in sorted(expected - found)
    ]


def counted(passes: frozenset[str]) -> dict[str, int]:
    """What is counted where these pass; what every guest's rules drop does not come to a filter."""
    dropped = [ALWAYS.get(one, "filter") for one in EVERYTHING - passes]
    return {reason: dropped.count(reason) for reason in set(dropped)}


def test_the_same_frames_pass_as_with_libvirts(permission: None) -> None:
    from host.inside import filterends, stockrules

    rules = stockrules.recorded()
    assert set(rules) == set(STOCK) == set(LIBVIRT)
    wrong = {}
    with filterends.libvirts() as end:
        for name in STOCK:
            passes = EVERYTHING - LIBVIRT[name]
            stockrules.put(rules[name])
            found = end.passing(OUTBOUND, INBOUND, passes)
            wrong[f"{name}, libvirt"] = unlike(found, passes)
    # Several of them ask the broker for the same, and half of them for nothing.
    asked: dict[GuestFilter, list[str]] = {}
    for name in STOCK:
        asked.setdefault(filterends.of_session(name), []).append(name)
    with filterends.ours() as ours:
        before = ours.drops()
        for wanted, names in asked.items():
            with ours.filtered(wanted):
                found = ours.passing(OUTBOUND, INBOUND, ours_passes(names[0]))
                after = ours.drops()
            counts = {key: count - before.get(key, 0) for key, count in after.items()}
            before = {key: count for key, count in after.items() if key != "filter"}
            for name in names:
                wrong[f"{name}, ours"] = unlike(found, ours_passes(name))
                if counts != counted(ours_passes(name)):
                    wrong[f"{name}, ours"].append(f"counts {counts}")
    assert {name: found for name, found in wrong.items() if found} == {}


def test_libvirts_daemon_makes_these_rules() -> None:
    """Of the filter that ten others are part of."""
    from host.inside import filterends, stockrules

    name = "clean-traffic"
    passes = EVERYTHING - LIBVIRT[name]
    with filterends.libvirts() as end, stockrules.daemon() as connection:
        assert stockrules.installed(connection) == set(LIBVIRT)
        stockrules.bind(connection, name)
        assert stockrules.now() == stockrules.recorded()[name]
        assert unlike(end.passing(OUTBOUND, INBOUND, passes), passes) == []

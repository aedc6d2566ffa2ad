# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's stock filters in our words, and the lists of a command line."""

from __future__ import annotations

import pytest

from sessionvirt.driver.lease import broker_requests
from sessionvirt.errors import DefinitionError, UsageError
from sessionvirt.model.domain import Domain, parse_domain
from sessionvirt.model.filter import GuestFilter, check_entry
from sessionvirt.model.filterref import STOCK, guest_filter, remarks

pytestmark = pytest.mark.unit

NETWORK, BRIDGE = "<source network='default'/>", "<source bridge='br0'/>"
IP = "<parameter name='IP' value='192.0.2.7'/>"
IPV6 = "<parameter name='IPV6' value='2001:DB8::7'/>"
GATEWAY = "<parameter name='GATEWAY_MAC' value='52:54:00:00:00:FE'/>"
ALL = ("arp", "ipv4", "ipv6", "rarp", "other")
BOUND, BOUND6 = ("192.0.2.7",), ("2001:db8::7",)

#: Every one, on a bridge with all parameters.
MEANT = {
    "allow-arp": GuestFilter(),
    "allow-dhcp": GuestFilter(),
    "allow-dhcp-server": GuestFilter(),
    "allow-dhcpv6": GuestFilter(),
    "allow-dhcpv6-server": GuestFilter(),
    "allow-incoming-ipv4": GuestFilter(),
    "allow-incoming-ipv6": GuestFilter(),
    "allow-ipv4": GuestFilter(),
    "allow-ipv6": GuestFilter(),
    "clean-traffic": GuestFilter(deny=("ipv6", "rarp", "other"), addresses=BOUND),
    "clean-traffic-gateway": GuestFilter(
        deny=("rarp",), addresses=BOUND + BOUND6, only_mac=("52:54:00:00:00:fe",)
    ),
    "no-arp-ip-spoofing": GuestFilter(addresses=BOUND),
    "no-arp-mac-spoofing": GuestFilter(),
    "no-arp-spoofing": GuestFilter(addresses=BOUND),
    "no-ip-multicast": GuestFilter(no_multicast4=True),
    "no-ip-spoofing": GuestFilter(addresses=BOUND),
    "no-ipv6-multicast": GuestFilter(no_multicast6=True),
    "no-ipv6-spoofing": GuestFilter(addresses=BOUND6),
    "no-mac-broadcast": GuestFilter(no_broadcast=True),
    "no-mac-spoofing": GuestFilter(),
    "no-other-l2-traffic": GuestFilter(deny=ALL),
    "no-other-rarp-traffic": GuestFilter(deny=("rarp",)),
    "qemu-announce-self": GuestFilter(deny=("rarp",)),
    "qemu-announce-self-rarp": GuestFilter(),
}


def domain(filterref: str, source: str = BRIDGE, type_: str = "") -> Domain:
    kind = type_ or ("network" if "network" in source else "bridge")
    return parse_domain(
        f"""<domain type='kvm'><name>vm</name><memory>65536</memory><os><type>hvm</type></os>
        <devices><interface type='{kind}'>{source}<model type='virtio'/>
        {filterref}</interface></devices></domain>"""
    ).value


def ref(name: str, *parameters: str) -> str:
    return f"<filterref filter='{name}'>{''.join(parameters)}</filterref>"


def test_all_of_libvirts_are_known() -> None:
    assert len(STOCK) == 24
    assert set(STOCK) == set(MEANT)


@pytest.mark.parametrize("name", MEANT)
def test_a_stock_filter_forbids_what_libvirts_does(name: str) -> None:
    (nic,) = domain(ref(name, IP, IPV6, GATEWAY)).interfaces
    assert guest_filter(nic) == MEANT[name]
    # Whoever wrote it is told where nothing comes of it.
    assert remarks(nic) or not guest_filter(nic).is_empty
    assert all(one.startswith(f"{name}: ") for one in remarks(nic))


@pytest.mark.parametrize("name", sorted(set(MEANT) - {"clean-traffic-gateway"}))
def test_a_managed_network_knows_the_address(name: str) -> None:
    (nic,) = domain(ref(name), NETWORK).interfaces
    assert guest_filter(nic).addresses == ()


def test_behind_a_gateway_neighbour_discovery_is_of_known_addresses_or_not_at_all() -> None:
    (on_bridge,) = domain(ref("clean-traffic-gateway", IP, GATEWAY)).interfaces
    assert guest_filter(on_bridge).deny == ("ipv6", "rarp")
    assert guest_filter(on_bridge).addresses == BOUND
    (on_network,) = domain(ref("clean-traffic-gateway", GATEWAY), NETWORK).interfaces
    assert guest_filter(on_network).deny == ("rarp",)


def test_a_list_is_several_parameters() -> None:
    other = "<parameter name='IP' value='192.0.2.8'/>"
    (nic,) = domain(ref("no-ip-spoofing", IP, other)).interfaces
    assert guest_filter(nic).addresses == ("192.0.2.7", "192.0.2.8")


def test_what_asks_for_nothing_asks_the_broker_for_nothing_more() -> None:
    kinds = [one.kind for one in broker_requests(domain(ref("allow-arp"), NETWORK))]
    assert kinds == ["tap"]
    tap, asked = broker_requests(domain(ref("clean-traffic"), NETWORK))
    assert (tap.kind, asked.parameters()) == (
        "tap",
        {"tap": ("s", "tap0"), "deny": ("as", ["ipv6", "rarp", "other"])},
    )


def test_lists_come_on_top_of_a_filterref() -> None:
    lists = GuestFilter(allow_inbound=("tcp:22",))
    _, asked = broker_requests(domain(ref("clean-traffic"), NETWORK), lists=lists)
    assert asked.parameters()["allow_inbound"] == ("as", ["tcp:22"])
    assert "deny" in asked.parameters()


@pytest.mark.parametrize("type_", ["user", "direct"])
def test_lists_that_nothing_would_look_at_are_refused(type_: str) -> None:
    source = "<source dev='eth0' mode='bridge'/>" if type_ == "direct" else ""
    with pytest.raises(UsageError, match="a filter is for"):
        broker_requests(domain("", source, type_), lists=GuestFilter(deny=("arp",)))


@pytest.mark.parametrize(
    ("filterref", "source", "says"),
    [
        (ref("clean-trafic"), NETWORK, "no filter 'clean-trafic'"),
        (ref("clean-traffic"), BRIDGE, "needs the guest's address"),
        (ref("no-ipv6-spoofing", IP), BRIDGE, "needs the guest's address"),
        (ref("clean-traffic-gateway", IP), BRIDGE, "needs the gateway's MAC address"),
        (ref("clean-traffic-gateway"), NETWORK, "needs the gateway's MAC address"),
        (ref("clean-traffic", "<parameter name='IP' value='192.0.2.300'/>"), NETWORK, "IP can"),
        (ref("clean-traffic", "<parameter name='IP' value='::1'/>"), NETWORK, "IP can"),
        (ref("allow-arp", "<parameter name='MAC' value='52:54:00:00:00:01'/>"), NETWORK, "own"),
        (ref("allow-arp", "<parameter name='PORT' value='1'/>"), NETWORK, "parameter 'PORT'"),
        (ref("allow-arp", "<parameter name='IP' value='$(id)'/>"), NETWORK, "letters"),
        ("<filterref/>", NETWORK, "filter"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(filterref: str, source: str, says: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        domain(filterref, source)
    assert says in str(refused.value)
    assert "interface" in str(refused.value)


@pytest.mark.parametrize(
    ("type_", "source"),
    [("user", ""), ("direct", "<source dev='eth0' mode='bridge'/>")],
)
def test_an_interface_without_a_place_for_it_has_none(type_: str, source: str) -> None:
    with pytest.raises(DefinitionError, match="does not go with"):
        domain(ref("clean-traffic"), source, type_)


@pytest.mark.parametrize(
    "entry",
    ["any", "tcp", "tcp:22", "udp:1-65535", "icmp", "10.0.0.0/8", "10.0.0.1", "2001:db8::/32",
     "::1", "any@10.0.0.0/8", "tcp:22@2001:db8::/32", "abcd::/16"],
)  # fmt: skip
def test_an_entry(entry: str) -> None:
    assert check_entry(entry) == entry


@pytest.mark.parametrize(
    "entry",
    ["", "tcp:0", "tcp:65536", "tcp:2-1", "icmp:8", "any:1", "sctp", "10.0.0.1/8", "fe80::1%eth0",
     "example.org", "tcp:22@", "tcp:22 ", "22", "TCP"],
)  # fmt: skip
def test_no_entry(entry: str) -> None:
    with pytest.raises(UsageError):
        check_entry(entry)

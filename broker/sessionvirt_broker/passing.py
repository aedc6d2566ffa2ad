# SPDX-License-Identifier: LGPL-2.1-or-later
"""What packets a guest lives by, and whether a rule of nft's is about one: yes, no, or unknown.

A packet here is a description: what is not known of it is None, and then so is what a rule asks of
that. No packet is sent. The rules are others', as libnftables-json(5) has them; of iptables' own
extensions (``xt``) there is only the name, so that each is unknown, but for what every firewall has
them for: a comment is no condition; connection tracking lets answers through, and drops what is
invalid, which a guest's packets are not; and what is asked about the receiver of what came *for*
the host is whether that is the host (``LIKELY``).

Pure: knows no host, and never raises for what it does not understand.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

__all__ = ["LIKELY", "Guest", "Packet", "Truth", "about", "matches", "packets", "value_of"]

LIKELY: Final = "likely"
#: None: unknown.
Truth = bool | None | Literal["likely"]

#: Somebody outside, whom no private range and no list of bogons has. Nothing is sent there.
OUTSIDE: Final = {4: "1.1.1.1", 6: "2606:4700:4700::1111"}
_HTTPS, _DNS, _ANY_PORT = 443, 53, 40000
_PROTOCOLS: Final = {6: "tcp", 17: "udp", 1: "icmp", 58: "ipv6-icmp"}
#: A field that such a packet has not: whatever a rule asks of it, it does not match.
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Guest:
    """One interface of a guest.

    :param bridge: what it is on.
    :param gateways: the host's own addresses there, by version; none on a LAN bridge.
    :param outward: the versions of IP that its network lets out.
    """

    ifname: str
    bridge: str
    addresses: Mapping[int, str]
    gateways: Mapping[int, str]
    outward: frozenset[int]


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet, at one hook or several.

    :param traffic: "out", "in" (the answers to that), "dhcp" or "dns".
    :param port: the port of a bridge that it comes or goes by: ``table bridge`` knows that.
    """

    traffic: str
    version: int
    hooks: tuple[str, ...]
    iif: str | None
    oif: str | None
    port: str
    saddr: str | None
    daddr: str | None
    protocol: str
    sport: int
    dport: int
    state: str
    local: str


def packets(guest: Guest, uplinks: Mapping[int, str], *, bridged: bool) -> list[Packet]:
    """What a guest needs to get through.

    :param uplinks: the interface with the default route, by version of IP.
    :param bridged: the host's IP rules also see what only crosses a bridge (br_netfilter).
    """
    found: list[Packet] = []
    for version, address in guest.addresses.items():
        if version in guest.outward and version in uplinks:
            found += _through(guest, version, address, uplinks[version])
        if version in guest.gateways:
            found += _to_gateway(guest, version, address, guest.gateways[version])
    if bridged and not guest.gateways:
        for version in (4, 6):
            found += _through(guest, version, guest.addresses.get(version), guest.bridge)
    return found


def _through(guest: Guest, version: int, address: str | None, uplink: str) -> list[Packet]:
    out = Packet(
        traffic="out", version=version, hooks=("prerouting", "forward", "postrouting"),
        iif=guest.bridge, oif=uplink, port=guest.ifname, saddr=address, daddr=OUTSIDE[version],
        protocol="tcp", sport=_ANY_PORT, dport=_HTTPS, state="new", local="unicast",
    )  # fmt: skip
    back = replace(
        out, traffic="in", iif=uplink, oif=guest.bridge, saddr=out.daddr, daddr=address,
        sport=_HTTPS, dport=_ANY_PORT, state="established", hooks=("forward", "postrouting"),
    )  # fmt: skip
    # Before NAT is taken back the receiver is an address of the host.
    return [out, replace(back, hooks=("prerouting",), daddr=None, local=""), back]


def _to_gateway(guest: Guest, version: int, address: str, gateway: str) -> list[Packet]:
    asks = Packet(
        traffic="dns", version=version, hooks=("prerouting", "input"), iif=guest.bridge, oif=None,
        port=guest.ifname, saddr=address, daddr=gateway, protocol="udp", sport=_ANY_PORT,
        dport=_DNS, state="new", local="local",
    )  # fmt: skip
    told = replace(
        asks, iif=None, oif=guest.bridge, saddr=gateway, daddr=address, sport=_DNS,
        dport=_ANY_PORT, state="established", hooks=("output", "postrouting"), local="unicast",
    )  # fmt: skip
    if version == 6:
        return [asks, told]
    nobody, all_ = "0.0.0.0", "255.255.255.255"  # noqa: S104  (a client without an address)
    lease = replace(
        asks, traffic="dhcp", saddr=nobody, daddr=all_, sport=68, dport=67, local="broadcast"
    )
    offer = replace(told, traffic="dhcp", sport=67, dport=68, state="new")
    return [asks, told, lease, offer]


def about(packet: Packet, expressions: Sequence[Any], *, drops: bool, sets: Mapping[str, Any]) -> (
    Truth
):  # fmt: skip
    """Whether all conditions of a rule hold.

    :param drops: what the rule does then; it decides what an extension of iptables' is taken for.
    """
    result: Truth = True
    for one in expressions:
        truth = _condition(packet, one, drops=drops, sets=sets)
        if truth is False:
            return False
        if truth is None or (truth == LIKELY and result is not None):
            result = truth
    return result


def _condition(packet: Packet, one: Any, *, drops: bool, sets: Mapping[str, Any]) -> Truth:
    if not isinstance(one, Mapping):
        return True
    if "match" in one:
        match = one["match"]
        return matches(
            value_of(packet, match.get("left")), match.get("op", "=="), match.get("right"), sets
        )
    if "limit" in one or "quota" in one or "ct count" in one:
        return None
    extension = one.get("xt") if "xt" in one else {}
    if extension is None:
        return None
    if extension.get("type") != "match" or extension.get("name") == "comment":
        return True
    if extension.get("name") in ("conntrack", "state"):
        return False if drops else True if packet.state == "established" else None
    if extension.get("name") == "addrtype" and packet.oif is None and not drops:
        return LIKELY
    return None


def value_of(packet: Packet, left: Any) -> Any:
    """What a rule's expression is, of this packet; None: unknown."""
    if not isinstance(left, Mapping) or len(left) != 1:
        return None
    ((kind, what),) = left.items()
    if kind == "concat" and isinstance(what, Sequence):
        return [value_of(packet, one) for one in what]
    if not isinstance(what, Mapping):
        return None
    if kind == "meta":
        return _meta(packet, str(what.get("key")))
    if kind == "payload":
        return _payload(packet, str(what.get("protocol")), str(what.get("field")))
    if kind == "ct":
        return _tracked(packet, str(what.get("key")))
    if kind == "fib":
        return _route(packet, what)
    return None


def _meta(packet: Packet, key: str) -> Any:
    known = {
        "iifname": packet.iif or "",
        "iif": packet.iif or "",
        "oifname": packet.oif or "",
        "oif": packet.oif or "",
        "l4proto": packet.protocol,
        "nfproto": f"ipv{packet.version}",
        "protocol": "ip" if packet.version == 4 else "ip6",
    }
    return known.get(key)


def _payload(packet: Packet, protocol: str, field: str) -> Any:
    if protocol in ("ip", "ip6"):
        if protocol != ("ip" if packet.version == 4 else "ip6"):
            return _MISSING
        known = {
            "saddr": packet.saddr,
            "daddr": packet.daddr,
            "protocol": packet.protocol,
            "nexthdr": packet.protocol,
        }
        return known.get(field)
    if protocol in ("th", packet.protocol):
        return {"sport": packet.sport, "dport": packet.dport}.get(field)
    return None if protocol in ("ether", "None") else _MISSING


def _tracked(packet: Packet, key: str) -> Any:
    known = {
        "state": packet.state,
        "status": "confirmed",
        "direction": "original" if packet.state == "new" else "reply",
    }
    return known.get(key)


def _route(packet: Packet, what: Mapping[str, Any]) -> Any:
    flags = what.get("flags", ())
    if what.get("result") == "type" and "daddr" in flags:
        return packet.local or None
    # The way back to a guest is by its bridge.
    return True if what.get("result") == "oif" and "saddr" in flags else None


def matches(value: Any, operator: str, right: Any, sets: Mapping[str, Any]) -> Truth:
    """Whether a value is what a rule wants.

    :param sets: the elements of those named sets that are known.
    """
    if value is None:
        return None
    if value is _MISSING:
        return False
    if operator in ("<", ">", "<=", ">="):
        if not (isinstance(value, int) and isinstance(right, int)):
            return None
        return {"<": value < right, ">": value > right, "<=": value <= right}.get(
            operator, value >= right
        )
    truth = _among(value, right, sets)
    return truth if truth is None or operator != "!=" else not truth


def _among(value: Any, right: Any, sets: Mapping[str, Any]) -> Truth:
    if isinstance(right, str) and right.startswith("@"):
        right = sets.get(right[1:])
        if right is None:
            return None
        right = {"set": right}
    if isinstance(right, Mapping):
        if "elem" in right:
            return _among(value, right["elem"].get("val"), sets)
        if "set" in right:
            return _any([_among(value, one, sets) for one in right["set"]])
        if "concat" in right and isinstance(value, list):
            pairs = zip(value, right["concat"], strict=False)
            truths = [None if mine is None else _among(mine, one, sets) for mine, one in pairs]
            return False if False in truths else None if None in truths else True
        return _within(value, right)
    if isinstance(right, list):
        return _any([_among(value, one, sets) for one in right])
    return _equal(value, right)


def _any(truths: Sequence[Truth]) -> Truth:
    return True if True in truths else None if None in truths else False


def _equal(value: Any, right: Any) -> Truth:
    if isinstance(value, bool) or isinstance(right, bool):
        return value == right if isinstance(right, bool) else None
    if isinstance(right, int) and isinstance(value, str):
        return _PROTOCOLS[right] == value if right in _PROTOCOLS else None
    if isinstance(right, str) and right.endswith("*") and isinstance(value, str):
        return value.startswith(right[:-1])
    if isinstance(right, str) and isinstance(value, str) and ":" in right + value:
        try:
            return ipaddress.ip_address(value) == ipaddress.ip_address(right)
        except ValueError:
            return None
    return value == right if isinstance(right, str | int) else None


def _within(value: Any, right: Mapping[str, Any]) -> Truth:
    try:
        if "prefix" in right:
            prefix = right["prefix"]
            network = ipaddress.ip_network(f"{prefix['addr']}/{prefix['len']}", strict=False)
            return ipaddress.ip_address(value) in network
        if "range" in right:
            low, high = right["range"]
            if isinstance(value, int):
                return bool(low <= value <= high)
            one = ipaddress.ip_address(value)
            first, last = ipaddress.ip_address(low), ipaddress.ip_address(high)
            return int(first) <= int(one) <= int(last) and one.version == first.version
    except (ValueError, TypeError, KeyError):
        return None
    return None

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy for frames of a guest, on a managed network or a LAN bridge, as the documents say it.

Written from sessionvirt-broker(8) "FIREWALL", the RFCs and IEEE 802.1D, not from the rules: the
kernel's verdict is compared with this one, frame by frame. Pure; reads bytes as a receiver would.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

__all__ = ["PASSED", "UNCOUNTED", "UNDECIDED", "Guest", "judge", "takers"]

#: Verdicts beside the reasons: it passes; the kernel itself drops it before anybody can count;
#: kernels differ (a later fragment within a first one, which nobody sends and nothing can do).
PASSED, UNCOUNTED, UNDECIDED = "passed", "uncounted", "undecided"

_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_TAGS = (0x8100, 0x88A8, 0x9100)
_GROUPS = bytes.fromhex("0180c20000")
_HOP, _ROUTING, _FRAGMENT, _AUTH, _NONE, _OPTIONS = 0, 43, 44, 51, 59, 60
_IGMP, _UDP, _ICMP6 = 2, 17, 58
#: IGMP: versions 1 to 3, and leave.
_REPORTS = (b"\x12", b"\x16", b"\x17", b"\x22")
#: The messages that a client of DHCPv6 sends (RFC 8415, 7.3).
_DHCP6_CLIENTS = (1, 3, 4, 5, 6, 8, 9, 11)
_MLD_QUERY, _RS, _RA, _NS, _NA, _REDIRECT, _MLD2_REPORT = 130, 133, 134, 135, 136, 137, 143


@dataclass(frozen=True)
class Guest:
    """What one guest was given, packed; ``ipv6`` has the MAC's link-local address, too.

    :param unbound: on a LAN bridge no address is given, and none is asked for.
    """

    mac: bytes
    ipv4: bytes
    ipv6: frozenset[bytes]
    unbound: bool = False

    @classmethod
    def of(cls, mac: str, ipv4: str, *ipv6: str) -> Guest:
        packed = frozenset(ipaddress.IPv6Address(one).packed for one in ipv6)
        return cls(bytes.fromhex(mac.replace(":", "")), ipaddress.IPv4Address(ipv4).packed, packed)


def judge(frame: bytes, guest: Guest) -> str:
    """The reason for which a frame that *guest* sends is dropped, or one of the two others."""
    target, source, body = frame[:6], frame[6:12], frame[14:]
    kind = int.from_bytes(frame[12:14], "big")
    if source[0] & 1 or not any(source):
        return UNCOUNTED  # nobody has such an address: a bridge throws it away
    if kind in _TAGS[:2] and len(body) < 6:
        return UNCOUNTED  # half a tag
    if target[:5] == _GROUPS and 0 < target[5] < 16:
        # To the bridge itself, whoever sends it. Pause ends in the port, LLDP in its layer 3.
        return UNCOUNTED if target[5] in (0x01, 0x0E) else "bpdu"
    if source != guest.mac:
        return "mac"
    if kind in _TAGS:
        return "vlan"
    if target[:5] == _GROUPS and target[5] == 0:
        return "bpdu"
    parts = {_ARP: _arp, _IPV4: _ipv4, _IPV6: _ipv6}
    return parts[kind](body, guest) if kind in parts else "type"


def _arp(body: bytes, guest: Guest) -> str:
    # Of the rest nothing is asked: who gets half a question throws it away.
    if len(body) < (14 if guest.unbound else 18) or body[:6] != bytes.fromhex("000108000604"):
        return "arp"
    probe = body[6:8] == b"\0\1" and not any(body[14:18])
    honest = body[14:18] == guest.ipv4 or probe or guest.unbound
    return PASSED if honest and body[8:14] == guest.mac else "arp"


def _ipv4(body: bytes, guest: Guest) -> str:
    if len(body) < 20 or body[0] >> 4 != 4:
        return "ipv4"
    head, length = (body[0] & 15) * 4, int.from_bytes(body[2:4], "big")
    if not 20 <= head <= length <= len(body):
        return "ipv4"
    first = not int.from_bytes(body[6:8], "big") & 0x1FFF
    payload = body[head:] if first else b""
    sport, dport = _ports(payload) if body[9] == _UDP else (None, None)
    if sport == 67 or dport == 68:
        return "dhcp"
    if dport == 67 and payload[36:42] != guest.mac:  # chaddr (RFC 2131, 2)
        return "dhcp"
    if body[9] == _IGMP and payload[:1] not in _REPORTS:
        return "router"
    client = not any(body[12:16]) and (sport, dport) == (68, 67)
    return PASSED if client or guest.unbound or body[12:16] == guest.ipv4 else "ipv4"


def _ipv6(body: bytes, guest: Guest) -> str:
    if len(body) < 40:
        return "ipv6"
    intact = body[0] >> 4 == 6 and 40 + int.from_bytes(body[4:6], "big") <= len(body)
    own = guest.unbound or body[8:24] in guest.ipv6
    protocol, payload, first, hop = body[6], body[40:], False, False
    while protocol in (_HOP, _ROUTING, _FRAGMENT, _OPTIONS):
        if len(payload) < (8 if protocol == _FRAGMENT else 2):
            return "ipv6"  # a chain of headers that nobody can follow
        if protocol == _FRAGMENT and int.from_bytes(payload[2:4], "big") & 0xFFF8:
            # The rest of what was judged with the first fragment.
            return UNDECIDED if first else PASSED if own else "ipv6"
        first |= protocol == _FRAGMENT
        hop |= protocol == _HOP
        size = 8 if protocol == _FRAGMENT else (payload[1] + 1) * 8
        protocol, payload = payload[0], payload[size:]
    if not intact or (first and len(payload) < 4) or (protocol == _AUTH and len(payload) < 2):
        return "ipv6"  # the second: RFC 7113
    kind = payload[0] if protocol == _ICMP6 and payload else None
    if kind in (_RA, _REDIRECT, _MLD_QUERY) or (hop and protocol == _AUTH):
        return "router"
    sport, dport = _ports(payload) if protocol == _UDP else (None, None)
    if sport == 547 or dport == 546:
        return "dhcp"
    if dport == 547 and (len(payload) < 9 or payload[8] not in _DHCP6_CLIENTS):
        return "dhcp"
    if guest.unbound:
        return PASSED
    if not any(body[8:24]):
        return PASSED if kind in (_NS, _RS, _MLD2_REPORT) else "ipv6"
    if not own:
        return "ipv6"
    return "neighbour" if kind == _NA and payload[8:24] not in guest.ipv6 else PASSED


def _ports(payload: bytes) -> tuple[int | None, int | None]:
    """As far as they are there."""
    sport = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else None
    return sport, int.from_bytes(payload[2:4], "big") if len(payload) >= 4 else None


def takers(frame: bytes, sender: bytes, peers: dict[str, bytes], host: bytes) -> frozenset[str]:
    """Whose ports a frame that passed is sent to: of *peers*, ``host``. Nobody's own.

    What is for nobody goes to the ports of all (to be dropped there), to the host only as a group.
    """
    target = frame[:6]
    known = {mac: name for name, mac in peers.items()} | {host: "host"}
    if target == sender:
        return frozenset()
    if target in known:
        return frozenset((known[target],))
    return frozenset(peers) | (frozenset(("host",)) if target[0] & 1 else frozenset())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ethernet frames, honest and forged, made and read byte by byte.

Addresses are text (``52:54:00:12:34:56``, ``10.0.0.1``, ``fe80::1``). Every checksum is right, so
that what drops a frame is the filter and not a receiver's arithmetic. The numbers are those of the
RFCs named at each function.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

__all__ = [
    "ARP",
    "BROADCAST",
    "ICMP6",
    "IPV4",
    "IPV6",
    "Packet",
    "arp",
    "authentication",
    "checksum",
    "dhcp4",
    "dhcp6",
    "dhcp6_options",
    "duid",
    "echo4",
    "echo6",
    "ethernet",
    "extension",
    "fragment6",
    "icmp6",
    "igmp",
    "ipv4",
    "ipv6",
    "link_local",
    "llc",
    "mac_bytes",
    "mld",
    "multicast_mac",
    "neighbour_advertisement",
    "neighbour_solicitation",
    "parse",
    "read_dhcp4",
    "read_dhcp6",
    "redirect",
    "router_advertisement",
    "router_alert",
    "solicited_node",
    "tag",
    "tcp",
    "udp",
]

BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "ff02::1"

IPV4, ARP, VLAN, IPV6, SERVICE_VLAN = 0x0800, 0x0806, 0x8100, 0x86DD, 0x88A8
ICMP, IGMP, TCP, UDP = 1, 2, 6, 17
HOP_BY_HOP, FRAGMENT, AUTHENTICATION, ICMP6, NO_NEXT, DESTINATION_OPTIONS = 0, 44, 51, 58, 59, 60
#: DHCP's option that says what a message is, and the magic before the options (RFC 2131, 2132).
DHCP4_MAGIC = bytes.fromhex("63825363")
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
SOLICIT, ADVERTISE, REQUEST6, REPLY = 1, 2, 3, 7


def mac_bytes(mac: str) -> bytes:
    """The six octets."""
    return bytes.fromhex(mac.replace(":", ""))


def _mac_text(octets: bytes) -> str:
    return octets.hex(":")


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _transport_checksum(source: str, target: str, protocol: int, segment: bytes) -> int:
    addresses = _packed(source) + _packed(target)
    if len(addresses) == 8:
        return checksum(addresses + struct.pack("!BBH", 0, protocol, len(segment)) + segment)
    return checksum(addresses + struct.pack("!IxxxB", len(segment), protocol) + segment)


# Link layer


def ethernet(target: str, source: str, ethertype: int, payload: bytes, tags: bytes = b"") -> bytes:
    """A frame; *tags* of :func:`tag` go before the type. Not padded: a TAP carries any length."""
    return mac_bytes(target) + mac_bytes(source) + tags + struct.pack("!H", ethertype) + payload


def tag(vlan: int, ethertype: int = VLAN) -> bytes:
    """One VLAN tag; *vlan* 0 is a priority tag (IEEE 802.1Q)."""
    return struct.pack("!HH", ethertype, vlan | 3 << 13)


def llc(target: str, source: str, payload: bytes) -> bytes:
    """A frame with a length in the type's place (IEEE 802.2)."""
    return mac_bytes(target) + mac_bytes(source) + struct.pack("!H", len(payload)) + payload


def bpdu(source: str, target: str = "01:80:c2:00:00:00") -> bytes:
    """A spanning-tree configuration message from a root of the best priority (IEEE 802.1D, 9.3)."""
    bridge = struct.pack("!H", 0) + mac_bytes(source)
    message = struct.pack("!HBBB", 0, 0, 0, 0) + bridge + struct.pack("!I", 0) + bridge
    message += struct.pack("!HHHHH", 0x8001, 0, 20 << 8, 2 << 8, 15 << 8)
    return llc(target, source, b"\x42\x42\x03" + message)


def arp(
    operation: int,
    hardware: str,
    address: str,
    target_address: str,
    *,
    source: str = "",
    target: str = BROADCAST,
    target_hardware: str = "00:00:00:00:00:00",
) -> bytes:
    """An ARP frame (RFC 826): 1 is a request, 2 a reply.

    :param source: of the frame; where it is not given, *hardware*.
    """
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    body += mac_bytes(hardware) + _packed(address) + mac_bytes(target_hardware)
    return ethernet(target, source or hardware, ARP, body + _packed(target_address))


# IPv4 and IPv6


def ipv4(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    identification: int = 0,
    offset: int = 0,
    more: bool = False,
) -> bytes:
    """A packet (RFC 791). *offset* is in bytes, a multiple of 8."""
    words = 5 + len(options) // 4
    fragment = offset // 8 | (0x2000 if more else 0)
    head = struct.pack(
        "!BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), identification, fragment, 64,
        protocol, 0,
    )  # fmt: skip
    head += _packed(source) + _packed(target) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(source: str, target: str, next_header: int, payload: bytes) -> bytes:
    """A packet (RFC 8200) with hop limit 255, as neighbour discovery needs it."""
    head = struct.pack("!IHBB", 6 << 28, len(payload), next_header, 255)
    return head + _packed(source) + _packed(target) + payload


def extension(next_header: int, units: int = 1) -> bytes:
    """A hop-by-hop or destination options header with nothing but padding, 8 bytes a unit."""
    size = units * 8 - 4  # behind next header, length, and the option's own two bytes
    padding = b""
    while size > 255:
        padding += b"\x01\xff" + bytes(255)
        size -= 257
    padding = b"\x01" + bytes([size]) + bytes(size) + padding
    return bytes([next_header, units - 1]) + padding


def fragment6(next_header: int, offset: int, *, more: bool, identification: int = 7) -> bytes:
    """A fragment header; *offset* is in bytes, a multiple of 8."""
    return struct.pack("!BxHI", next_header, offset | more, identification)


def link_local(mac: str) -> str:
    """The link-local address of a MAC (RFC 4291, appendix A)."""
    octets = mac_bytes(mac)
    interface = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + interface))


def multicast_mac(address: str) -> str:
    """Where a multicast group's frames go (RFC 1112, RFC 2464)."""
    packed = _packed(address)
    if len(packed) == 16:
        return _mac_text(b"\x33\x33" + packed[-4:])
    return _mac_text(b"\x01\x00\x5e" + bytes([packed[1] & 0x7F]) + packed[2:])


def solicited_node(address: str) -> str:
    """The group that is asked for an address (RFC 4291, 2.7.1)."""
    prefix = ipaddress.IPv6Address("ff02::1:ff00:0").packed[:13]
    return str(ipaddress.IPv6Address(prefix + _packed(address)[13:]))


# Transport


def udp(source: str, target: str, ports: tuple[int, int], payload: bytes = b"") -> bytes:
    """A datagram from and to *ports* (RFC 768)."""
    segment = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    found = _transport_checksum(source, target, UDP, segment) or 0xFFFF
    return segment[:6] + struct.pack("!H", found) + segment[8:]


def tcp(
    source: str,
    target: str,
    ports: tuple[int, int],
    flags: int = 0x02,
    payload: bytes = b"",
    numbers: tuple[int, int] = (1000, 0),
) -> bytes:
    """A segment; 0x02 is SYN (RFC 9293). Its numbers are its own and what it acknowledges."""
    head = struct.pack("!HHIIBBHHH", *ports, *numbers, 5 << 4, flags, 65535, 0, 0)
    segment = head + payload
    found = _transport_checksum(source, target, TCP, segment)
    return segment[:16] + struct.pack("!H", found) + segment[18:]


def echo4(identification: int, payload: bytes = b"") -> bytes:
    """An ICMP echo request (RFC 792)."""
    message = struct.pack("!BBHHH", 8, 0, 0, identification, 1) + payload
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def icmp6(source: str, target: str, kind: int, body: bytes, code: int = 0) -> bytes:
    """A message of ICMPv6 (RFC 4443); *body* is what follows the checksum."""
    message = struct.pack("!BBH", kind, code, 0) + body
    found = _transport_checksum(source, target, ICMP6, message)
    return message[:2] + struct.pack("!H", found) + message[4:]


def echo6(source: str, target: str, identification: int) -> bytes:
    """An ICMPv6 echo request."""
    return icmp6(source, target, 128, struct.pack("!HH", identification, 1))


def neighbour_solicitation(source: str, target: str, wanted: str, mac: str) -> bytes:
    """Who has *wanted*? Type 135 of RFC 4861; from :: it is duplicate address detection."""
    option = b"" if source == "::" else b"\x01\x01" + mac_bytes(mac)
    return icmp6(source, target, 135, bytes(4) + _packed(wanted) + option)


def neighbour_advertisement(source: str, target: str, claimed: str, mac: str) -> bytes:
    """*claimed* is at *mac*, unasked and overriding (type 136)."""
    body = struct.pack("!I", 0x20000000) + _packed(claimed) + b"\x02\x01" + mac_bytes(mac)
    return icmp6(source, target, 136, body)


def router_advertisement(source: str, mac: str, *, target: str = ALL_NODES) -> bytes:
    """I am the default router for half an hour (type 134)."""
    body = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + b"\x01\x01" + mac_bytes(mac)
    return icmp6(source, target, 134, body)


def router_solicitation(source: str, target: str, mac: str) -> bytes:
    """Is there a router? (type 133)"""
    option = b"" if source == "::" else b"\x01\x01" + mac_bytes(mac)
    return icmp6(source, target, 133, bytes(4) + option)


def redirect(source: str, target: str, *, gateway: str, destination: str) -> bytes:
    """The better way to *destination* is *gateway* (type 137)."""
    return icmp6(source, target, 137, bytes(4) + _packed(gateway) + _packed(destination))


# Who is in which group


def igmp(kind: int, group: str = "224.0.0.251") -> bytes:
    """A message about a group: 0x11 asks, 0x16 says, 0x17 leaves (RFC 2236); at once."""
    message = struct.pack("!BBH", kind, 1, 0) + _packed(group)
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def mld(source: str, target: str, kind: int, group: str = "::") -> bytes:
    """130 asks, 131 says (RFC 2710); answers are wanted within a millisecond."""
    return icmp6(source, target, kind, struct.pack("!HH", 1, 0) + _packed(group))


def router_alert(next_header: int) -> bytes:
    """Hop-by-hop options with a router alert for MLD (RFC 2711)."""
    return bytes([next_header, 0]) + b"\x05\x02\0\0\x01\0"


def authentication(next_header: int) -> bytes:
    """An AH of 24 bytes that proves nothing (RFC 4302)."""
    return bytes([next_header, 4]) + bytes(22)


# DHCP


def dhcp4(
    kind: int, mac: str, options: dict[int, bytes] | None = None, *, reply: str = ""
) -> bytes:
    """A message of RFC 2131; its transaction is the MAC's last four octets.

    :param reply: the address that a server gives; where it is not given, a client speaks.
    """
    head = struct.pack("!BBBB", 2 if reply else 1, 1, 6, 0) + mac_bytes(mac)[2:]
    head += struct.pack("!HH", 0, 0x8000) + bytes(4) + _packed(reply or "0.0.0.0") + bytes(8)
    head += mac_bytes(mac) + bytes(10) + bytes(192) + DHCP4_MAGIC
    found = {53: bytes([kind]), **(options or {})}
    return head + b"".join(bytes([key, len(v)]) + v for key, v in found.items()) + b"\xff"


def read_dhcp4(message: bytes) -> tuple[str, dict[int, bytes]]:
    """The address that a message gives, and its options."""
    options, offset = {}, 240
    while offset < len(message) and message[offset] != 255:
        if message[offset] == 0:
            offset += 1
            continue
        length = message[offset + 1]
        options[message[offset]] = message[offset + 2 : offset + 2 + length]
        offset += 2 + length
    return str(ipaddress.IPv4Address(message[16:20])), options


def duid(mac: str) -> bytes:
    """A client's name that is made of its MAC (DUID-LL, RFC 8415)."""
    return struct.pack("!HH", 3, 1) + mac_bytes(mac)


def dhcp6(kind: int, options: list[tuple[int, bytes]]) -> bytes:
    """A message of RFC 8415 with the transaction 0x535654."""
    encoded = (struct.pack("!HH", key, len(value)) + value for key, value in options)
    return bytes([kind]) + b"SVT" + b"".join(encoded)


def dhcp6_options(encoded: bytes) -> dict[int, bytes]:
    """Options by their code; of several with one code the last."""
    options, offset = {}, 0
    while offset + 4 <= len(encoded):
        key, length = struct.unpack_from("!HH", encoded, offset)
        options[key] = encoded[offset + 4 : offset + 4 + length]
        offset += 4 + length
    return options


def read_dhcp6(message: bytes) -> tuple[int, dict[int, bytes]]:
    """Kind and options."""
    return message[0], dhcp6_options(message[4:])


# Reading


@dataclass(frozen=True)
class Packet:
    """What a frame says. Ports are 0 and addresses empty where there are none.

    :param kind: of ICMP and ICMPv6, or ARP's operation.
    :param payload: behind the UDP header, the ICMP checksum, or what was understood last.
    """

    frame: bytes
    target_mac: str
    source_mac: str
    ethertype: int
    source: str = ""
    target: str = ""
    protocol: int = 0
    kind: int = 0
    ports: tuple[int, int] = (0, 0)
    flags: int = 0
    payload: bytes = b""


def parse(frame: bytes) -> Packet:
    """Read a frame as far as it is understood; one that is cut short is read to there."""
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    where = (frame, _mac_text(frame[:6]), _mac_text(frame[6:12]), ethertype)
    body = frame[14:]
    if ethertype == ARP and len(body) >= 28:
        sender, asked = ipaddress.IPv4Address(body[14:18]), ipaddress.IPv4Address(body[24:28])
        return Packet(
            *where, str(sender), str(asked), kind=body[7], payload=body[8:14]
        )  # the sender's hardware address
    if ethertype == IPV4 and len(body) >= 20:
        head = (body[0] & 15) * 4
        length = struct.unpack_from("!H", body, 2)[0]
        addresses = (
            str(ipaddress.IPv4Address(body[12:16])),
            str(ipaddress.IPv4Address(body[16:20])),
        )
        return _transport(where, addresses, body[9], body[head:length])
    if ethertype == IPV6 and len(body) >= 40:
        length = struct.unpack_from("!H", body, 4)[0]
        addresses = (
            str(ipaddress.IPv6Address(body[8:24])),
            str(ipaddress.IPv6Address(body[24:40])),
        )
        return _transport(where, addresses, body[6], body[40 : 40 + length])
    return Packet(*where, payload=body)


def _transport(
    where: tuple[bytes, str, str, int], addresses: tuple[str, str], protocol: int, body: bytes
) -> Packet:
    if protocol == 0 and len(body) >= 8:  # hop-by-hop options: MLD has them
        return _transport(where, addresses, body[0], body[(body[1] + 1) * 8 :])
    if protocol == UDP and len(body) >= 8:
        ports = struct.unpack_from("!HH", body)
        return Packet(*where, *addresses, protocol, ports=ports, payload=body[8:])
    if protocol == TCP and len(body) >= 20:
        ports = struct.unpack_from("!HH", body)
        return Packet(*where, *addresses, protocol, ports=ports, flags=body[13], payload=body[20:])
    if protocol in (ICMP, ICMP6) and len(body) >= 4:
        return Packet(*where, *addresses, protocol, kind=body[0], payload=body[4:])
    return Packet(*where, *addresses, protocol, payload=body)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Frames by hypothesis: of all that guests send, with a forgery here and there, and broken ones.

Each field is drawn by itself, and mostly honest, so that a frame has seldom more than one forgery
and many have none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from lab import frames
from lab.forgeries import FORGERIES, STRANGER

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.tap import Tap

__all__ = ["Scene", "any_frame"]

Draw = Any


@dataclass(frozen=True)
class Scene:
    """Who is there: the sender, a guest of the same user, another user's, the gateway."""

    sender: Tap
    peer: Tap
    stranger: Tap
    gateway_mac: str
    gateway4: str
    gateway6: str


#: IEEE 802.1D's reserved group, and groups that protocols of the LAN use.
GROUPS = (
    *(f"01:80:c2:00:00:{last:02x}" for last in range(17)),
    "01:00:0c:cc:cc:cc",
    "01:00:5e:00:00:fb",
    "33:33:00:00:00:01",
    "33:33:00:00:00:02",
    "33:33:ff:00:40:01",
)
#: Ports that mean something, and some that do not.
PORTS = (53, 67, 68, 546, 547, 5353, 4000, 4001)
ICMP6_KINDS = (*range(128, 138), 143)
ETHERTYPES = (0x0027, 0x05FF, 0x0600, 0x0842, 0x8035, 0x8100, 0x8847, 0x8863, 0x8864, 0x88A8,
              0x88B5, 0x88CC, 0x88E5, 0x8906, 0x9100, 0xFFFF)  # fmt: skip


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """*usual* at four of five times, else one of *others*, each as often as it is named."""
    return st.sampled_from([usual] * (4 * len(others)) + list(others))


def seldom() -> st.SearchStrategy[bool]:
    """True at one of five times."""
    return st.sampled_from([False] * 4 + [True])


@st.composite
def _transport(
    draw: Draw, scene: Scene, source: str, target: str, protocols: tuple[int, ...]
) -> Any:
    """Protocol and payload."""
    clients = scene.sender, scene.peer
    protocol = draw(st.sampled_from(protocols))
    ports = draw(mostly((4000, 4001), *((p, 4000) for p in PORTS), *((4000, p) for p in PORTS),
                        (67, 68), (68, 67), (546, 547), (547, 546)))  # fmt: skip
    if protocol == frames.UDP:
        said = (b"random", b"\x01SVT", b"\x0cSVT", *(frames.dhcp4(1, one.mac) for one in clients))
        data = draw(st.sampled_from(said))
        return protocol, frames.udp(source, target, ports, data)
    if protocol == frames.TCP:
        return protocol, frames.tcp(source, target, ports, draw(st.sampled_from((2, 16, 4))))
    return protocol, draw(st.binary(min_size=0, max_size=24))


@st.composite
def _ipv4(draw: Draw, scene: Scene, mac: str, target_mac: str) -> bytes:
    a, b = scene.sender, scene.peer
    source = draw(mostly(a.ipv4, b.ipv4, scene.stranger.ipv4, scene.gateway4, "0.0.0.0",
                         "255.255.255.255", "127.0.0.1", "224.0.0.1", "192.0.2.9"))  # fmt: skip
    target = draw(mostly(b.ipv4, scene.gateway4, scene.stranger.ipv4, "255.255.255.255",
                         "224.0.0.251", "224.0.0.1", "192.0.2.9", a.ipv4))  # fmt: skip
    protocol, payload = draw(_transport(scene, source, target, (17, 17, 17, 6, 1, 2, 4, 50, 132)))
    if protocol == frames.ICMP:
        payload = frames.echo4(7, b"random")
    elif protocol == 2:  # IGMP: queries, reports, leave (RFC 2236, RFC 3376)
        head = struct.pack("!BBH4s", draw(st.sampled_from((0x11, 0x12, 0x16, 0x17, 0x22))), 100, 0,
                           bytes((224, 0, 0, 251)))  # fmt: skip
        payload = head[:2] + struct.pack("!H", frames.checksum(head)) + head[4:]
    packet = frames.ipv4(
        source, target, protocol, payload,
        options=draw(mostly(b"", b"\x94\x04\0\0", bytes(40))),
        identification=3,
        offset=draw(mostly(0, 8, 64, 65528)),
        more=draw(seldom()),
    )  # fmt: skip
    lengths = struct.pack("!H", len(packet) + 1), b"\0\0", b"\xff\xff"
    packet = draw(mostly(packet, b"\x44" + packet[1:], b"\x4f" + packet[1:], b"\x65" + packet[1:],
                         *(packet[:2] + one + packet[4:] for one in lengths)))  # fmt: skip
    return frames.ethernet(target_mac, mac, frames.IPV4, packet)


@st.composite
def _icmp6(draw: Draw, scene: Scene, source: str, target: str) -> bytes:
    a, b = scene.sender, scene.peer
    kind = draw(st.sampled_from(ICMP6_KINDS))
    if kind in (128, 129):
        return frames.icmp6(source, target, kind, bytes(4))
    if kind in (130, 131, 132, 143):  # MLD
        return frames.icmp6(source, target, kind, bytes(4) + bytes(16))
    claimed = draw(mostly(a.ipv6, a.link_local, b.ipv6, b.link_local, scene.gateway6, "::"))
    link = draw(mostly(a.mac, b.mac, STRANGER))
    made: dict[int, Callable[[], bytes]] = {
        133: lambda: frames.router_solicitation(source, target, link),
        134: lambda: frames.router_advertisement(source, link, target=target),
        135: lambda: frames.neighbour_solicitation(source, target, claimed, link),
        136: lambda: frames.neighbour_advertisement(source, target, claimed, link),
        137: lambda: frames.redirect(source, target, gateway=claimed, destination=b.ipv6),
    }
    return bytes(made[kind]())


@st.composite
def _ipv6(draw: Draw, scene: Scene, mac: str, target_mac: str) -> bytes:
    a, b = scene.sender, scene.peer
    source = draw(mostly(a.ipv6, a.link_local, a.link_local, "::", b.ipv6, b.link_local, "ff02::1",
                         scene.stranger.ipv6, scene.gateway6, "fe80::1", "::1"))  # fmt: skip
    target = draw(mostly(b.ipv6, b.link_local, "ff02::1", "ff02::2", "ff02::1:2", scene.gateway6,
                         frames.solicited_node(b.ipv6), scene.stranger.ipv6))  # fmt: skip
    protocol, payload = draw(
        _transport(scene, source, target, (17, 17, 58, 58, 58, 58, 6, 50, 51, 59))
    )
    if protocol == frames.ICMP6:
        payload = draw(_icmp6(scene, source, target))
    for extra in draw(mostly((), (0,), (60,), (44,), (60, 60), (60, 44), (44, 60), (44, 44), (43,),
                             (0, 60, 44), (51,), (135,))):  # fmt: skip
        if extra == frames.FRAGMENT:
            offset, more = draw(mostly(0, 8, 64)), draw(seldom())
            payload = frames.fragment6(protocol, offset, more=more) + payload
        else:
            payload = frames.extension(protocol, draw(mostly(1, 2, 4))) + payload
            if draw(seldom()):  # its length leads beyond the packet
                payload = payload[:1] + b"\xff" + payload[2:]
        protocol = extra
    packet = frames.ipv6(source, target, protocol, payload)
    length = len(packet) - 40
    wrong = struct.pack("!H", length + 1), struct.pack("!H", max(0, length - 1)), b"\0\0"
    packet = draw(mostly(packet, b"\x45" + packet[1:], b"\x40" + packet[1:],
                         *(packet[:4] + one + packet[6:] for one in wrong)))  # fmt: skip
    return frames.ethernet(target_mac, mac, frames.IPV6, packet)


@st.composite
def _arp(draw: Draw, scene: Scene, mac: str, target_mac: str) -> bytes:
    a, b = scene.sender, scene.peer
    frame = frames.arp(
        draw(st.sampled_from((1, 2, 1, 2, 3, 8, 0))),
        draw(mostly(mac, b.mac, scene.gateway_mac, STRANGER)),
        draw(mostly(a.ipv4, "0.0.0.0", b.ipv4, scene.gateway4)),
        draw(mostly(b.ipv4, a.ipv4, scene.gateway4, scene.stranger.ipv4)),
        source=mac,
        target=target_mac,
    )
    head = draw(mostly(frame[14:20], b"\0\6\x08\0\6\4", b"\0\1\x86\xdd\6\4", b"\0\1\x08\0\x08\4",
                       b"\0\1\x08\0\6\x10"))  # fmt: skip
    return bytes(frame[:14] + head + frame[20:])


@st.composite
def _other(draw: Draw, scene: Scene, mac: str, target_mac: str) -> bytes:
    """Other protocols of the link, and IP under a wrong name."""
    body = scene.sender.udp4(scene.peer.mac, scene.peer.ipv4, (4000, 4001))[14:]
    body = draw(st.sampled_from((body, b"\x42\x42\x03" + bytes(35), b"\xaa\xaa\x03\0\0\0\x08\0")))
    return frames.ethernet(target_mac, mac, draw(st.sampled_from(ETHERTYPES)), body)


@st.composite
def _listed(draw: Draw, scene: Scene, mac: str, target_mac: str) -> bytes:
    """One of the forgeries that a test of its own has, or its twin."""
    forgery = FORGERIES[draw(st.sampled_from(sorted(FORGERIES)))]
    make = forgery.honest if draw(st.booleans()) else forgery.forged
    return bytes(make(scene.sender, scene.peer))


KINDS = (_ipv4, _ipv6, _ipv4, _ipv6, _ipv6, _arp, _listed, _other)


@st.composite
def any_frame(draw: Draw, scene: Scene) -> bytes:
    """One frame of at least an Ethernet header."""
    a, b = scene.sender, scene.peer
    usual = draw(st.sampled_from((b.mac, b.mac, frames.BROADCAST, scene.gateway_mac)))
    target = draw(mostly(usual, scene.stranger.mac, a.mac, "52:54:00:00:40:77", *GROUPS))
    mac = draw(mostly(a.mac, b.mac, scene.stranger.mac, scene.gateway_mac, STRANGER,
                      "01:00:5e:00:00:01", "00:00:00:00:00:00"))  # fmt: skip
    frame: bytes = draw(draw(st.sampled_from(KINDS))(scene, mac, target))
    tags = draw(mostly((), (0x8100,), (0x88A8,), (0x88A8, 0x8100), (0x8100, 0x8100),
                       (0x9100,)))  # fmt: skip
    if tags:
        inner = b"".join(frames.tag(draw(st.sampled_from((0, 1, 7, 4095))), one) for one in tags)
        frame = frame[:12] + inner + frame[12:]
    damage = draw(mostly("", "short", "long", "flip"))
    if damage == "short":
        return frame[: draw(st.integers(14, len(frame)))]
    if damage == "long":
        return frame + bytes(draw(st.binary(min_size=1, max_size=40)))
    if damage == "flip":
        at, value = draw(st.integers(0, len(frame) - 1)), draw(st.integers(0, 255))
        return frame[:at] + bytes([value]) + frame[at + 1 :]
    return frame

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A LAN by macvtap under systemd: the confined broker reaches the node, Debian's kernel judges.

Older kernels than that of the lab find what is behind an IP header by another way at this hook, so
each forgery that is enforced is sent here, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.forgeries import FORGERIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.frames import Packet
    from lab.lan import LanHost
    from lab.rawbus import Client
    from lab.tap import Tap

pytestmark = pytest.mark.host

DEVICE = "wire0"
FIRST, SECOND = "52:54:00:00:49:01", "52:54:00:00:49:02"
#: Of whom nobody gave an address, none is enforced; the rest is.
ENFORCED = {
    name: forgery.reason
    for name, forgery in FORGERIES.items()
    if forgery.reason not in ("ipv4", "ipv6", "neighbour") and not name.startswith("arp-")
} | {"arp-hardware": "arp"}


@pytest.fixture
def wire() -> Iterator[LanHost]:
    """The interface, offered, and the host at the other end of its wire."""
    from host.inside.strangers import configured
    from lab.direct import wired

    with wired(DEVICE) as other, configured(f"[direct.{DEVICE}]\n"):
        yield other


@pytest.fixture
def client(permission: None) -> Iterator[Client]:
    """user1's."""
    from host.inside.strangers import connection

    with connection("user1") as found:
        yield found


def reached(wire: LanHost, sender: Tap, *sent: bytes) -> list[bytes]:
    """Those of some frames, of which the last is honest, that come to the other end."""

    def last(packet: Packet) -> bool:
        return packet.frame.startswith(sent[-1])

    wire.waiting()
    sender.send(*sent)
    seen = wire.until(last)
    return [one for one in sent if any(packet.frame.startswith(one) for packet in seen)]


def test_a_guest_is_a_host_of_the_lan_and_forges_nothing(wire: LanHost, client: Client) -> None:
    from host.inside.strangers import holding
    from lab.direct import OTHERS
    from lab.rawbus import direct

    requests = direct(DEVICE, mac=FIRST), direct(DEVICE, mac=SECOND)
    with holding(client, "vm", *requests) as held:
        for number, tap in enumerate(held.taps, 11):
            address6 = f"2001:db8:49::{number}"
            tap.facts = {**tap.facts, "ipv4": [f"192.0.2.{number}"], "ipv6": [address6]}
        sender, peer = held.taps
        answer = frames.arp(2, OTHERS, "192.0.2.97", sender.ipv4, target=sender.mac)
        wire.send(answer)
        sender.until(lambda p: p.frame.startswith(answer))
        elsewhere = frames.mac_bytes(OTHERS)

        def outward(frame: bytes) -> bytes:
            return frame if frame[0] & 1 else elsewhere + frame[6:]

        for name, reason in ENFORCED.items():
            forgery = FORGERIES[name]
            forged = outward(forgery.forged(sender, peer))
            honest = outward(forgery.honest(sender, peer))
            before = held.drops().get(reason, 0)
            assert reached(wire, sender, forged, honest) == [honest], name
            assert held.drops().get(reason, 0) == before + 1, name
    assert "netdev sessionvirt" not in host.tables()

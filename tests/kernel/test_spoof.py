# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest forges is dropped and counted; the honest twin of each forgery arrives (attack 40).

Two guests of one user: what one sends honestly the other gets. After every forgery an honest frame
with a number of its own is sent, so that "it did not arrive" needs no waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import frames
from lab.client import network_tap
from lab.forgeries import FORGERIES, LONE_FRAGMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client, Lease
    from lab.tap import Tap

pytestmark = pytest.mark.kernel

SENDER, PEER = "52:54:00:00:40:01", "52:54:00:00:40:02"


@pytest.fixture(scope="module")
def pair(lasting_broker: Broker, alices: Client) -> Iterator[tuple[Lease, Tap, Tap]]:
    """A lease with the sender, the sender's TAP, and the peer's."""
    with (
        alices.acquire(network_tap(mac=SENDER), vm="sender") as sender,
        alices.acquire(network_tap(mac=PEER), vm="peer") as peer,
    ):
        yield sender, sender.tap, peer.tap


@pytest.mark.parametrize(
    ("bridge_nf", "name"),
    [(False, name) for name in FORGERIES]
    + [(True, name) for name in FORGERIES if name not in LONE_FRAGMENTS],
    indirect=["bridge_nf"],
)
@pytest.mark.usefixtures("bridge_nf")
def test_d40_forged_is_dropped_and_counted(name: str, pair: tuple[Lease, Tap, Tap]) -> None:
    lease, sender, peer = pair
    forgery = FORGERIES[name]
    forged, honest = forgery.forged(sender, peer), forgery.honest(sender, peer)
    assert sender.reaches(peer, honest)
    before = lease.drops()
    assert not sender.reaches(peer, forged, forged, forged)
    after = lease.drops()
    counted = {key: after[key] - before.get(key, 0) for key in after}
    assert {key: value for key, value in counted.items() if value} == {forgery.reason: 3}
    assert sender.reaches(peer, honest)


@pytest.mark.parametrize("bridge_nf", [False], indirect=True)
@pytest.mark.usefixtures("bridge_nf")
@pytest.mark.parametrize("data", [b"\0\x43\0\x44", b"\x02\x23\x02\x22", b"\x86\0\0\0"])
def test_d40_the_rest_of_a_packet_is_not_read_as_its_beginning(
    data: bytes, pair: tuple[Lease, Tap, Tap]
) -> None:
    """Only the first fragment has ports; nft on Linux 6.18 finds some in all of IPv4's."""
    _, a, b = pair
    data += bytes(20)
    assert a.reaches(b, a.to4(b.mac, b.ipv4, frames.UDP, data, offset=1480))
    for protocol in (frames.UDP, frames.ICMP6):
        rest = frames.fragment6(protocol, 1448, more=False) + data
        assert a.reaches(b, a.to6(b.mac, a.ipv6, b.ipv6, frames.FRAGMENT, rest))
    # A header that is not the last may be in the rest, too.
    rest = frames.fragment6(frames.DESTINATION_OPTIONS, 1448, more=False) + data
    assert a.reaches(b, a.to6(b.mac, a.ipv6, b.ipv6, frames.FRAGMENT, rest))

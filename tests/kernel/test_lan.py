# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bridges of the LAN: what is refused and how, what becomes of a bridge under a guest, frames.

The kernel here has no VLANs on bridges; with them, ``host/inside/test_lan.py`` goes on.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from lab import frames, host
from lab.client import network_tap
from lab.forgeries import FORGERIES
from lab.lan import LanHost, lan_bridge, lan_host
from lab.links import wait_for_link
from lab.onlan import refusal, with_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbus_fast import Variant

    from lab.broker import Broker
    from lab.client import Client, Lease

pytestmark = pytest.mark.kernel

BRIDGE = "br8"
OFFERED = f"[bridge.{BRIDGE}]\n"
#: IEEE Std 802 - Local Experimental Ethertype 1.
EXPERIMENTAL = 0x88B5
ALICES, BOBS = "52:54:00:00:47:01", "52:54:00:00:47:02"
#: What a guest took for itself; nobody gave it one.
ALICES_IP, BOBS_IP, HOSTS_IP = "192.0.2.11", "192.0.2.12", "192.0.2.99"


def on_lan(mac: str = ALICES, **more: Any) -> tuple[str, dict[str, Variant]]:
    return network_tap("", **{"bridge": BRIDGE, "mac": mac, **more})


@pytest.fixture
def lan(broker: Broker) -> Iterator[None]:
    broker.configure(OFFERED)
    with lan_bridge(BRIDGE):
        yield
        broker.wait_until_idle()


@pytest.fixture
def another(lan: None) -> Iterator[LanHost]:
    """Another host on that LAN."""
    with lan_host(BRIDGE) as found:
        yield found


# What is refused


def test_d39_what_is_not_offered_is_not_told_apart(broker: Broker, alices: Client) -> None:
    broker.configure("[bridge.br9]\n")
    with lan_bridge(BRIDGE):
        names = (BRIDGE, "absent0", "lo", "br")  # the last begins what is offered
        said = {name: refusal(alices, on_lan(bridge=name)) for name in names}
    assert {error.name for error in said.values()} == {"NotFound"}
    texts = {error.text.replace(f": {name} ", ": X ") for name, error in said.items()}
    assert texts == {"bridge: X is not a bridge that broker.toml offers"}


def test_of_what_is_offered_is_said_what_is_wrong_with_it(broker: Broker, alices: Client) -> None:
    broker.configure("".join(f"[bridge.{name}]\n" for name in ("absent0", "lo", "ve0", "tap0")))
    host.ip("link", "add", "ve0", "type", "veth", "peer", "name", "ve1")
    host.ip("tuntap", "add", "tap0", "mode", "tap")
    try:
        for name, error, word in (
            ("absent0", "NotFound", "this host has no such interface"),
            ("lo", "NotSupported", "an ordinary interface"),
            ("ve0", "NotSupported", "veth"),
            ("tap0", "NotSupported", "TAP device"),
        ):
            said = refusal(alices, on_lan(bridge=name))
            assert (said.name, name in said.text, word in said.text) == (error, True, True)
    finally:
        host.ip("link", "delete", "ve0")
        host.ip("link", "delete", "tap0")


def test_an_alternative_name_is_not_the_name(broker: Broker, alices: Client, lan: None) -> None:
    broker.configure("[bridge.lan0]\n")
    host.ip("link", "property", "add", "dev", BRIDGE, "altname", "lan0")
    said = refusal(alices, on_lan(bridge="lan0"))
    assert (said.name, f"another name of {BRIDGE}" in said.text) == ("NotFound", True)


@pytest.mark.parametrize(
    ("more", "error", "word"),
    [
        ({"vlan": 42}, "NotSupported", "does not filter VLANs"),
        ({"vlan": 43}, "NotFound", "does not offer VLAN 43 on br8"),
        ({"vlan": 4095}, "InvalidArgs", "from 1 to 4094"),
        ({"vlan": 0}, "InvalidArgs", "from 1 to 4094"),
        ({"vlan": "42"}, "InvalidArgs", "type u"),
        ({"vlan": 42, "bridge": "br9"}, "NotFound", "br9 is not a bridge that"),
        ({"queues": 257}, "InvalidArgs", "from 1 to 256"),
        ({"queues": 256}, "LimitsExceeded", "fds_per_call: 16"),
        ({"mac": "01:00:5e:00:00:01"}, "InvalidArgs", "unicast"),
        ({"mac": "02:00:00:00:00:01"}, "Busy", "in use on br8"),
        ({"mac": "02:00:00:00:00:88"}, "Busy", "in use on br8"),
        ({"mac": "02:00:00:00:00:99"}, "Busy", "in use on br8"),
    ],
    ids=str,
)
def test_each_fault_is_named_and_nothing_is_half_done(
    more: dict[str, Any], error: str, word: str, broker: Broker, alices: Client, another: LanHost
) -> None:
    """The last three addresses: the bridge's own, its port's, and that of a host on the LAN."""
    broker.configure(
        f'{OFFERED}vlans = ["40-42"]\n[limits]\nqueues_per_tap = 256\nqueues_per_user = 4096\n'
    )
    host.ip("link", "set", "lanp0", "address", "02:00:00:00:00:88")
    with alices.acquire(on_lan(BOBS)) as lease:
        # The bridge learns who is there, and forwards.
        another.send(frames.ethernet(BOBS, another.mac, EXPERIMENTAL, bytes(46)))
        lease.tap.until(lambda p: p.source_mac == another.mac)
        fdb = host.fdb(BRIDGE)
        said = refusal(alices, on_lan(**more))
        assert (said.name, word in said.text) == (error, True), said
        assert host.fdb(BRIDGE) == fdb
        assert len(host.elements("bridge", "macs")) == 1


def test_a_vlan_is_not_of_a_network(broker: Broker, alices: Client) -> None:
    assert refusal(alices, network_tap(vlan=42)).name == "InvalidArgs"


def test_a_bridge_that_is_full_is_named(broker: Broker, alices: Client, lan: None) -> None:
    """A bridge of the kernel has 1023 ports."""
    names = [f"full{number}" for number in range(1023)]

    def batch(*lines: str) -> None:
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)

    batch(*(f"tuntap add {name} mode tap" for name in names))
    try:
        batch(*(f"link set {name} master {BRIDGE}" for name in names))
        said = refusal(alices, on_lan())
        assert (said.name, "as many ports" in said.text) == ("LimitsExceeded", True)
        batch(f"link set {names[-1]} nomaster")
        with alices.acquire(on_lan()) as lease:
            assert lease.listed()
    finally:
        batch(*(f"link delete {name}" for name in names))


def test_the_sixty_fifth_interface_of_a_user_is_refused(
    broker: Broker, alices: Client, bobs: Client, lan: None
) -> None:
    macs = [f"52:54:00:00:48:{number:02x}" for number in range(65)]
    leases = [
        alices.acquire(*map(on_lan, macs[first : first + 8]), vm=f"vm{first}")
        for first in range(0, 64, 8)
    ]
    try:
        said = refusal(alices, on_lan(macs[64]))
        assert (said.name, said.text) == ("LimitsExceeded", "taps_per_user: 64")
        with bobs.acquire(on_lan(macs[64])) as his:
            assert his.listed()
    finally:
        for lease in leases:
            lease.release()
            lease.close()


# What becomes of a bridge under a guest


def gone(lease: Lease) -> None:
    """Wait for the broker to have ended a lease."""
    wait_for_link(lease.tap.ifname, present=False)
    lease.client.settle()
    with pytest.raises(KeyError):
        lease.listed()


@pytest.mark.parametrize(
    "deed",
    [
        ["link delete {bridge}"],
        ["link delete {bridge}", "link add {bridge} address 02:00:00:00:00:01 type bridge"],
        [
            "link delete {bridge}",
            "link add {bridge} address 02:00:00:00:00:01 type bridge",
            "link set {tap} master {bridge}",
        ],
        ["link set {tap} nomaster", "link set {tap} master {bridge}"],
    ],
    ids=["removed", "made again", "made again with the TAP", "put back"],
)
def test_d45_a_guest_stays_on_the_bridge_that_it_was_given(
    deed: list[str], broker: Broker, alices: Client, lan: None
) -> None:
    """In one batch, so that the broker looks when all is done, or in the middle."""
    with alices.acquire(on_lan()) as lease:
        lines = "\n".join(line.format(bridge=BRIDGE, tap=lease.tap.ifname) for line in deed)
        # The broker may have ended it before the last line.
        subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=False)
        gone(lease)
        assert host.ours() == []


def test_d45_a_bridge_of_another_name_is_the_same(
    broker: Broker, alices: Client, lan: None
) -> None:
    with alices.acquire(on_lan()) as lease:
        host.ip("link", "set", BRIDGE, "down")
        host.ip("link", "set", BRIDGE, "name", "br9")
        try:
            host.ip("link", "set", lease.tap.ifname, "txqueuelen", "500")  # has it looked at
            lease.client.settle()
            broker.restart()
            assert lease.listed()
        finally:
            host.ip("link", "set", "br9", "name", BRIDGE)


def test_d45_the_same_is_seen_by_the_next_broker(broker: Broker, alices: Client, lan: None) -> None:
    with alices.acquire(on_lan()) as lease, alices.acquire(on_lan(BOBS), vm="other") as other:
        broker.kill()
        name = lease.tap.ifname
        subprocess.run(
            ["ip", "-batch", "-"],
            input=f"link set {name} nomaster\nlink set {name} master {BRIDGE}\n",
            text=True,
            check=True,
        )
        broker.start()
        gone(lease)
        assert other.listed()["grants"].value[0]["bridge"].value == BRIDGE


# Frames


def test_a_guest_is_a_host_of_the_lan(alices: Client, bobs: Client, another: LanHost) -> None:
    with alices.acquire(on_lan()) as hers, bobs.acquire(on_lan(BOBS)) as his:
        alice, bob = with_address(hers.tap, ALICES_IP), with_address(his.tap, BOBS_IP)
        # Out: as it was sent.
        asks = frames.arp(1, alice.mac, alice.ipv4, HOSTS_IP)
        alice.send(asks)
        assert another.until(lambda p: p.ethertype == frames.ARP)[-1].frame.startswith(asks)
        # In: what is for it, and what is for all.
        answers = frames.arp(2, another.mac, HOSTS_IP, alice.ipv4, target=alice.mac)
        broadcast = frames.arp(1, another.mac, HOSTS_IP, "192.0.2.50")
        another.send(answers, broadcast)
        seen = alice.until(lambda p: p.target == "192.0.2.50")
        assert (another.mac, 2) in [(p.source_mac, p.kind) for p in seen]
        # bob's guest gets what is for all, and not what is hers.
        seen = bob.until(lambda p: p.target == "192.0.2.50")
        assert 2 not in [p.kind for p in seen]
        # Two users' guests are apart; each with the LAN is not.
        alice.send(
            alice.udp4(bob.mac, bob.ipv4, (1, 1), b"to bob"),
            alice.udp4(another.mac, HOSTS_IP, (2, 2), b"to the host"),
        )
        another.until(lambda p: p.payload == b"to the host")
        another.send(frames.ethernet(bob.mac, another.mac, EXPERIMENTAL, b"the end" + bytes(60)))
        seen = bob.until(lambda p: b"the end" in p.frame)
        assert not [p for p in seen if p.payload == b"to bob"]
        assert hers.drops() == {"peer": 2}  # with the question to all


def test_a_jumbo_frame_and_the_mtu_are_those_of_the_bridge(
    broker: Broker, alices: Client, lan: None
) -> None:
    with lan_host(BRIDGE, mtu=9000) as far:
        assert host.link(BRIDGE)["mtu"] == 9000  # nobody set it, so it is that of its only port
        with alices.acquire(on_lan()) as lease:
            tap = with_address(lease.tap, ALICES_IP)
            assert (tap.facts["mtu"], host.link(tap.ifname)["mtu"]) == (9000, 9000)
            assert host.link(BRIDGE)["mtu"] == 9000
            jumbo = tap.udp4(far.mac, HOSTS_IP, (3, 3), bytes(8900))
            tap.send(jumbo)
            assert far.until(lambda p: p.ports == (3, 3))[-1].frame == jumbo


#: Of whom nobody gave an address, none is enforced; the rest is.
ENFORCED = [
    name
    for name, forgery in FORGERIES.items()
    if forgery.reason not in ("ipv4", "ipv6", "neighbour") and not name.startswith("arp-")
]


@pytest.mark.parametrize("bridge_nf", [False], indirect=True)
@pytest.mark.parametrize("name", [*ENFORCED, "arp-hardware"])
@pytest.mark.usefixtures("bridge_nf")
def test_d40_a_forgery_does_not_reach_the_lan(name: str, alices: Client, another: LanHost) -> None:
    with alices.acquire(on_lan(), on_lan(BOBS)) as lease:
        sender, peer = lease.taps
        with_address(sender, ALICES_IP), with_address(peer, BOBS_IP)
        forgery = FORGERIES[name]
        forged, honest = forgery.forged(sender, peer), forgery.honest(sender, peer)
        # The bridge has to ask every port, the cable's, too: nobody answers for it here.
        elsewhere = frames.mac_bytes("52:54:00:00:47:77")

        def outward(frame: bytes) -> bytes:
            group = frame[0] & 1
            return frame if group else elsewhere + frame[6:]

        end = sender.udp4("52:54:00:00:47:77", HOSTS_IP, (9, 9), b"the end")
        sender.send(outward(forged), outward(honest), end)
        seen = [p.frame for p in another.until(lambda p: p.payload == b"the end")]
        assert outward(honest) in seen
        assert outward(forged) not in seen
        assert lease.drops() == {forgery.reason: 1}

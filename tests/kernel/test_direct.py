# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest on an interface of the host's by macvtap: what is refused and how, frames, its end."""

from __future__ import annotations

import itertools
import os
import signal
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab import frames, host
from lab.broker import COMMAND, RUNTIME
from lab.client import RefusalError, direct, network_tap
from lab.direct import OTHERS, wired
from lab.elsewhere import Elsewhere
from lab.flushing import flush_until_given_up
from lab.forgeries import FORGERIES
from lab.lan import lan_bridge
from lab.links import wait_for_link
from lab.onlan import refusal, with_address
from lab.tap import as_user
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbus_fast import Variant

    from lab.broker import Broker
    from lab.client import Client, Lease
    from lab.lan import LanHost

pytestmark = pytest.mark.kernel

DEVICE = "wire0"
OFFERED = f"[direct.{DEVICE}]\n"
ALICES, BOBS = "52:54:00:00:49:01", "52:54:00:00:49:02"
ALICES_IP, BOBS_IP, OTHERS_IP = "192.0.2.11", "192.0.2.12", "192.0.2.97"
DYING = Path(host.__file__).with_name("dying_broker.py")


def on_wire(mac: str = ALICES, **more: Any) -> tuple[str, dict[str, Variant]]:
    return direct(**{"device": DEVICE, "mac": mac, **more})


@pytest.fixture
def wire(broker: Broker) -> Iterator[LanHost]:
    """The other host at the end of the wire."""
    broker.configure(OFFERED)
    with wired(DEVICE) as other:
        yield other
        broker.wait_until_idle()
    assert "netdev sessionvirt" not in host.tables()


def base_chains() -> str:
    return host.nft("list", "table", "netdev", "sessionvirt")


# What is refused


def test_what_is_not_offered_is_not_told_apart(broker: Broker, alices: Client) -> None:
    broker.configure("[direct.wire9]\n")
    with wired(DEVICE):
        said = {name: refusal(alices, on_wire(device=name)) for name in (DEVICE, "absent0", "lo")}
    assert {error.name for error in said.values()} == {"NotFound"}
    texts = {error.text.replace(f": {name} ", ": X ") for name, error in said.items()}
    assert texts == {"device: X is not an interface that broker.toml offers directly"}


def test_of_what_is_offered_is_said_what_is_wrong_with_it(broker: Broker, alices: Client) -> None:
    names = ("absent0", "lo", "br8", "tap0", "port0", DEVICE)
    broker.configure("".join(f"[direct.{name}]\n" for name in names))
    host.ip("tuntap", "add", "tap0", "mode", "tap")
    try:
        with wired(DEVICE), wired("port0", mac="02:00:00:00:00:08"), lan_bridge("br8"):
            host.ip("link", "set", "port0", "master", "br8")
            host.ip("link", "set", DEVICE, "down")
            for name, error, word in (
                ("absent0", "NotFound", "this host has no such interface"),
                ("lo", "NotSupported", "no Ethernet interface"),
                ("br8", "NotSupported", "is a bridge"),
                ("tap0", "NotSupported", "no Ethernet interface"),
                ("port0", "NotSupported", "is a port of a bridge"),
                (DEVICE, "NotSupported", "is down"),
            ):
                said = refusal(alices, on_wire(device=name))
                assert (said.name, name in said.text, word in said.text) == (error, True, True)
    finally:
        host.ip("link", "delete", "tap0")


@pytest.mark.parametrize(
    ("more", "error", "word"),
    [
        ({"mode": "passthrough"}, "InvalidArgs", "passthrough would take the interface"),
        ({"mode": "Bridge"}, "InvalidArgs", 'must be "bridge"'),
        ({"mode": "vepa"}, "NotFound", "does not offer the mode vepa"),
        ({"device": "../wire0"}, "InvalidArgs", "not the name of an interface"),
        ({"device": "wire0-and-longer"}, "InvalidArgs", "not the name of an interface"),
        ({"bridge": "br8"}, "InvalidArgs", "bridge is not known here"),
        ({"queues": 9}, "InvalidArgs", "from 1 to 8"),
        ({"mac": "01:00:5e:00:00:01"}, "InvalidArgs", "unicast"),
        ({"mac": "5a:00:00:00:00:01"}, "InvalidArgs", "derives"),
        ({"mac": BOBS}, "Busy", "in use on wire0"),
        ({"mac": "02:00:00:00:00:07"}, "Busy", "in use on wire0"),
        ({"mac": "02:00:00:00:00:66"}, "Busy", "in use on wire0"),
    ],
    ids=str,
)
def test_each_fault_is_named_and_nothing_is_half_done(
    more: dict[str, Any], error: str, word: str, broker: Broker, alices: Client, wire: LanHost
) -> None:
    """The last three addresses: another guest's, the interface's own, a foreign macvlan's."""
    broker.configure(f'{OFFERED}modes = ["bridge", "private"]\n')
    foreign = ("add", "theirs", "link", DEVICE, "address", "02:00:00:00:00:66")
    host.ip("link", *foreign, "type", "macvlan", "mode", "bridge")
    host.ip("link", "set", "theirs", "up")
    with alices.acquire(on_wire(BOBS)) as lease:
        said = refusal(alices, on_wire(**more))
        assert (said.name, word in said.text) == (error, True), said
        assert host.elements("netdev", "macs") == [{"concat": [lease.tap.ifname, BOBS]}]
        assert base_chains().count("hook egress") == 1


def test_an_address_is_one_guests_on_every_lan(
    broker: Broker, alices: Client, wire: LanHost
) -> None:
    broker.configure(f"{OFFERED}[bridge.br8]\n")
    bridged = network_tap("", bridge="br8", mac=ALICES)
    with lan_bridge("br8"):
        for first, second in ((bridged, on_wire()), (on_wire(), bridged), (on_wire(), on_wire())):
            with alices.acquire(first):
                assert refusal(alices, second).name == "Busy"
        assert refusal(alices, on_wire(), on_wire()).name == "Busy"


def test_a_node_of_another_network_namespace_is_not_given(
    broker: Broker, alices: Client, wire: LanHost
) -> None:
    """/dev/tapN is found by an ifindex, of which each namespace has its own."""
    with Elsewhere() as container, alices.acquire(on_wire()) as lease:
        container.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"])
        assert lease.tap.ifindex >= 1 << 24
        node = Path(f"/dev/tap{lease.tap.ifindex}")
        # The same number there: it gets no node, and ours stays ours.
        number = str(lease.tap.ifindex)
        foreign = ["ip", "link", "add", "m0", "index", number, "link", "v0", "type", "macvtap"]
        container.run(foreign)
        opened, found = os.fstat(lease.tap.fds[0]).st_rdev, node.stat()
        assert (opened, stat.S_IMODE(found.st_mode)) == (found.st_rdev, 0o600)


# Frames


@pytest.mark.parametrize("queues", [1, 4])
def test_a_guest_is_a_host_of_the_lan(queues: int, alices: Client, wire: LanHost) -> None:
    with alices.acquire(on_wire(queues=queues)) as lease:
        alice = with_address(lease.tap, ALICES_IP)
        assert len(alice.fds) == queues
        assert host.link(alice.ifname)["linkinfo"]["info_data"]["mode"] == "bridge"
        # Out: as it was sent.
        asks = frames.arp(1, alice.mac, alice.ipv4, OTHERS_IP)
        alice.send(asks)
        assert wire.until(lambda p: p.ethertype == frames.ARP)[-1].frame.startswith(asks)
        # In: what is for it, for all, and for a group that only the guest knows of.
        answers = frames.arp(2, OTHERS, OTHERS_IP, alice.ipv4, target=alice.mac)
        group = frames.multicast_mac(frames.solicited_node(alice.ipv6))
        to_group = frames.ethernet(group, OTHERS, frames.IPV6, bytes(46))
        strangers = frames.arp(2, OTHERS, OTHERS_IP, "192.0.2.50", target=BOBS)
        broadcast = frames.arp(1, OTHERS, OTHERS_IP, "192.0.2.50")
        wire.send(answers, to_group, strangers, broadcast)
        # The kernel hands on what is for several a moment later, and to any queue.
        wanted = {frames.mac_bytes(mac) for mac in (alice.mac, group, "ff:ff:ff:ff:ff:ff")}
        got: set[bytes] = set()

        def all_of_them(packet: frames.Packet) -> bool:
            got.add(packet.frame[:6])
            return wanted <= got

        alice.until(all_of_them)
        assert frames.mac_bytes(BOBS) not in got
        assert lease.drops() == {}


def test_modes_are_what_guests_see_of_each_other(
    alices: Client, bobs: Client, wire: LanHost
) -> None:
    for mode, together in (("bridge", True), ("private", False), ("vepa", False)):
        with (
            alices.acquire(on_wire(mode=mode)) as hers,
            bobs.acquire(on_wire(BOBS, mode=mode)) as his,
        ):
            alice, bob = with_address(hers.tap, ALICES_IP), with_address(his.tap, BOBS_IP)
            assert hers.tap.facts["mode"] == mode
            alice.send(alice.udp4(bob.mac, bob.ipv4, (1, 1), b"to bob"))
            end = frames.ethernet(bob.mac, OTHERS, frames.IPV4, b"the end" + bytes(60))
            if not together:  # it went out on the wire, and nobody there turns it round
                wire.until(lambda p: p.payload == b"to bob")
            wire.send(end)
            seen = bob.until(lambda p: b"the end" in p.frame)
            assert bool([p for p in seen if p.payload == b"to bob"]) is together, mode


def test_the_mtu_is_that_of_the_interface(broker: Broker, alices: Client) -> None:
    broker.configure(OFFERED)
    with wired(DEVICE, mtu=9000) as other:
        with alices.acquire(on_wire()) as lease:
            tap = with_address(lease.tap, ALICES_IP)
            assert (tap.facts["mtu"], host.link(tap.ifname)["mtu"]) == (9000, 9000)
            jumbo = tap.udp4(OTHERS, OTHERS_IP, (3, 3), bytes(8900))
            tap.send(jumbo)
            assert other.until(lambda p: p.ports == (3, 3))[-1].frame == jumbo
        broker.wait_until_idle()


#: Of whom nobody gave an address, none is enforced; the rest is. A length beyond the packet hides
#: nothing here: nft does not compare it, and judges what is there.
ENFORCED = {
    name: forgery.reason
    for name, forgery in FORGERIES.items()
    if forgery.reason not in ("ipv4", "ipv6", "neighbour") and not name.startswith("arp-")
} | {"arp-hardware": "arp", "router-split-before-its-header": "ipv6"}


@pytest.mark.parametrize("name", ENFORCED)
def test_a_forgery_does_not_reach_the_wire(name: str, alices: Client, wire: LanHost) -> None:
    with alices.acquire(on_wire(), on_wire(BOBS)) as lease:
        sender, peer = lease.taps
        with_address(sender, ALICES_IP), with_address(peer, BOBS_IP)
        forgery = FORGERIES[name]
        forged, honest = forgery.forged(sender, peer), forgery.honest(sender, peer)
        elsewhere = frames.mac_bytes(OTHERS)

        def outward(frame: bytes) -> bytes:
            return frame if frame[0] & 1 else elsewhere + frame[6:]

        end = sender.udp4(OTHERS, OTHERS_IP, (9, 9), b"the end")
        sender.send(outward(forged), outward(honest), end)
        seen = [p.frame for p in wire.until(lambda p: p.payload == b"the end")]
        assert outward(honest) in seen
        assert outward(forged) not in seen
        assert lease.drops() == {ENFORCED[name]: 1}
        # Nor another guest, which the kernel hands it to without the wire.
        between = frames.mac_bytes(peer.mac)
        sender.send(*(frame if frame[0] & 1 else between + frame[6:] for frame in (forged, honest)))
        sender.send(sender.udp4(peer.mac, peer.ipv4, (9, 9), b"the end"))
        got = [p.frame for p in peer.until(lambda p: p.payload == b"the end")]
        assert (len(got) >= 2, lease.drops()) == (True, {ENFORCED[name]: 2})


# Its end


def gone(lease: Lease) -> None:
    wait_for_link(lease.tap.ifname, present=False)
    lease.client.settle()
    with pytest.raises(KeyError):
        lease.listed()
    assert lease.tap.ifname not in host.nft("list", "ruleset")
    assert not (RUNTIME / "records" / f"lease-{lease.id}.json").exists()
    assert not Path(f"/dev/tap{lease.tap.ifindex}").exists()


CHANGE_MAC = """
request = struct.pack("16sH6s16x", b"any", 1, bytes.fromhex("525400004999"))
fcntl.ioctl(fd, 0x8924, request)  # SIOCSIFHWADDR
"""


def test_a_holder_who_changes_the_address_loses_the_lease(alices: Client, wire: LanHost) -> None:
    with alices.acquire(on_wire()) as lease:
        tap = with_address(lease.tap, ALICES_IP)
        as_user(User.named("alice"), tap.fds[0], CHANGE_MAC)
        gone(lease)
        # The descriptor is his still, and leads nowhere.
        tap.send(tap.udp4(OTHERS, OTHERS_IP, (5, 5)))
        with alices.acquire(on_wire(BOBS)) as next_one:
            last = with_address(next_one.tap, BOBS_IP)
            last.send(last.udp4(OTHERS, OTHERS_IP, (6, 6)))
            seen = wire.until(lambda p: p.ports == (6, 6))
        assert (5, 5) not in [p.ports for p in seen]


@pytest.mark.parametrize("how", ["hold", "release", "wire", "renamed"])
def test_nothing_is_left_when_it_ends(how: str, alices: Client, wire: LanHost) -> None:
    with alices.acquire(on_wire()) as lease:
        if how == "hold":
            lease.let_go()
        elif how == "release":
            lease.release()
        elif how == "wire":
            host.ip("link", "delete", DEVICE)
        else:
            host.ip("link", "set", lease.tap.ifname, "down")
            host.ip("link", "set", lease.tap.ifname, "name", "theirs0")
        gone(lease)
        assert host.ours() == []
        assert not host.link("theirs0")


def test_a_closed_descriptor_is_not_the_end(alices: Client, wire: LanHost) -> None:
    with alices.acquire(on_wire()) as lease:
        lease.tap.close()
        alices.settle()
        assert lease.listed()["grants"].value[0]["device"].value == DEVICE


def test_another_broker_goes_on_with_it(broker: Broker, alices: Client, wire: LanHost) -> None:
    with alices.acquire(on_wire()) as lease, alices.acquire(on_wire(BOBS), vm="b") as other:
        sender, peer = with_address(lease.tap, ALICES_IP), with_address(other.tap, BOBS_IP)
        broker.kill()
        host.nft("flush", "ruleset")
        broker.start()
        assert {one["vm"].value for one in alices.leases()} == {"vm", "b"}
        assert base_chains().count("hook egress") == 2
        broker.restart()
        assert base_chains().count("hook egress") == 2
        forged = FORGERIES["mac"].forged(sender, peer)
        sender.send(forged, sender.udp4(peer.mac, peer.ipv4, (9, 9), b"the end"))
        seen = peer.until(lambda p: p.payload == b"the end")
        assert forged not in [p.frame for p in seen]
        assert lease.drops() == {"mac": 1}
        # The address is his, also to the next broker.
        assert refusal(alices, on_wire(BOBS)).name == "Busy"


@pytest.mark.parametrize("following", [on_wire(BOBS), network_tap()], ids=["macvtap", "TAP"])
def test_rules_that_somebody_flushed_come_back_with_the_next_guest(
    following: tuple[str, dict[str, Variant]], alices: Client, wire: LanHost
) -> None:
    with alices.acquire(on_wire()) as lease:
        flush_until_given_up(alices)
        with alices.acquire(following, vm="b") as other:
            sender = with_address(lease.tap, ALICES_IP)
            sender.send(FORGERIES["mac"].forged(sender, with_address(other.tap, BOBS_IP)))
            assert lease.drops() == {"mac": 1}


def test_a_foreign_table_of_our_name_is_not_touched(alices: Client, wire: LanHost) -> None:
    host.nft("add", "table", "netdev", "sessionvirt")
    try:
        assert refusal(alices, on_wire()).name == "Failed"
        assert "netdev sessionvirt" in host.tables()
    finally:
        host.nft("delete", "table", "netdev", "sessionvirt")


def test_killed_in_every_state_of_acquire_and_release(
    broker: Broker, alices: Client, wire: LanHost
) -> None:
    for number in itertools.count():
        broker.stop()
        broker.daemon.argv = ["/usr/bin/python3", "-I", str(DYING), str(number), "acquire"]
        broker.start()
        broker.daemon.argv = COMMAND
        lease, died = None, False
        try:
            lease = alices.acquire(on_wire())
            lease.release()
        except RefusalError as refused:
            assert refused.name == "NoReply"  # noqa: PT017  (no refusal is as good)
            assert broker.daemon.wait(5) == -signal.SIGKILL
            died = True
        if lease is not None:
            lease.close()
        if died:
            broker.start()
        broker.wait_until_idle()
        assert nothing() == [], number
        if not died:
            break
    assert number > 12


def nothing() -> list[str]:
    """What is left without leases."""
    records = [path.name for path in (RUNTIME / "records").iterdir() if path.is_file()]
    tables = [name for name in host.tables() if "sessionvirt" in name]
    return [*host.ours(), *records, *tables, *(path.name for path in (RUNTIME / "holds").iterdir())]

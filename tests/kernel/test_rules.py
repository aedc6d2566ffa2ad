# SPDX-License-Identifier: LGPL-2.1-or-later
"""The nft tables among other people's: flushed, foreign, shared by leases; and LAN bridges."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.client import RefusalError, network_tap
from lab.flushing import flush_until_given_up
from lab.lan import lan_bridge
from lab.tap import HEADER
from sessionvirt_broker.tun import create

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbus_fast import Variant

    from lab.broker import Broker
    from lab.client import Client

pytestmark = pytest.mark.kernel

GATEWAY = "10.213.80.1"
SETS = ("macs", "addresses4", "addresses6", "targets", "peers", "group_peers", "dropped_mac")


def everything() -> dict[str, list[str]]:
    return {name: sorted(map(str, host.elements("bridge", name))) for name in SETS}


def test_f66_a_release_takes_its_own_elements_only(
    broker: Broker, alices: Client, bobs: Client
) -> None:
    with alices.acquire() as one:
        alone = everything()
        networks = host.elements("inet", "networks4")
        with bobs.acquire():
            assert len(host.elements("bridge", "macs")) == 2
        assert everything() == alone
        assert host.elements("inet", "networks4") == networks
        assert one.tap.ask_arp(GATEWAY)


@pytest.mark.parametrize("repair", ["acquire", "restart"])
def test_f63_a_flushed_ruleset_is_put_back(
    repair: str, broker: Broker, alices: Client, bobs: Client
) -> None:
    """By the next Acquire, where the broker does not put it back by itself any more."""
    with alices.acquire() as lease:
        before = everything()
        if repair == "acquire":
            flush_until_given_up(alices)
            # Nothing filters now: the administrator wanted it so. It is told.
            assert alices.diagnose()["nft_tables"] == "absent"
            bobs.acquire().__exit__(None, None, None)
        else:
            broker.kill()
            host.nft("flush", "ruleset")
            broker.start()
        assert alices.diagnose()["nft_tables"] == "present"
        assert everything() == before
        gateway = lease.tap.ask_arp(GATEWAY)
        frame = lease.tap.echo4(gateway, GATEWAY, 5)
        lease.tap.send(frame[:6] + frames.mac_bytes("52:54:00:00:00:66") + frame[12:])
        assert lease.drops() == {"mac": 1}


def test_f63_a_tap_in_no_set_is_cut_off(broker: Broker, alices: Client) -> None:
    with alices.acquire() as lease:
        assert lease.tap.ask_arp(GATEWAY)
        broker.kill()  # it would put them back
        for name in ("macs", "addresses4"):
            host.nft("flush", "set", "bridge", "sessionvirt", name)
        lease.tap.send(frames.arp(1, lease.tap.mac, lease.tap.ipv4, GATEWAY))
        assert lease.tap.silent(lambda p: p.kind == 2)
        broker.start()


def test_f63_a_tap_without_an_owner_is_not_taken_for_roots(broker: Broker, alices: Client) -> None:
    """A frame has mark 0 before anybody sets it, which is root's uid."""
    with alices.acquire(network_tap(), network_tap()) as lease:
        one, two = lease.taps
        sent = [
            one.udp4(mac, two.ipv4, (4000, 4001), b"mark") for mac in (two.mac, frames.BROADCAST)
        ]
        assert all(one.reaches(two, frame) for frame in sent)
        before = lease.drops().get("peer", 0)
        broker.kill()
        host.nft("flush", "map", "bridge", "sessionvirt", "owners")
        for name, key in (("peers", f"{two.ifname} . {two.mac} . 0"),
                          ("group_peers", f"{two.ifname} . 0")):  # fmt: skip
            host.nft("add", "element", "bridge", "sessionvirt", name, f"{{ {key} }}")
        one.send(*sent)
        assert not [p for p in two.waiting() if p.payload == b"mark"]
        broker.start()
        assert lease.drops()["peer"] == before + len(sent)


def test_d43_what_comes_by_the_uplink_for_another_is_not_a_guests(
    broker: Broker, alices: Client
) -> None:
    """A LAN bridge asks all ports for an address that it does not know."""
    broker.configure("[bridge.br8]\n")
    mac, elsewhere = "00:00:00:00:08:01", "00:00:00:00:08:77"
    with lan_bridge("br8"), alices.acquire(bridge("br8", mac=mac)) as lease, uplink("br8") as send:
        for target, payload in ((elsewhere, b"other"), (frames.BROADCAST, b"all"), (mac, b"own")):
            datagram = frames.udp("192.0.2.1", "192.0.2.2", (4000, 4001), payload)
            packet = frames.ipv4("192.0.2.1", "192.0.2.2", frames.UDP, datagram)
            send(frames.ethernet(target, elsewhere[:-2] + "78", frames.IPV4, packet))
        found = lease.tap.until(lambda p: p.payload == b"own")
        assert [p.payload for p in found if p.payload in (b"other", b"all", b"own")] == [
            b"all",
            b"own",
        ]


@contextmanager
def uplink(name: str) -> Iterator[Callable[[bytes], int]]:
    """What is sent here comes in by a port of the bridge that is no guest's."""
    (descriptor,) = create("uplink0", 1)
    try:
        host.ip("link", "set", "uplink0", "master", name, "up")
        yield lambda frame: os.write(descriptor, HEADER + frame)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("family", ["bridge", "inet"])
def test_f64_a_foreign_table_of_our_name_is_not_touched(
    family: str, broker: Broker, alices: Client
) -> None:
    host.nft("add", "table", family, "sessionvirt")
    host.nft("add", "chain", family, "sessionvirt", "theirs")
    before = host.nft("list", "ruleset")
    try:
        with pytest.raises(RefusalError, match="foreign") as refusal:
            alices.acquire()
        assert refusal.value.name == "Failed"
        assert host.nft("list", "ruleset") == before
        broker.restart()
        assert host.nft("list", "ruleset") == before
        assert alices.diagnose()["nft_tables"] == "foreign"
        assert host.ours() == []
    finally:
        host.nft("delete", "table", family, "sessionvirt")
    with alices.acquire() as lease:
        assert lease.tap.ask_arp(GATEWAY)


def bridge(name: str, **more: str) -> tuple[str, dict[str, Variant]]:
    return network_tap("", bridge=name, **more)


def refused(client: Client, *requests: tuple[str, dict[str, Variant]]) -> RefusalError:
    with pytest.raises(RefusalError) as refusal:
        client.acquire(*requests)
    assert host.ours() == []
    return refusal.value


def test_d39_a_bridge_without_an_address_of_its_own_is_unsafe(
    broker: Broker, alices: Client
) -> None:
    broker.configure("[bridge.br8]\n")
    with lan_bridge("br8", mac=None):
        assert refused(alices, bridge("br8")).name == "DeviceUnsafe"


def test_d43_a_lan_bridge_is_as_it_was(broker: Broker, alices: Client, bobs: Client) -> None:
    broker.configure("[bridge.br8]\n")
    with lan_bridge("br8"):
        host.ip("link", "set", "br8", "type", "bridge", "stp_state", "1")
        before = {key: host.link("br8")[key] for key in ("address", "mtu", "flags")}
        root = Path("/sys/class/net/br8/bridge/root_id").read_text()
        with (
            alices.acquire(bridge("br8", mac="00:00:00:00:08:01")) as lease,
            bobs.acquire(bridge("br8", mac="00:00:00:00:08:02")) as other,
        ):
            tap = lease.tap
            assert (tap.facts["bridge"], tap.facts["ipv4"], tap.facts["ipv6"]) == ("br8", [], [])
            assert host.link("br8")["address"] == before["address"]
            assert host.link("br8")["mtu"] == before["mtu"]
            tap.send(frames.bpdu(tap.mac))
            assert Path("/sys/class/net/br8/bridge/root_id").read_text() == root
            assert refused_mac(alices, "br8", "00:00:00:00:08:02") == "Busy"
            assert refused_mac(alices, "br8", before["address"]) == "Busy"
            assert other.listed()
        assert host.link("br8")["address"] == before["address"]


def refused_mac(client: Client, name: str, mac: str) -> str:
    with pytest.raises(RefusalError) as refusal:
        client.acquire(bridge(name, mac=mac), vm="again")
    return refusal.value.name


def test_a_network_that_overlaps_a_route_of_the_host_is_refused(
    broker: Broker, alices: Client
) -> None:
    host.ip("link", "add", "ovl0", "type", "veth", "peer", "name", "ovl1")
    try:
        host.ip("link", "set", "ovl0", "up")
        host.ip("address", "add", "10.213.90.1/24", "dev", "ovl0")
        error = refused(alices)
        assert error.name == "DeviceUnsafe"
        assert "ovl0" in error.text
    finally:
        host.ip("link", "del", "ovl0")


def test_a_small_network_runs_out_of_addresses(broker: Broker, alices: Client) -> None:
    broker.configure('[network.tiny]\nipv4 = "10.99.0.1/29"\n')
    taps = [network_tap("tiny")] * 5
    with alices.acquire(*taps) as lease:
        assert len({tap.ipv4 for tap in lease.taps}) == 5
        assert "10.99.0.1" not in {tap.ipv4 for tap in lease.taps}
        with pytest.raises(RefusalError, match="no address left") as refusal:
            alices.acquire(network_tap("tiny"), vm="sixth")
        assert refusal.value.name == "Busy"
        lease.drop("tap0")
        with alices.acquire(network_tap("tiny"), vm="sixth"):
            pass
    assert host.ours() == []


@pytest.mark.parametrize(
    ("limit", "first", "second"),
    [
        ("leases_per_user = 1", 1, [network_tap()]),
        ("taps_per_user = 2", 2, [network_tap()]),
        ("queues_per_user = 4", 2, [network_tap(queues=3)]),
        ("leases_total = 1", 1, [network_tap()]),
    ],
    ids=["leases", "taps", "queues", "total"],
)
def test_d41_quotas(
    limit: str,
    first: int,
    second: list[tuple[str, dict[str, Variant]]],
    broker: Broker,
    alices: Client,
) -> None:
    broker.configure(f"[limits]\n{limit}\n")
    with alices.acquire(*[network_tap()] * first):
        before = host.ours()
        with pytest.raises(RefusalError, match=limit.partition(" ")[0]) as refusal:
            alices.acquire(*second, vm="more")
        assert refusal.value.name == "LimitsExceeded"
        assert host.ours() == before
    with alices.acquire(*second, vm="more"):
        pass


def test_d41_nobody_takes_the_address_that_another_vm_will_derive(
    broker: Broker, alices: Client, bobs: Client
) -> None:
    """machine-id is no secret: bob can work out which address alice's VM gets, and squat it."""
    with alices.acquire(vm="hers") as lease:
        derived = lease.tap.mac
    with pytest.raises(RefusalError, match="5a:") as refusal:
        bobs.acquire(network_tap(mac=derived), vm="hers")
    assert refusal.value.name == "InvalidArgs"
    # Who has it may name it, as a definition that was written down does, and at another place.
    with alices.acquire(network_tap(), network_tap(mac="52:54:00:00:00:01"), vm="hers"):
        pass
    with alices.acquire(network_tap(mac=derived), vm="hers") as lease:
        assert lease.tap.mac == derived


def test_d43_one_address_is_not_given_on_two_bridges_of_one_call(
    broker: Broker, alices: Client
) -> None:
    broker.configure("[bridge.br8]\n[bridge.br9]\n")
    with lan_bridge("br8"), lan_bridge("br9", mac="02:00:00:00:00:09"):
        twice = [bridge(name, mac="00:00:00:00:08:01") for name in ("br8", "br9")]
        with pytest.raises(RefusalError) as refusal:
            alices.acquire(*twice)
        assert refusal.value.name == "Busy"
        with alices.acquire(twice[0]):
            pass

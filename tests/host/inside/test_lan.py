# SPDX-License-Identifier: LGPL-2.1-or-later
"""VLANs of a bridge of the LAN, on a kernel whose bridges filter them; and what is no bridge.

Another host is on a cable to the bridge (``lab.lan``), which is a trunk: VLAN 1 without a tag, 42
and 43 with one.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from lab import frames, host
from lab.lan import lan_bridge, lan_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.inside.strangers import Held
    from lab.frames import Packet
    from lab.lan import LanHost
    from lab.rawbus import Client

pytestmark = pytest.mark.host

BRIDGE = "br0"
OFFER = f'[bridge.{BRIDGE}]\nvlans = [1, 42, "43-44"]\n'
IN_42, ALSO_42, IN_43, IN_1 = (f"52:54:00:00:49:0{number}" for number in range(1, 5))
#: IEEE Std 802 - Local Experimental Ethertype 1.
EXPERIMENTAL = 0x88B5


@pytest.fixture
def trunk() -> Iterator[LanHost]:
    """The bridge, offered, and the other host."""
    from host.inside.strangers import configured

    with (
        lan_bridge(BRIDGE, "vlan_filtering", "1"),
        lan_host(BRIDGE) as other,
        configured(OFFER),
    ):
        for vlan in ("42", "43"):
            subprocess.run(["bridge", "vlan", "add", "dev", "lanp0", "vid", vlan], check=True)
        yield other


@pytest.fixture
def client(permission: None) -> Iterator[Client]:
    """user1's."""
    from host.inside.strangers import connection

    with connection("user1") as found:
        yield found


def on(mac: str, vlan: int = 0, bridge: str = BRIDGE) -> tuple[str, dict[str, Any]]:
    """A request for a TAP in a VLAN."""
    from dbus_fast import Variant

    from lab.rawbus import tap

    kind, fields = tap(None, bridge=bridge, mac=mac)
    return kind, {**fields, **({"vlan": Variant("u", vlan)} if vlan else {})}


def refusal(client: Client, request: tuple[str, dict[str, Any]]) -> tuple[str, str]:
    from lab.rawbus import options

    before = host.ours()
    error = client.error("Acquire", [request], options(vm="refused"))
    assert host.ours() == before
    return error.short, error.text


def vlans_of(port: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["bridge", "-json", "vlan", "show", "dev", port], stdout=subprocess.PIPE, check=True
    )
    return [vlan for row in json.loads(done.stdout or b"[]") for vlan in row["vlans"]]


def said(number: int) -> bytes:
    """What marks a frame."""
    return b"frame %04d of the test" % number + bytes(40)


def heard(packets: list[Packet]) -> set[int]:
    """The marks among what has arrived."""
    found = set()
    for packet in packets:
        _, mark, after = packet.frame.partition(b"frame ")
        if mark and after[4:].startswith(b" of the test"):
            found.add(int(after[:4]))
    return found


def tagged(other: LanHost, target: str, vlans: tuple[int, ...], number: int) -> bytes:
    tags = b"".join(frames.tag(vlan) for vlan in vlans)
    return frames.ethernet(target, other.mac, EXPERIMENTAL, said(number), tags)


def test_a_guest_is_in_its_vlan_and_in_no_other(trunk: LanHost, client: Client) -> None:
    from host.inside.strangers import holding

    requests = on(IN_42, 42), on(ALSO_42, 42), on(IN_43, 43), on(IN_1)
    with holding(client, "vlans", *requests) as held:
        the_ports_are_in_one_vlan_each(held)
        what_comes_in_goes_to_its_vlan(held, trunk)
        what_goes_out_is_in_its_vlan(held, trunk)
        guests_of_two_vlans_are_apart(held)
        a_tag_of_a_guest_is_dropped(held, trunk)
        the_next_broker_knows(held)


def the_ports_are_in_one_vlan_each(held: Held) -> None:
    flags = ["PVID", "Egress Untagged"]
    found = [vlans_of(tap.ifname) for tap in held.taps]
    assert found == [[{"vlan": vlan, "flags": flags}] for vlan in (42, 42, 43, 1)]
    assert [tap.facts["vlan"] for tap in held.taps] == [42, 42, 43, 0]
    # Its address is known where it is, so that nobody is asked for it.
    done = subprocess.run(
        ["bridge", "-json", "fdb", "show", "br", BRIDGE], stdout=subprocess.PIPE, check=True
    )
    known = {(row["mac"], row.get("vlan"), row["ifname"]) for row in json.loads(done.stdout)}
    for tap, vlan in zip(held.taps, (42, 42, 43, 1), strict=True):
        assert (tap.mac, vlan, tap.ifname) in known


def what_comes_in_goes_to_its_vlan(held: Held, trunk: LanHost) -> None:
    broadcasts: list[tuple[int, ...]] = [(42,), (43,), (), (44,), (43, 42)]
    for number, vlans in enumerate(broadcasts, 1):
        trunk.send(tagged(trunk, frames.BROADCAST, vlans, number))
    # To an address that the bridge knows in another VLAN, and to one that it does not know.
    trunk.send(tagged(trunk, IN_42, (43,), 6), tagged(trunk, "52:54:00:00:49:77", (42,), 7))
    ends = {}
    own: list[tuple[int, ...]] = [(42,), (42,), (43,), ()]
    for last, (tap, vlans) in enumerate(zip(held.taps, own, strict=True), 100):
        trunk.send(tagged(trunk, tap.mac, vlans, last))
        ends[tap.mac] = tap.until(lambda p: any(mark >= 100 for mark in heard([p])))
    # 5 has a second tag, which is nothing to the bridge; what a guest gets of it has that one.
    wanted = [{1, 100}, {1, 101}, {2, 5, 102}, {3, 103}]
    assert [heard(packets) for packets in ends.values()] == wanted
    plain = [p for p in ends[IN_42] if heard([p]) == {1}]
    assert [p.ethertype for p in plain] == [EXPERIMENTAL]


def what_goes_out_is_in_its_vlan(held: Held, trunk: LanHost) -> None:
    for tap, vlan in zip(held.taps, (42, 42, 43, 1), strict=True):
        asks = frames.arp(1, tap.mac, "0.0.0.0", "192.0.2.99")
        tap.send(asks)
        found = trunk.until(lambda p: p.source_mac.startswith("52:54:"))[-1]
        tag = int.from_bytes(found.frame[14:16]) if found.ethertype == frames.VLAN else 1
        assert (found.source_mac, tag) == (tap.mac, vlan)


def guests_of_two_vlans_are_apart(held: Held) -> None:
    """Of one user, whom the filter lets through: it is the bridge that keeps them apart."""
    sender, near, far, default = held.taps
    for tap in held.taps:
        tap.waiting()
    sender.send(frames.arp(1, sender.mac, "192.0.2.1", "192.0.2.42"))
    near.until(lambda p: p.target == "192.0.2.42")
    for tap in (far, default):
        assert tap.silent(lambda p: p.target == "192.0.2.42")


def a_tag_of_a_guest_is_dropped(held: Held, trunk: LanHost) -> None:
    sender = held.taps[0]
    before = held.drops().get("vlan", 0)
    trunk.waiting()
    for vlans in ((43,), (42,), (0,), (42, 43)):
        tags = b"".join(frames.tag(vlan) for vlan in vlans)
        sender.send(frames.ethernet(frames.BROADCAST, sender.mac, EXPERIMENTAL, said(200), tags))
    sender.send(frames.arp(1, sender.mac, "0.0.0.0", "192.0.2.98"))
    # What the tag hides is parsed by nobody here; the mark is in the bytes.
    seen = trunk.until(lambda p: p.ethertype == frames.VLAN and p.source_mac == sender.mac)
    assert 200 not in heard(seen)
    assert held.drops()["vlan"] == before + 4


def the_next_broker_knows(held: Held) -> None:
    from host.inside import units

    units.killed()
    (lease,) = held.client.leases()
    assert [grant["vlan"].value for grant in lease["grants"]] == [42, 42, 43, 0]
    assert [tap.ifname for tap in held.taps] == [g["ifname"].value for g in lease["grants"]]


def test_a_bridge_that_filters_no_more_ends_what_was_in_a_vlan(
    trunk: LanHost, client: Client
) -> None:
    from host.inside.strangers import holding
    from lab.links import wait_for_link

    with (
        holding(client, "default", on(IN_1)) as stays,
        holding(client, "vlan", on(IN_42, 42)) as ends,
    ):
        subprocess.run(
            ["ip", "link", "set", BRIDGE, "type", "bridge", "vlan_filtering", "0"], check=True
        )
        wait_for_link(ends.taps[0].ifname, present=False)
        assert [lease["vm"] for lease in client.leases()] == ["default"]
        assert stays.taps[0].ifname in host.ours()


def test_what_cannot_be_is_refused(trunk: LanHost, client: Client) -> None:
    from host.inside.strangers import CONFIGURATION, holding

    assert refusal(client, on(IN_42, 45))[0] == "NotFound"
    subprocess.run(
        ["ip", "link", "set", BRIDGE, "type", "bridge", "vlan_default_pvid", "0"], check=True
    )
    name, text = refusal(client, on(IN_1))
    assert (name, "no default one" in text) == ("NotSupported", True)
    with holding(client, "vlan", on(IN_42, 42)) as held:
        assert [vlan["vlan"] for vlan in vlans_of(held.taps[0].ifname)] == [42]
    others = {
        "bond7": ("a bond", "link add name bond7 type bond"),
        "vlan7": ("a VLAN interface", f"link add link {BRIDGE} name vlan7 type vlan id 7"),
        "mac7": ("a macvtap interface", "link add link hlanp0 name mac7 type macvtap"),
        "dum7": ("an interface of another kind", "link add name dum7 type dummy"),
    }
    with contextlib.ExitStack() as stack:
        for one, (_, command) in others.items():
            host.ip(*command.split())
            stack.callback(host.ip, "link", "delete", one)
        CONFIGURATION.write_text(OFFER + "".join(f"[bridge.{one}]\n" for one in others))
        for one, (words, _) in others.items():
            name, text = refusal(client, on(IN_42, bridge=one))
            assert (name, words in text) == ("NotSupported", True), text

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interfaces that come and go: the order of the steps, and what is undone when one fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sessionvirt.broker_requests import BandwidthRequest, Rate, TapRequest
from sessionvirt.driver import network
from sessionvirt.driver.network import Joined
from sessionvirt.errors import (
    BusyError,
    DeadlineError,
    DefinitionError,
    NotFoundError,
    PermissionDeniedError,
    QemuError,
    SessionvirtError,
    UsageError,
)
from sessionvirt.model.addresses import MacAddress
from sessionvirt.model.bandwidth import Bandwidth, BandwidthRate
from sessionvirt.model.hostdev import Hostdev, HostPlace
from sessionvirt.model.interface import Interface, InterfaceType, LinkState, NicModel
from sessionvirt.model.nic import NicDriver
from sessionvirt.qemu.pci import Place
from sessionvirt.qemu.process import Child
from sessionvirt.qemu.wiring import UserWiring
from unit.plugworld import DELETED, MANY, World, live, turns

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

MAC = MacAddress("52:54:00:00:00:07")
ADDED = ["add asks nobody", "getfd net0-fd0", "netdev_add hostnet0", "device_add net0"]
COLD = "<interface type='user'><mac address='52:54:00:00:00:07'/></interface>"
#: A program that does nothing, for ever, in the place of passt.
HELPER = "#!/bin/sh\nexec sleep infinity\n"


def nic(**values: Any) -> Interface:
    given: dict[str, Any] = {
        "type": InterfaceType.NETWORK,
        "network": "default",
        "model": NicModel.VIRTIO,
    }
    return Interface(**(given | values))


def user(**values: Any) -> Interface:
    return nic(type=InterfaceType.USER, network=None, **values)


@pytest.fixture(autouse=True)
def _without_passt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "find_passt", lambda capabilities: None)


def test_the_tap_then_its_descriptors_then_backend_and_card() -> None:
    world = World()

    async def use() -> None:
        assert await world.hotplug.attach(nic(mac=MAC, target="web"), interactive=True) == "net0"
        (found,) = world.hotplug.interfaces
        assert (found.id, found.mac, found.up) == ("net0", MAC, True)
        assert found.tap is not None
        assert (found.tap.ipv4, found.tap.fds) == (("10.213.80.9",), ())
        assert all(fd.closed for fd in world.fds)

    live(world, use)
    assert world.said == ["add may ask", *ADDED[1:]]
    assert world.requests == [TapRequest(network="default", mac=MAC, name="web")]
    assert world.backends == [{"type": "tap", "id": "hostnet0", "fd": "net0-fd0"}]
    assert world.plugged == [
        {
            "driver": "virtio-net-pci",
            "id": "net0",
            "netdev": "hostnet0",
            "mac": MAC,
            "bus": "pci.3",
            "addr": "0x0",
        }
    ]


def test_each_queue_and_each_of_vhost_has_a_name_of_its_own() -> None:
    world = World(vhost=True)

    async def use() -> None:
        await world.hotplug.attach(nic(driver=NicDriver(queues=2)), interactive=False)

    live(world, use)
    assert world.backends == [
        {
            "type": "tap",
            "id": "hostnet0",
            "fds": "net0-fd0:net0-fd1",
            "vhost": True,
            "vhostfds": "net0-fd2:net0-fd3",
        }
    ]
    assert list(world.given.values()) == ["/dev/null", "/dev/null", "/dev/zero", "/dev/zero"]
    assert (world.plugged[0]["mq"], world.plugged[0]["vectors"]) == (True, 6)


@pytest.mark.parametrize(
    ("verb", "undone", "leased"),
    [
        ("add", [], True),
        ("getfd", ["closefd net0-fd0"], True),
        ("netdev_add", ["closefd net0-fd0"], True),
        ("device_add", ["netdev_del hostnet0", "closefd net0-fd0"], True),
        ("device_add", ["netdev_del hostnet0", "closefd net0-fd0"], False),
    ],
)
def test_what_fails_undoes_what_was_before_it(
    verb: str,
    undone: list[str],
    leased: bool,  # noqa: FBT001
) -> None:
    """Also the lease, where there was none before."""
    world = World(leased=leased)
    world.fails[verb] = PermissionDeniedError("no") if verb == "add" else QemuError("no")
    before = ADDED[: next(i for i, one in enumerate(ADDED) if one.startswith(verb)) + 1]
    after = ["drop /lease tap0"] if verb != "add" else []
    if not leased:
        before = ["acquire vm", "getfd hold1", *before[1:]]
        after = ["release /another", "closefd hold1"]

    async def use() -> None:
        with pytest.raises(SessionvirtError) as caught:
            await world.hotplug.attach(nic(mac=MAC), interactive=False)
        assert verb == "add" or caught.value.cause == f"QEMU does not take {MAC}"
        assert world.said == before + undone + after
        assert world.hotplug.interfaces == ()
        assert all(fd.closed for fd in world.fds)
        world.fails.clear()
        for _ in range(MANY):
            await world.hotplug.attach(nic(), interactive=False)

    live(world, use)


def test_a_first_lease_is_qemus_and_the_next_are_added() -> None:
    world = World(leased=False)

    async def use() -> None:
        for _ in range(2):
            await world.hotplug.attach(nic(), interactive=False)

    live(world, use)
    assert world.said == [
        *("acquire vm", "getfd hold1", "getfd net0-fd0", "netdev_add hostnet0", "device_add net0"),
        *("add asks nobody", "getfd net1-fd0", "netdev_add hostnet1", "device_add net1"),
    ]


@pytest.mark.parametrize("known", [True, False])
def test_it_goes_card_first_and_the_grant_last(known: bool) -> None:  # noqa: FBT001
    """The lease may have dropped the TAP by itself, with its last descriptor."""
    world = World()

    async def use() -> None:
        await world.hotplug.attach(nic(mac=MAC), interactive=False)
        if not known:
            world.granted.clear()
        leaving = asyncio.ensure_future(world.hotplug.detach(MAC, 10))
        await turns()
        assert not leaving.done()
        world.see(DELETED, "net0")
        await leaving
        assert world.hotplug.interfaces == ()

    live(world, use)
    dropped = ["drop /lease tap0"] if known else []
    assert world.said[4:] == ["device_del net0", "netdev_del hostnet0", *dropped]


def test_a_lease_that_ended_with_its_last_tap_is_followed_by_another() -> None:
    """Without asking the one that is over."""
    world = World()

    async def use() -> None:
        await world.hotplug.attach(nic(), interactive=False)
        world.paths.clear()
        leaving = asyncio.ensure_future(world.hotplug.detach("net0", 10))
        await turns()
        world.see(DELETED, "net0")
        await leaving
        await world.hotplug.attach(nic(), interactive=False)

    live(world, use)
    asked = [word for word in world.said if word.startswith(("add", "acquire", "drop"))]
    assert asked == ["add asks nobody", "acquire vm"]


def test_a_guest_that_does_not_answer_keeps_it_until_it_does() -> None:
    world = World()

    async def use() -> None:
        name = await world.hotplug.attach(nic(), interactive=False)
        with pytest.raises(DeadlineError, match="has not let go of net0"):
            await world.hotplug.detach(name, 0.01)
        assert [one.id for one in world.hotplug.interfaces] == ["net0"]
        assert "netdev_del hostnet0" not in world.said
        world.see(DELETED, name)
        await turns()
        assert world.said[-2:] == ["netdev_del hostnet0", "drop /lease tap0"]

    live(world, use)


def test_a_backend_that_does_not_go_gives_the_tap_back_nevertheless_and_is_told() -> None:
    world = World()
    world.fails["netdev_del"] = QemuError("no")

    async def use() -> None:
        name = await world.hotplug.attach(nic(), interactive=False)
        leaving = asyncio.ensure_future(world.hotplug.detach(name, 10))
        await turns()
        world.see(DELETED, name)
        with pytest.raises(QemuError, match="no"):
            await leaving

    live(world, use)
    assert world.said[-1] == "drop /lease tap0"


def test_those_of_the_start_go_too_and_their_names_are_not_used_again() -> None:
    world = World(COLD, joined=[Joined(UserWiring(MAC))])

    async def use() -> None:
        assert [one.mac for one in world.hotplug.interfaces] == [MAC]
        assert await world.hotplug.attach(user(), interactive=False) == "net1"
        leaving = asyncio.ensure_future(world.hotplug.detach("net0", 10))
        await turns()
        world.see(DELETED, "net0")
        await leaving
        assert await world.hotplug.attach(user(), interactive=False) == "net2"

    live(world, use)
    assert not [word for word in world.said if word.startswith(("add", "acquire", "drop"))]


def test_what_stands_on_a_bus_of_the_start_is_said_to_stay() -> None:
    world = World(COLD, joined=[Joined(UserWiring(MAC))])
    world.fails["device_del"] = QemuError("Bus 'pcie.0' does not support hotplugging")

    async def use() -> None:
        with pytest.raises(QemuError, match="net0 cannot go while the machine runs") as caught:
            await world.hotplug.detach("net0", 10)
        assert "pcie.0" in caught.value.evidence
        assert "root port" in caught.value.advice

    live(world, use)


def test_a_helper_ends_with_its_interface_or_with_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "helper"
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setattr(network, "find_passt", lambda capabilities: str(program))
    started: list[Child] = []
    spawn = Child.spawn

    def spawned(*args: Any, **words: Any) -> Child:
        started.append(spawn(*args, **words))
        return started[-1]

    monkeypatch.setattr(Child, "spawn", spawned)
    world = World()

    async def use() -> None:
        name = await world.hotplug.attach(user(), interactive=False)
        assert world.backends[0]["addr"] == {"type": "fd", "str": "net0-fd0"}
        assert world.given["net0-fd0"].startswith("socket:")
        await world.hotplug.attach(user(), interactive=False)
        world.fails["device_add"] = QemuError("no")
        with pytest.raises(QemuError):
            await world.hotplug.attach(user(), interactive=False)
        assert [one.returncode is None for one in started] == [True, True, False]
        leaving = asyncio.ensure_future(world.hotplug.detach(name, 10))
        await turns()
        world.see(DELETED, name)
        await leaving
        assert [one.returncode is None for one in started] == [False, True, False]
        await world.hotplug.close()
        assert [one.returncode is None for one in started] == [False, False, False]

    live(world, use)


def test_a_cable_that_is_out_is_out_from_the_first_moment_on_and_can_be_plugged_in() -> None:
    world = World()

    async def use() -> None:
        name = await world.hotplug.attach(nic(link=LinkState.DOWN, mac=MAC), interactive=False)
        seen = [world.hotplug.interfaces[0].up]
        await world.hotplug.set_link(MAC, up=True)
        seen.append(world.hotplug.interfaces[0].up)
        await world.hotplug.set_link(name, up=False)
        seen.append(world.hotplug.interfaces[0].up)
        assert world.links == [("net0", up) for up in seen]
        assert seen == [False, True, False]
        with pytest.raises(NotFoundError, match="no interface net9") as caught:
            await world.hotplug.set_link("net9", up=False)
        assert f"net0 ({MAC})" in caught.value.evidence
        world.fails["set_link"] = QemuError("no")
        with pytest.raises(QemuError):
            await world.hotplug.set_link(name, up=True)
        assert not world.hotplug.interfaces[0].up

    live(world, use)


def test_an_address_is_one_interfaces() -> None:
    world = World(COLD, joined=[Joined(UserWiring(MAC))])

    async def use() -> None:
        with pytest.raises(BusyError, match=f"has an interface {MAC} already") as caught:
            await world.hotplug.attach(nic(mac=MAC), interactive=False)
        assert caught.value.evidence == "it is net0"

    live(world, use)
    assert world.said == []


@pytest.mark.parametrize(
    ("element", "words"),
    [
        (nic(network=None), "needs it"),
        (nic(model=NicModel.RTL8139), "a root port takes none"),
        (nic(model=NicModel.E1000), "a root port takes none"),
        (nic(model=None, driver=NicDriver(queues=2)), "only a virtio interface"),
    ],
)
def test_an_element_that_cannot_be_asks_nobody(element: Interface, words: str) -> None:
    world = World()

    async def use() -> None:
        with pytest.raises(DefinitionError, match=words):
            await world.hotplug.attach(element, interactive=False)

    live(world, use)
    assert world.said == []


@pytest.mark.parametrize(
    ("place", "driver"), [(Place("pci.3", 3, 0), "e1000e"), (Place("pci.0", 0, 5), "rtl8139")]
)
def test_the_model_where_none_is_named_is_one_that_can_be_there(place: Place, driver: str) -> None:
    world = World(places=[place])

    async def use() -> None:
        await world.hotplug.attach(user(model=None), interactive=False)

    live(world, use)
    assert world.plugged[0]["driver"] == driver


def test_more_than_the_network_carries_is_given_back() -> None:
    world = World()

    async def use() -> None:
        with pytest.raises(DefinitionError, match="carries 1500 bytes"):
            await world.hotplug.attach(nic(mtu=9000), interactive=False)
        assert all(fd.closed for fd in world.fds)
        world.mtu = 9000
        await world.hotplug.attach(nic(mtu=9000), interactive=False)

    live(world, use)
    assert world.said[:2] == ["add asks nobody", "drop /lease tap0"]
    assert world.plugged[0]["host_mtu"] == 9000


def test_who_is_cancelled_while_qemu_makes_it_has_it() -> None:
    world = World()

    async def use() -> None:
        world.waits["netdev_add"] = asyncio.Event()
        attaching = asyncio.ensure_future(world.hotplug.attach(nic(), interactive=True))
        await turns()
        attaching.cancel()
        await turns()
        assert not attaching.done()
        world.waits["netdev_add"].set()
        with pytest.raises(asyncio.CancelledError):
            await attaching
        assert [one.id for one in world.hotplug.interfaces] == ["net0"]

    live(world, use)
    assert world.said[-1] == "device_add net0"
    assert all(fd.closed for fd in world.fds)


def test_a_device_and_an_interface_share_places_and_lease() -> None:
    world = World(leased=False)

    async def use() -> None:
        await world.hotplug.attach(nic(), interactive=False)
        card = Hostdev(managed=True, source=HostPlace(bus=2, slot=0))
        await world.hotplug.attach(card, interactive=False)
        await world.hotplug.attach(user(), interactive=False)
        assert [one["bus"] for one in world.plugged] == ["pci.3", "pci.4", "pci.5"]
        assert [one.id for one in world.hotplug.devices] == ["hostdev0"]
        assert [one.id for one in world.hotplug.interfaces] == ["net0", "net1"]
        for what in (card, nic()):
            with pytest.raises(BusyError):
                await world.hotplug.attach(what, interactive=False)

    live(world, use)
    assert [word for word in world.said if word.startswith(("acquire", "add"))] == [
        "acquire vm",
        "add asks nobody",
    ]


def test_a_limit_is_taken_before_the_former_is_given_back() -> None:
    world = World()

    async def use() -> None:
        plugs = world.hotplug
        name = await plugs.attach(nic(mac=MAC), interactive=False)
        world.said.clear()
        for number in (1, 2):
            await plugs.set_bandwidth(MAC, Rate(number), None, interactive=False)
        assert world.said == ["add asks nobody"] * 2 + ["drop /lease bandwidth0"]
        assert world.requests[-1] == BandwidthRequest("tap0", Rate(2), None)
        (told,) = plugs.interfaces
        assert (told.inbound, told.outbound) == (Rate(2), None)
        world.said.clear()
        await plugs.set_bandwidth(name, None, None, interactive=False)
        assert world.said == ["drop /lease bandwidth1"]
        with pytest.raises(NotFoundError):
            await plugs.set_bandwidth("net9", Rate(1), None, interactive=False)
        world.fails["add"] = PermissionDeniedError("a rule says no")
        with pytest.raises(PermissionDeniedError):
            await plugs.set_bandwidth(name, Rate(1), None, interactive=False)
        assert plugs.interfaces[0].inbound is None

    live(world, use)


def test_what_comes_with_a_limit_has_it_before_the_guest_has_the_card() -> None:
    world = World()
    limits = Bandwidth(outbound=BandwidthRate(average=9, burst=64))

    async def use() -> None:
        await world.hotplug.attach(nic(bandwidth=limits), interactive=False)
        assert world.said == ["add asks nobody", *ADDED]
        assert world.requests[-1] == BandwidthRequest("tap0", None, Rate(9, 0, 64))

    live(world, use)


def test_a_user_mode_network_has_no_limit() -> None:
    world = World(leased=False)

    async def use() -> None:
        name = await world.hotplug.attach(user(), interactive=False)
        with pytest.raises(UsageError, match="cannot be limited"):
            await world.hotplug.set_bandwidth(name, Rate(1), None, interactive=False)

    live(world, use)

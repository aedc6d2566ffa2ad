# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that come and go: the order of the steps, and what is undone when one of them fails.

QEMU and the broker stand at their borders only, as what was said to them and what they answer.
"""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from sessionvirt.broker_requests import PciRequest
from sessionvirt.driver.hotplug import HostDevice
from sessionvirt.errors import (
    BusyError,
    DeadlineError,
    DefinitionError,
    NotFoundError,
    PermissionDeniedError,
    QemuError,
    StateError,
)
from sessionvirt.model.addresses import PciAddress
from sessionvirt.model.devices import PciPlace
from sessionvirt.model.hostdev import Hostdev, HostPlace
from unit.plugworld import DELETED, MANY, World, live, turns

pytestmark = pytest.mark.unit

FUNCTION = """\
<interface type='hostdev' managed='yes'>
  <mac address='52:54:00:00:42:01'/><source><address bus='{}' slot='0x10'/></source>
  <vlan><tag id='42'/></vlan>
</interface>
"""
COLD = """\
<hostdev mode='subsystem' type='pci' managed='yes'>
  <source><address bus='1' slot='0'/></source>
</hostdev>
"""
AMOUNT = (64 << 20) + (1 << 30)


def device(bus: int = 2, place: PciPlace | None = None) -> Hostdev:
    return Hostdev(managed=True, source=HostPlace(bus=bus, slot=0), address=place)


def test_the_broker_then_memory_then_qemu() -> None:
    world = World()

    async def use() -> None:
        assert await world.hotplug.attach(device(), interactive=True) == "hostdev0"
        address = PciAddress(0, 2, 0, 0)
        assert world.hotplug.devices == (HostDevice("hostdev0", address, "pci0"),)

    live(world, use)
    assert world.said == ["add may ask", "lock /lease", "device_add hostdev0"]
    assert world.amounts == [AMOUNT]
    assert isinstance(world.requests[0], PciRequest)
    assert world.requests[0].address == "0000:02:00.0"
    assert world.plugged == [
        {
            "driver": "vfio-pci",
            "id": "hostdev0",
            "host": "0000:02:00.0",
            "bus": "pci.3",
            "addr": "0x0",
        }
    ]


def test_those_of_the_start_are_known() -> None:
    world = World(COLD)

    async def use() -> None:
        assert [one.id for one in world.hotplug.devices] == ["hostdev0"]
        with pytest.raises(BusyError, match=r"has 0000:01:00\.0 already") as caught:
            await world.hotplug.attach(device(1), interactive=False)
        assert caught.value.evidence == "it is hostdev0"
        plugged = dataclasses.replace(device(2), driver_model="vfio-pci")
        assert await world.hotplug.attach(plugged, interactive=False) == "hostdev1"
        assert isinstance(world.requests[0], PciRequest)
        assert world.requests[0].also == ("0000:01:00.0",)
        assert world.requests[0].driver == "vfio-pci"
        leaving = asyncio.ensure_future(world.hotplug.detach("0000:01:00.0", 10))
        await turns()
        world.see(DELETED, "hostdev0")
        await leaving
        assert [one.id for one in world.hotplug.devices] == ["hostdev1"]

    live(world, use)
    assert world.said[-2:] == ["device_del hostdev0", "drop /lease pci0"]


def test_a_function_of_a_card_comes_with_what_its_card_is_told() -> None:
    """And one of the start counts as a device, whichever its element is."""
    world = World(FUNCTION.format(1))
    source = World(FUNCTION.format(2), leased=False).domain.interfaces[0]

    async def use() -> None:
        assert [one.id for one in world.hotplug.devices] == ["hostdev0"]
        with pytest.raises(BusyError, match=r"has 0000:01:10\.0 already"):
            await world.hotplug.attach(world.domain.interfaces[0], interactive=False)
        assert await world.hotplug.attach(source, interactive=False) == "hostdev1"
        assert world.hotplug.interfaces == ()

    live(world, use)
    asked = [(one.mac, one.vlan) for one in world.requests if isinstance(one, PciRequest)]
    assert asked == [("52:54:00:00:42:01", 42)]
    assert [one["host"] for one in world.plugged] == ["0000:02:10.0"]
    assert world.amounts == [AMOUNT]


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("add", ["add asks nobody"]),
        ("lock", ["add asks nobody", "lock /lease", "drop /lease pci0"]),
        (
            "device_add",
            ["add asks nobody", "lock /lease", "device_add hostdev0", "drop /lease pci0"],
        ),
    ],
)
def test_what_fails_undoes_what_was_before_it(verb: str, said: list[str]) -> None:
    world = World()
    world.fails[verb] = PermissionDeniedError("no") if verb != "device_add" else QemuError("no")

    async def use() -> None:
        with pytest.raises((PermissionDeniedError, QemuError)) as caught:
            await world.hotplug.attach(device(), interactive=False)
        if verb == "device_add":
            error = caught.value
            assert error.cause == "QEMU does not take 0000:02:00.0"
            assert (error.evidence, bool(error.advice)) == ("no", True)
        assert world.hotplug.devices == ()
        assert world.said == said
        # And its place is free again.
        world.fails.clear()
        for number in range(MANY):
            await world.hotplug.attach(device(0x10 + number), interactive=False)

    live(world, use)


def test_an_error_of_the_undo_does_not_hide_the_first() -> None:
    world = World()
    world.fails = {"lock": BusyError("limit"), "drop": BusyError("another")}

    async def use() -> None:
        with pytest.raises(BusyError, match="limit"):
            await world.hotplug.attach(device(), interactive=False)

    live(world, use)


def test_a_qemu_that_ends_meanwhile_is_told() -> None:
    world = World()

    async def use() -> None:
        world.returncode = 0
        with pytest.raises(StateError, match="QEMU ended before it had the device"):
            await world.hotplug.attach(device(), interactive=False)

    live(world, use)
    assert world.said[-1] == "drop /lease pci0"


def test_a_machine_without_a_lease_gets_one_that_is_qemus() -> None:
    world = World(leased=False)

    async def use() -> None:
        await world.hotplug.attach(device(2), interactive=False)
        await world.hotplug.attach(device(3), interactive=False)

    live(world, use)
    assert world.said == [
        "acquire vm",
        "getfd hold1",
        "lock /another",
        "device_add hostdev0",
        "add asks nobody",
        "lock /another",
        "device_add hostdev1",
    ]


def test_a_first_lease_is_given_back_where_qemu_does_not_take_the_device() -> None:
    world = World(leased=False)
    world.fails["device_add"] = QemuError("no")

    async def use() -> None:
        for _ in range(2):
            with pytest.raises(QemuError):
                await world.hotplug.attach(device(), interactive=False)

    live(world, use)
    once = ["acquire vm", "getfd hold{}", "lock /another", "device_add hostdev{}"]
    once += ["release /another", "closefd hold{}"]
    first = [word.format(0 if "hostdev" in word else 1) for word in once]
    second = [word.format(1 if "hostdev" in word else 2) for word in once]
    assert world.said == first + second


@pytest.mark.parametrize("over", [True, False])
def test_a_lease_that_is_over_is_followed_by_another(*, over: bool) -> None:
    """It ends with its last device, where the host pulled that out."""
    world = World()
    world.fails["add"] = NotFoundError("no such thing")
    if over:
        world.paths.clear()

    async def use() -> None:
        if over:
            await world.hotplug.attach(device(), interactive=False)
            return
        with pytest.raises(NotFoundError):
            await world.hotplug.attach(device(), interactive=False)

    live(world, use)
    assert ("acquire vm" in world.said) is over


def test_a_cancelled_question_leaves_nothing() -> None:
    """The broker may have given the device already, and the answer be lost."""
    world = World()

    async def use() -> None:
        world.waits["add"] = asyncio.Event()
        attaching = asyncio.ensure_future(world.hotplug.attach(device(), interactive=True))
        await turns()
        world._grant("0000:02:00.0")
        attaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attaching

    live(world, use)
    assert world.said == ["add may ask", "drop /lease pci0"]


def test_who_is_cancelled_while_qemu_makes_the_device_has_it() -> None:
    world = World()

    async def use() -> None:
        world.waits["device_add"] = asyncio.Event()
        attaching = asyncio.ensure_future(world.hotplug.attach(device(), interactive=True))
        await turns()
        attaching.cancel()
        await turns()
        assert not attaching.done()
        world.waits["device_add"].set()
        with pytest.raises(asyncio.CancelledError):
            await attaching
        assert [one.id for one in world.hotplug.devices] == ["hostdev0"]

    live(world, use)
    assert world.said[-1] == "device_add hostdev0"


def test_there_are_only_so_many_ports() -> None:
    world = World()

    async def use() -> None:
        for bus in range(MANY):
            await world.hotplug.attach(device(0x10 + bus), interactive=False)
        said = list(world.said)
        with pytest.raises(BusyError, match="no PCI port of the running machine is free"):
            await world.hotplug.attach(device(0x20), interactive=False)
        assert world.said == said
        world.see(DELETED, "hostdev1")
        await world.hotplug.attach(device(0x20), interactive=False)
        assert (world.plugged[-1]["id"], world.plugged[-1]["bus"]) == ("hostdev3", "pci.4")

    live(world, use)


def test_a_place_of_the_guest_is_honoured_if_it_is_free() -> None:
    world = World()

    async def use() -> None:
        await world.hotplug.attach(device(2, PciPlace(bus=4)), interactive=False)
        assert world.plugged[0]["bus"] == "pci.4"
        for place in (PciPlace(bus=4), PciPlace(bus=3, slot=1), PciPlace(bus=0, slot=5)):
            with pytest.raises(DefinitionError, match="no free place"):
                await world.hotplug.attach(device(3, place), interactive=False)
        await world.hotplug.attach(device(3), interactive=False)
        await world.hotplug.attach(device(4), interactive=False)
        assert [one["bus"] for one in world.plugged[1:]] == ["pci.3", "pci.5"]

    live(world, use)


def test_an_element_that_is_none_asks_nobody() -> None:
    world = World()

    async def use() -> None:
        with pytest.raises(DefinitionError):
            await world.hotplug.attach(Hostdev(managed=True), interactive=False)

    live(world, use)
    assert world.said == []


def test_a_guest_that_does_not_answer_keeps_the_device_until_it_does() -> None:
    world = World()

    async def use() -> None:
        name = await world.hotplug.attach(device(), interactive=False)
        with pytest.raises(DeadlineError) as caught:
            await world.hotplug.detach(name, 0.01)
        assert caught.value.cause == "the guest has not let go of hostdev0"
        assert "0.01 s; 0000:02:00.0 is still its own" in caught.value.evidence
        assert caught.value.advice
        assert [one.id for one in world.hotplug.devices] == [name]
        assert world.said[-1] == "device_del hostdev0"
        # Asked again: QEMU still waits for the guest.
        world.fails["device_del"] = QemuError(
            "QEMU refused device_del: Device hostdev0 is already in the process of unplug"
        )
        with pytest.raises(DeadlineError):
            await world.hotplug.detach(name, 0.01)
        world.see(DELETED, name)
        assert world.hotplug.devices == ()
        await turns()
        assert world.said[-1] == "drop /lease pci0"
        with pytest.raises(NotFoundError, match="no host device or interface hostdev0"):
            await world.hotplug.detach(name, 1)

    live(world, use)


def test_a_guest_may_throw_a_device_out_by_itself() -> None:
    world = World()

    async def use() -> None:
        world.see(DELETED, await world.hotplug.attach(device(), interactive=False))
        world.see(DELETED, "net0")
        await turns()

    live(world, use)
    assert world.said[-1] == "drop /lease pci0"


def test_a_guest_may_refuse() -> None:
    world = World()

    async def use() -> None:
        name = await world.hotplug.attach(device(), interactive=False)
        for _ in range(2):
            leaving = asyncio.ensure_future(world.hotplug.detach(name, 10))
            await turns()
            world.see("DEVICE_UNPLUG_GUEST_ERROR", name)
            with pytest.raises(QemuError, match="the guest refuses to let go of hostdev0"):
                await leaving
        assert [one.id for one in world.hotplug.devices] == [name]

    live(world, use)
    assert not [word for word in world.said if word.startswith("drop")]


def test_what_the_host_has_pulled_out_is_gone_already() -> None:
    world = World()
    world.fails["drop"] = NotFoundError("the lease has no such grant")

    async def use() -> None:
        name = await world.hotplug.attach(device(), interactive=False)
        leaving = asyncio.ensure_future(world.hotplug.detach(name, 10))
        await turns()
        world.see(DELETED, name)
        await leaving

    live(world, use)


def test_a_broker_that_does_not_take_it_back_is_told_to_who_waits() -> None:
    world = World()
    world.fails["drop"] = BusyError("the kernel has it")

    async def use() -> None:
        name = await world.hotplug.attach(device(), interactive=False)
        leaving = asyncio.ensure_future(world.hotplug.detach(name, 10))
        await turns()
        world.see(DELETED, name)
        with pytest.raises(BusyError, match="the kernel has it"):
            await leaving
        # Nobody waits for this one, and nobody is told.
        world.see(DELETED, await world.hotplug.attach(device(), interactive=False))
        await turns()

    live(world, use)


def test_what_qemu_refuses_is_told_in_its_words() -> None:
    world = World(COLD)
    world.fails["device_del"] = QemuError("Bus 'pcie.0' does not support hotplugging")

    async def use() -> None:
        with pytest.raises(QemuError, match="does not support hotplugging"):
            await world.hotplug.detach("hostdev0", 10)

    live(world, use)


def test_the_end_of_qemu_is_the_end_of_every_wait() -> None:
    world = World(COLD)

    async def use() -> None:
        leaving = asyncio.ensure_future(world.hotplug.detach("hostdev0", 10))
        await turns()
        await world.hotplug.close()
        with pytest.raises(StateError, match="QEMU ended before the guest had let go"):
            await leaving

    live(world, use)


def test_two_at_once_have_two_places() -> None:
    world = World()

    async def use() -> None:
        one, two = device(2), device(3)
        names = await asyncio.gather(
            *(world.hotplug.attach(which, interactive=False) for which in (one, two))
        )
        assert sorted(names) == ["hostdev0", "hostdev1"]
        assert {str(each["bus"]) for each in world.plugged} == {"pci.3", "pci.4"}
        with pytest.raises(BusyError):
            await world.hotplug.attach(two, interactive=False)

    live(world, use)

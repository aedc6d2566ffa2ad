# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interfaces that come and go: the real broker, a real QEMU, and a guest that has a kernel."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from lab import host
from lab.brokerlog import Log
from lab.guest import CMDLINE
from lab.namespaces import LAB
from sessionvirt.broker_client import BrokerClient
from sessionvirt.driver import network
from sessionvirt.driver.domain import Settings, VirtualMachine
from sessionvirt.errors import DeadlineError, NotFoundError, QemuError
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.interface import Interface, InterfaceType, LinkState, NicModel
from sessionvirt.model.nic import NicBackend, NicDriver

if TYPE_CHECKING:
    from pathlib import Path

    from lab.broker import Broker
    from lab.guest import Guest
    from lab.outside import Outside
    from lab.polkit import Polkit

pytestmark = pytest.mark.qemu

XML = """\
<domain type='qemu'>
  <name>test</name><memory unit='MiB'>{memory}</memory>
  <os><type machine='{machine}'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <devices>{devices}<serial type='pty'/></devices>
</domain>
"""
#: One card after the other, as long as there is another; it says what it sees of each.
SCRIPT = """\
carrier() { until [ "$(cat /sys/class/net/eth0/carrier 2>&1)" = "$1" ]; do usleep 100000; done; }
for round in one two; do
    until [ -e /sys/class/net/eth0 ]; do usleep 100000; done
    ip link set eth0 up
    carrier 1
    dhcp
    carrier 0
    say "$round is out"
    carrier 1
    say "$round is in"
    while [ -e /sys/class/net/eth0 ]; do usleep 100000; done
    say "$round is gone"
done
until [ -e /sys/class/net/eth0 ]; do usleep 100000; done
"""
#: Does nothing, for ever, in the place of passt, and keeps its end of the socket.
HELPER = "#!/bin/sh\nexec sleep infinity\n"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@contextlib.asynccontextmanager
async def machine(kind: str = "q35", *, boot: str = "", devices: str = "") -> Any:
    """One whose CPUs are halted; what is asked of its guest is answered at a reset."""
    text = XML.format(machine=kind, boot=boot, devices=devices, memory=64)
    async with asyncio.timeout(60), VirtualMachine(parse_domain(text).value) as vm:
        await vm.start(paused=True)
        yield vm


def nic(**values: Any) -> Interface:
    given: dict[str, Any] = {
        "type": InterfaceType.NETWORK,
        "network": "default",
        "model": NicModel.VIRTIO,
    }
    return Interface(**(given | values))


def queues_open(vm: VirtualMachine) -> int:
    """How many descriptors of TAPs QEMU has."""
    directory = f"/proc/{vm.pid}/fd"
    links = [os.readlink(f"{directory}/{number}") for number in os.listdir(directory)]
    return links.count("/dev/net/tun")


async def backends(vm: VirtualMachine) -> list[str]:
    """As QEMU tells them."""
    monitor = vm._active_monitor()
    told = await monitor.execute("human-monitor-command", {"command-line": "info network"})
    return [line.partition(":")[0].strip(" \\") for line in str(told).splitlines()]


async def leave(vm: VirtualMachine, name: str) -> None:
    """Detach from a machine whose guest is the reset."""
    leaving = asyncio.ensure_future(vm.detach(name, patience=30))
    await asyncio.sleep(0.1)
    await vm._active_monitor().execute("system_reset")
    await leaving


async def leases() -> list[tuple[str, ...]]:
    """What each lease has, by the broker."""
    async with await BrokerClient.connect() as client:
        return [tuple(grant.id for grant in lease.grants) for lease in await client.leases()]


async def no_lease() -> None:
    """Wait until the broker has noticed that the last TAP is gone."""
    async with asyncio.timeout(20):
        while await leases():
            pass


@pytest.mark.parametrize("kind", ["q35", "pc"])
def test_a_guest_gets_an_address_loses_its_card_and_gets_another(
    guest: Guest, broker: Broker, polkit: Polkit, outside: Outside, kind: str
) -> None:
    scripted = guest.with_script(SCRIPT, LAB / "guest/hotplug-initrd")
    boot = (
        f"<kernel>{scripted.kernel}</kernel><initrd>{scripted.initrd}</initrd>"
        f"<cmdline>{CMDLINE}</cmdline>"
    )
    domain = parse_domain(XML.format(machine=kind, boot=boot, devices="", memory=192)).value

    log = Log()

    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            vm = VirtualMachine(domain, Settings(console=theirs.fileno()))
            async with asyncio.timeout(150), vm:
                await vm.start()
                theirs.close()
                said, writer = await asyncio.open_connection(sock=ours)
                assert await word(said) == "up"
                for number, turn in enumerate(("one", "two")):
                    name = await vm.attach(nic(), interactive=False)
                    assert name == f"net{number}"
                    (mine,) = vm.interfaces
                    assert mine.tap is not None
                    assert await word(said) == f"address {mine.tap.ipv4[0]} via 10.213.80.1"
                    await vm.set_link(name, up=False)
                    assert await word(said) == f"{turn} is out"
                    await vm.set_link(mine.mac, up=True)
                    assert await word(said) == f"{turn} is in"
                    await vm.detach(name)
                    assert await word(said) == f"{turn} is gone"
                    assert vm.interfaces == ()
                    assert queues_open(vm) == 0
                    await no_lease()
                await vm.attach(nic(type=InterfaceType.USER, network=None))
                assert await word(said) == "end"
                # What the broker is asked for is there: nobody's journal has refusals of it.
                assert log.lines("refusal") == []
                await vm.wait()
                writer.close()

    asyncio.run(run())


async def word(reader: asyncio.StreamReader) -> str:
    """The next that the guest's script says."""
    while line := await reader.readline():
        text = line.decode(errors="replace").strip()
        if "GUEST: " in text:
            return text.partition("GUEST: ")[2]
    return "nothing more"


@pytest.mark.parametrize("kind", ["q35", "pc"])
def test_each_queue_is_a_descriptor_of_the_same_tap(
    broker: Broker, polkit: Polkit, kind: str
) -> None:
    async def run() -> None:
        async with machine(kind) as vm:
            name = await vm.attach(
                nic(driver=NicDriver(queues=3), link=LinkState.DOWN), interactive=False
            )
            (mine,) = vm.interfaces
            assert mine.tap is not None
            assert queues_open(vm) == 3
            assert host.link(mine.tap.ifname)["ifindex"] == mine.tap.ifindex
            # QEMU has a line for each queue.
            assert (await backends(vm)).count("hostnet0") == 3
            monitor = vm._active_monitor()
            (filters,) = await monitor.execute("query-rx-filter", {"name": name})
            assert filters["main-mac"] == mine.mac
            await leave(vm, name)
            assert await backends(vm) == []
            assert host.link(mine.tap.ifname) == {}

    asyncio.run(run())


def test_what_qemu_does_not_take_leaves_nothing(broker: Broker, polkit: Polkit) -> None:
    """Neither of the broker nor in QEMU; and of a machine that has something, that stays."""
    disk = "<interface type='user'><boot order='1'/></interface>"

    async def run() -> None:
        async with machine(devices=disk) as vm:
            before = await backends(vm)
            for held in ([], [("tap0",)]):
                with pytest.raises(QemuError, match="QEMU does not take") as caught:
                    await vm.attach(
                        nic(boot_order=1, driver=NicDriver(queues=2)), interactive=False
                    )
                assert "bootindex 1" in caught.value.evidence
                assert await leases() == held
                assert queues_open(vm) == len(held)
                assert await backends(vm) == before
                await vm.attach(nic(), interactive=False)
                before = await backends(vm)

    asyncio.run(run())


def test_vhost_that_is_insisted_on_is_an_error_where_there_is_none(
    broker: Broker, polkit: Polkit
) -> None:
    """As in the laboratory, whose kernel has none; where nobody insists it is QEMU's work."""
    wanted = nic(driver=NicDriver(name=NicBackend.VHOST))

    async def run() -> None:
        async with machine() as vm:
            with pytest.raises(NotFoundError, match="interface 0 is to have vhost"):
                await vm.attach(wanted, interactive=False)
            assert await leases() == []
            assert queues_open(vm) == 0
        cold = parse_domain(XML.format(machine="q35", boot="", devices="", memory=64)).value
        vm = VirtualMachine(dataclasses.replace(cold, interfaces=(wanted,)))
        with pytest.raises(NotFoundError, match="interface 0 is to have vhost"):
            await vm.start()
        await no_lease()

    asyncio.run(run())


def test_a_user_mode_network_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "find_passt", lambda capabilities: None)

    async def run() -> None:
        async with machine() as vm:
            name = await vm.attach(nic(type=InterfaceType.USER, network=None))
            assert any(one.startswith("hostnet0") for one in await backends(vm))
            with pytest.raises(DeadlineError):
                await vm.detach(name, patience=0.1)
            await leave(vm, name)
            assert await backends(vm) == []

    asyncio.run(run())


def test_a_helpers_socket_is_qemus_and_ends_with_the_interface(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "helper"
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setattr(network, "find_passt", lambda capabilities: str(program))

    before = children()

    async def run() -> None:
        async with machine() as vm:
            name = await vm.attach(nic(type=InterfaceType.USER, network=None))
            await vm.attach(nic(type=InterfaceType.USER, network=None))
            assert len(children() - before) == 3
            await leave(vm, name)
            assert len(children() - before) == 2
        assert children() == before

    asyncio.run(run())


def children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return set(file.read().split())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that come and go, with a real QEMU: ports, ids, events, and the hold that goes over QMP.

There is no VFIO here, so QEMU is told to make a card of its own in the place of the host's, and the
broker is one that says yes. ``tests/host/inside/test_pci_hotplug.py`` has real devices.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest

from lab.ejecting import boot_sector
from sessionvirt.broker_client import BrokerClient
from sessionvirt.broker_data import Lease, PciGrant
from sessionvirt.descriptors import Fd
from sessionvirt.driver.domain import VirtualMachine
from sessionvirt.errors import DeadlineError, QemuError, StateError
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.hostdev import Hostdev, HostPlace
from sessionvirt.qemu import command_hostdevs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sessionvirt.broker_requests import PciRequest
    from sessionvirt.qemu.pci import Place

pytestmark = pytest.mark.qemu

XML = """\
<domain type='qemu'>
  <name>test</name><memory unit='MiB'>64</memory>
  <os><type machine='{machine}'>hvm</type></os>
  <features><acpi/></features>
  <devices>{devices}</devices>
</domain>
"""


class Broker:
    """Says yes; its hold is a pipe's."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.released: list[str] = []
        self.reader = -1
        self._count = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    def _grant(self, request: PciRequest) -> PciGrant:
        self._count += 1
        name, members = f"pci{self._count - 1}", (request.address,)
        return PciGrant(name, "pci", (), request.address, "", 1, members, "", "vfio-pci", "")

    async def acquire(self, requests: Sequence[PciRequest], vm: str, *, interactive: bool) -> Lease:
        self.close()
        self.reader, writer = os.pipe()
        return Lease("/lease", Fd(writer), tuple(map(self._grant, requests)))

    async def add(
        self, lease: str, requests: Sequence[PciRequest], *, interactive: bool
    ) -> tuple[PciGrant, ...]:
        return tuple(map(self._grant, requests))

    async def lock_memory(self, lease: str, process: int, amount: int) -> None:
        pass

    async def leases(self) -> list[SimpleNamespace]:
        grants = [SimpleNamespace(id=f"pci{number}") for number in range(self._count)]
        return [SimpleNamespace(lease="/lease", grants=grants)]

    async def drop(self, lease: str, grants: Sequence[str]) -> None:
        self.dropped += grants

    async def release(self, lease: str) -> None:
        self.released.append(lease)

    def close(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1

    def held(self) -> bool:
        """Whether anybody has the hold open."""
        os.set_blocking(self.reader, False)
        try:
            return os.read(self.reader, 1) != b""
        except BlockingIOError:
            return True


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Broker]:
    """The only broker; and QEMU's own card in the place of each device."""
    made = Broker()

    async def connect(address: str | None = None) -> Any:
        return made

    def plug(hostdev: Hostdev, name: str, place: Place) -> dict[str, object]:
        driver = "no-such-card" if hostdev.host.bus == 0xFF else "e1000e"
        return {"driver": driver, "id": name, "bus": place.bus, "addr": place.addr}

    monkeypatch.setattr(BrokerClient, "connect", connect)
    monkeypatch.setattr(command_hostdevs, "hostdev_plug", plug)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield made
    made.close()


@contextlib.asynccontextmanager
async def machine(kind: str = "q35", *, guest: Path | None = None) -> Any:
    """One whose CPUs are halted, without a guest, or with one on a disk that runs."""
    disk = f"<disk type='file'><source file='{guest}'/><target dev='sda'/></disk>" if guest else ""
    domain = parse_domain(XML.format(machine=kind, devices=disk)).value
    async with asyncio.timeout(60), VirtualMachine(domain) as vm:
        await vm.start(paused=guest is None)
        yield vm


def device(bus: int = 2) -> Hostdev:
    return Hostdev(managed=True, source=HostPlace(bus=bus, slot=0))


async def query_buses(vm: VirtualMachine) -> dict[str, str]:
    """Which bus each device with an id of ours is on, as QEMU tells."""
    monitor = vm._active_monitor()
    rows: Any = await monitor.execute("qom-list", {"path": "/machine/peripheral"})
    found: dict[str, str] = {}
    for name in sorted(row["name"] for row in rows if row["name"].startswith("hostdev")):
        question = {"path": f"/machine/peripheral/{name}", "property": "parent_bus"}
        found[name] = str(await monitor.execute("qom-get", question))
    return found


@pytest.mark.parametrize("kind", ["q35", "pc"])
def test_a_device_comes_and_goes(broker: Broker, kind: str) -> None:
    """The guest answers never; a reset takes out what was asked for, and is a late answer."""

    async def run() -> None:
        async with machine(kind) as vm:
            assert vm.devices == ()
            names = [await vm.attach(device(bus), interactive=False) for bus in (2, 3)]
            assert names == ["hostdev0", "hostdev1"]
            buses = await query_buses(vm)
            assert set(buses) == set(names)
            assert kind == "pc" or len(set(buses.values())) == 2
            with pytest.raises(DeadlineError, match="has not let go of hostdev0"):
                await vm.detach("0000:02:00.0", patience=0.3)
            with pytest.raises(DeadlineError):
                await vm.detach("hostdev0", patience=0.3)
            assert [one.id for one in vm.devices] == names
            leaving = asyncio.ensure_future(vm.detach("hostdev0", patience=20))
            await asyncio.sleep(0.1)
            await vm._active_monitor().execute("system_reset")
            await leaving
            assert [one.id for one in vm.devices] == ["hostdev1"]
            assert set(await query_buses(vm)) == {"hostdev1"}
            assert broker.dropped == ["pci0"]

    asyncio.run(run())


def test_a_guest_lets_go(broker: Broker, tmp_path: Path) -> None:
    """Twice, at the same port (the first is the balloon's); also when it has not booted yet."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(boot_sector().ljust(1 << 20, b"\0"))

    async def run() -> None:
        async with machine(guest=disk) as vm:
            for number in range(2):
                name = await vm.attach(device(), interactive=False)
                assert set((await query_buses(vm)).values()) == {"/machine/peripheral/pci.2/pci.2"}
                await vm.detach(name)
                assert vm.devices == ()
                assert await query_buses(vm) == {}
                assert broker.dropped[number:] == [f"pci{number}"]

    asyncio.run(run())


def test_as_many_as_there_are_spare_ports_and_again(broker: Broker) -> None:
    async def run() -> None:
        async with machine() as vm:
            for bus in range(4):
                await vm.attach(device(bus), interactive=False)
            assert len(set((await query_buses(vm)).values())) == 4

    asyncio.run(run())


def test_the_hold_is_qemus_alone(broker: Broker) -> None:
    """Over the monitor's socket, since QEMU was started without; it ends with QEMU."""

    async def run() -> None:
        async with machine() as vm:
            await vm.attach(device(), interactive=False)
            assert broker.held()
            await vm.resume()
            assert broker.held()
        assert not broker.held()

    asyncio.run(run())


def test_what_qemu_does_not_take_is_given_back(broker: Broker) -> None:
    async def run() -> None:
        async with machine() as vm:
            with pytest.raises(QemuError) as caught:
                await vm.attach(device(0xFF), interactive=False)
            assert caught.value.cause == "QEMU does not take 0000:ff:00.0"
            assert "'no-such-card' is not a valid device model name" in caught.value.evidence
            assert broker.released == ["/lease"]
            assert not broker.held()
            assert vm.devices == ()
            await vm.attach(device(), interactive=False)
            with pytest.raises(QemuError):
                await vm.attach(device(0xFF), interactive=False)
            assert broker.dropped == ["pci2"]

    asyncio.run(run())


def test_only_a_machine_that_runs_has_devices_that_come_and_go(broker: Broker) -> None:
    async def run() -> None:
        vm = VirtualMachine(parse_domain(XML.format(machine="q35", devices="")).value)
        with pytest.raises(StateError, match="cannot attach a device: the domain is defined"):
            await vm.attach(device())
        with pytest.raises(StateError, match="cannot detach a device: the domain is defined"):
            await vm.detach("hostdev0")
        async with machine() as running:
            await running.attach(device(), interactive=False)
            leaving = asyncio.ensure_future(running.detach("hostdev0"))
            await asyncio.sleep(0.1)
            await running.kill()
            with pytest.raises(StateError, match="QEMU ended before the guest had let go"):
                await leaving
            assert running.devices == ()
            with pytest.raises(StateError):
                await running.attach(device())

    asyncio.run(run())

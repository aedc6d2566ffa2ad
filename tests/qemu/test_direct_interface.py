# SPDX-License-Identifier: LGPL-2.1-or-later
"""An interface of the host's that a machine shares: the real broker, and QEMU with macvtaps."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.direct import wired
from sessionvirt.broker_client import BrokerClient
from sessionvirt.broker_data import TapGrant
from sessionvirt.driver.domain import VirtualMachine
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.interface import DirectMode, Interface, InterfaceType, NicModel
from sessionvirt.model.nic import NicDriver

if TYPE_CHECKING:
    from pathlib import Path

    from lab.broker import Broker
    from lab.polkit import Polkit
    from lab.users import User

pytestmark = pytest.mark.qemu

XML = """\
<domain type='qemu'>
  <name>test</name><memory unit='MiB'>64</memory>
  <os><type machine='q35'>hvm</type></os><features><acpi/></features>
  <devices>
    <interface type='direct'><source dev='wire0' mode='private'/><model type='e1000e'/></interface>
  </devices>
</domain>
"""


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def open_nodes(vm: VirtualMachine) -> list[str]:
    """The macvtap nodes that QEMU has open."""
    directory = f"/proc/{vm.pid}/fd"
    links = [os.readlink(f"{directory}/{number}") for number in os.listdir(directory)]
    return sorted(link for link in links if link.startswith("/dev/tap"))


async def held() -> list[tuple[str, str, str]]:
    """What the leases have, by the broker."""
    async with await BrokerClient.connect() as client:
        grants = [grant for lease in await client.leases() for grant in lease.grants]
        taps = [grant for grant in grants if isinstance(grant, TapGrant)]
        return [(grant.id, grant.device, grant.mode) for grant in taps]


def test_a_machine_starts_with_one_and_gets_another(broker: Broker, polkit: Polkit) -> None:
    broker.configure("[direct.wire0]\n")

    async def run() -> None:
        async with asyncio.timeout(60), VirtualMachine(parse_domain(XML).value) as vm:
            await vm.start(paused=True)
            (mine,) = vm.interfaces
            assert mine.tap is not None
            assert open_nodes(vm) == [f"/dev/tap{mine.tap.ifindex}"]
            assert host.link(mine.tap.ifname)["address"] == mine.mac
            nic = Interface(
                type=InterfaceType.DIRECT,
                device="wire0",
                mode=DirectMode.BRIDGE,
                model=NicModel.VIRTIO,
                driver=NicDriver(queues=2),
            )
            name = await vm.attach(nic, interactive=False)
            other = vm.interfaces[1].tap
            assert other is not None
            assert open_nodes(vm).count(f"/dev/tap{other.ifindex}") == 2
            assert await held() == [("direct0", "wire0", "private"), ("direct1", "wire0", "bridge")]
            leaving = asyncio.ensure_future(vm.detach(name, patience=30))
            await asyncio.sleep(0.1)
            await vm._active_monitor().execute("system_reset")
            await leaving
            # It does not end with its descriptors: the driver gave it back.
            assert host.link(other.ifname) == {}
            assert open_nodes(vm) == [f"/dev/tap{mine.tap.ifindex}"]
            assert await held() == [("direct0", "wire0", "private")]

    with wired("wire0"):
        asyncio.run(run())
        broker.wait_until_idle()
        assert host.ours() == []


def test_a_plan_names_the_steps_and_who_would_be_asked(
    alice: User, broker: Broker, polkit: Polkit
) -> None:
    broker.configure("[direct.wire0]\n")
    definition = str(alice.write("guest.xml", XML))
    with wired("wire0"):
        done = alice.run(["sessionvirt", "plan", "--json", definition])
        plan = json.loads(done.stdout)
        assert plan["verdict"] in ("ask", "no"), done.stderr
        does = [step["do"] for step in plan["steps"]]
        assert does[0] == "create the nft table netdev sessionvirt"
        assert any("on wire0, mode private" in step for step in does)
        assert host.ours() == []
        polkit.answer("org.sessionvirt.broker1.direct-attach", "yes", user="alice")
        done = alice.run(["sessionvirt", "plan", "--json", definition])
        assert json.loads(done.stdout)["verdict"] == "yes"
        done = alice.run(["sessionvirt", "networks"])
        assert [line.split()[:4] for line in done.stdout.splitlines() if "wire0" in line] == [
            ["wire0", "direct", "bridge,private,vepa", "wire0"]
        ]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A broker and a QEMU at their borders: what is said to them, and what they answer."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

from golden.cases import BINARY
from sessionvirt.broker_data import BandwidthGrant, Lease, LeaseInfo, PciGrant, TapGrant
from sessionvirt.broker_requests import BandwidthRequest, PciRequest, TapRequest
from sessionvirt.descriptors import Fd
from sessionvirt.driver.hotplug import HotPlug
from sessionvirt.model.domain import Domain, parse_domain
from sessionvirt.model.interface import host_devices
from sessionvirt.qemu.pci import Place
from sessionvirt.qemu.qmp import Event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from sessionvirt.broker_data import Grant
    from sessionvirt.broker_requests import Request
    from sessionvirt.driver.network import Joined
    from sessionvirt.qemu.process import Child
    from sessionvirt.qemu.qmp import Monitor

__all__ = ["DELETED", "MANY", "World", "live", "turns"]

XML = """\
<domain type='qemu'>
  <name>vm</name><memory unit='MiB'>64</memory>
  <devices>{}</devices>
</domain>
"""
MANY = 3
DELETED = "DEVICE_DELETED"
PORTS = tuple(Place(f"pci.{bus}", bus, 0) for bus in range(3, 3 + MANY))


class World:
    """A broker and a QEMU: what each was told, in order, and which words are answered by what."""

    def __init__(
        self,
        devices: str = "",
        *,
        leased: bool = True,
        joined: Sequence[Joined] = (),
        vhost: bool = False,
        places: Sequence[Place] = PORTS,
    ) -> None:
        self.said: list[str] = []
        self.fails: dict[str, BaseException] = {}
        self.waits: dict[str, asyncio.Event] = {}
        self.amounts: list[int] = []
        self.requests: list[Request] = []
        self.plugged: list[Mapping[str, object]] = []
        self.backends: list[Mapping[str, object]] = []
        self.links: list[tuple[str, bool]] = []
        #: By the name that QEMU knows them by: which file.
        self.given: dict[str, str] = {}
        #: Of what the broker gave, until it is closed here.
        self.fds: list[Fd] = []
        self.mtu = 1500
        self.paths: list[str] = ["/lease"] if leased else []
        self.granted: dict[str, Grant] = {}
        #: So many limits were given so far.
        self.limits = 0
        self.returncode: int | None = None
        self.domain: Domain = parse_domain(XML.format(devices)).value
        lease = None
        if leased:
            grants = tuple(self._grant(str(one.host)) for one in host_devices(self.domain))
            lease = Lease("/lease", Fd(os.open(os.devnull, os.O_RDONLY)), grants)
            lease.close()
        me = cast("Any", self)
        self.hotplug = HotPlug(
            self.domain,
            cast("Monitor", SimpleNamespace(execute=self.execute, give=self.give)),
            cast("Child", me),
            lease,
            joined=joined,
            free=places,
            capabilities=BINARY,
            vhost=vhost,
            with_group=False,
            broker=self.connect,
        )

    async def _say(self, what: str) -> None:
        self.said.append(what)
        verb = what.partition(" ")[0]
        if verb in self.waits:
            await self.waits[verb].wait()
        else:
            await asyncio.sleep(0)
        if (error := self.fails.get(verb)) is not None:
            raise error

    # QEMU

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        given = dict(arguments or {})
        which = given.get("id") or given.get("fdname") or given.get("name")
        await self._say(f"{command} {which}")
        if command == "set_link":
            self.links.append((str(given["name"]), given["up"] is True))
        if command == "netdev_add":
            self.backends.append(given)
        if command == "device_add":
            self.plugged.append(given)
        return {}

    async def give(self, fd: int, name: str) -> None:
        self.given[name] = os.readlink(f"/proc/self/fd/{fd}")
        await self._say(f"getfd {name}")

    def duplicate_pidfd(self) -> Fd:
        if self.returncode is not None:
            raise ValueError("reaped")
        return Fd(os.pidfd_open(os.getpid()))

    def see(self, name: str, device: str) -> None:
        self.hotplug.see(Event(name, {"device": device, "path": f"/machine/peripheral/{device}"}))

    # the broker

    async def connect(self) -> Any:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    def _grant(self, address: str) -> PciGrant:
        name = f"pci{len(self.granted)}"
        grant = PciGrant(name, "pci", (), address, "", 1, (address,), "", "vfio-pci", "e1000e")
        self.granted[name] = grant
        return grant

    def _answer(self, request: Request) -> Grant:
        if isinstance(request, PciRequest):
            return self._grant(request.address)
        if isinstance(request, BandwidthRequest):
            name = f"bandwidth{self.limits}"
            self.limits += 1
            limit = BandwidthGrant(
                name, "bandwidth", request.tap, request.inbound, request.outbound
            )
            self.granted[name] = limit
            return limit
        assert isinstance(request, TapRequest)
        name = f"tap{len(self.granted)}"
        queues = [self._fd("/dev/null") for _ in range(request.queues)]
        vhost = [self._fd("/dev/zero") for _ in range(request.queues if request.vhost else 0)]
        grant = self.granted[name] = TapGrant(
            id=name,
            kind="tap",
            fds=tuple(queues),
            ifindex=7,
            mac=request.mac or f"5a:00:00:00:00:{len(self.granted):02x}",
            mtu=self.mtu,
            network=request.network or "",
            bridge=request.bridge or "",
            ipv4=("10.213.80.9",),
            ipv6=(),
            vlan=request.vlan or 0,
            vhost_fds=tuple(vhost),
            vhost=bool(vhost),
            ifname=f"svt{len(self.granted):012x}",
            altname=request.name or "",
        )
        return grant

    def _fd(self, path: str) -> Fd:
        self.fds.append(Fd(os.open(path, os.O_RDWR)))
        return self.fds[-1]

    async def add(
        self, lease: str, requests: Sequence[Request], *, interactive: bool
    ) -> tuple[Grant, ...]:
        self.requests += requests
        await self._say(f"add {'may ask' if interactive else 'asks nobody'}")
        return tuple(self._answer(one) for one in requests)

    async def acquire(self, requests: Sequence[Request], vm: str, *, interactive: bool) -> Lease:
        await self._say(f"acquire {vm}")
        self.paths.append("/another")
        grants = tuple(self._answer(one) for one in requests)
        return Lease("/another", Fd(os.open(os.devnull, os.O_RDONLY)), grants)

    async def lock_memory(self, lease: str, process: int, amount: int) -> None:
        assert os.readlink(f"/proc/self/fd/{process}").startswith("anon_inode:")
        self.amounts.append(amount)
        await self._say(f"lock {lease}")

    async def drop(self, lease: str, grants: Sequence[str]) -> None:
        await self._say(f"drop {lease} {' '.join(grants)}")
        for name in grants:
            self.granted.pop(name)

    async def release(self, lease: str) -> None:
        await self._say(f"release {lease}")

    async def leases(self) -> list[LeaseInfo]:
        grants = tuple(self.granted.values())
        return [LeaseInfo(path, "vm", 1000, "held", 0, "yes", grants, {}, 0) for path in self.paths]


def live(world: World, use: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(20):
            await use()
            await world.hotplug.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not others

    asyncio.run(run())


async def turns() -> None:
    """Let everything go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)

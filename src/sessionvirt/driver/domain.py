# SPDX-License-Identifier: LGPL-2.1-or-later
"""One virtual machine, from its definition to its end. This is also the way to embed one::

    from sessionvirt.driver.domain import VirtualMachine
    from sessionvirt.model.domain import parse_domain

    async with VirtualMachine(parse_domain(xml).value) as vm:
        await vm.start()
        print(await vm.wait())

QEMU is a child of the program that does this: in its cgroup, namespaces, affinity and process
group, and dead when the program is (``bound``). Everything of a run is in one exit stack; what
QEMU inherits is closed here as soon as it has been spawned, so that the broker's hold is QEMU's
alone. A machine with a device of the host is spawned and held back until the broker has let it lock
its memory.

The state is an enum with one setter. A start that fails goes back to where it came from with
nothing left; whatever way a run ends, :meth:`VirtualMachine.wait` says how.

What this never does: print, log above debug, touch the terminal, ask the broker for a domain that
needs nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from typing import TYPE_CHECKING, Final, Self

from sessionvirt.errors import StateError
from sessionvirt.model.memory_lock import lock_limit
from sessionvirt.qemu import capabilities as qemu_capabilities
from sessionvirt.qemu.launch import connect_monitor, monitor_pair
from sessionvirt.qemu.process import Child
from sessionvirt.qemu.wiring import Accelerator, Wiring
from sessionvirt.states import INACTIVE, DomainState, check, require

from .hotplug import HostDevice, HotPlug
from .interfaces import NetworkInterface
from .lease import broker_requests, connect_broker, let_lock_memory
from .network import connect
from .outcome import Outcome, Witness
from .settings import Settings, choose_accelerator, on_stdio

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sessionvirt.broker_data import PublishGrant
    from sessionvirt.broker_requests import Rate
    from sessionvirt.host.kvm import Kvm
    from sessionvirt.model.domain import Domain
    from sessionvirt.model.filter import GuestFilter
    from sessionvirt.model.interface import HostPci
    from sessionvirt.model.portforward import Ports
    from sessionvirt.qemu.capabilities import Capabilities
    from sessionvirt.qemu.command import Command
    from sessionvirt.qemu.qmp import Event, Monitor

    from .network import Network

__all__ = ["HostDevice", "NetworkInterface", "Settings", "VirtualMachine"]

#: Seconds for QEMU to answer after it was spawned. Generous: big guests zero their memory first.
_LAUNCH_PATIENCE: Final = 60.0
#: Seconds for QEMU to end after SIGTERM, in which it flushes disks.
_KILL_PATIENCE: Final = 5.0
#: Seconds for what QEMU said last to be read after its end.
_DRAIN_PATIENCE: Final = 2.0

_ACTIVE: Final = (DomainState.RUNNING, DomainState.PAUSED, DomainState.STOPPING)


class VirtualMachine:
    """One virtual machine; an async context manager that leaves nothing of it.

    Belongs to the event loop it is used in. The thread of that loop has to outlive a bound QEMU.

    :param changed: called with every new state.
    """

    def __init__(
        self,
        domain: Domain,
        settings: Settings | None = None,
        *,
        changed: Callable[[DomainState], None] | None = None,
    ) -> None:
        self.domain = domain
        self.settings = settings or Settings()
        #: What was found out about KVM at the last start; None where it was not asked.
        self.kvm: Kvm | None = None
        #: What the broker gave at the last start; the descriptors in it are QEMU's.
        self.network: Network | None = None
        self._changed = changed
        self._state = DomainState.DEFINED
        self._resources = contextlib.AsyncExitStack()
        self._witness = Witness()
        self._child: Child | None = None
        self._monitor: Monitor | None = None
        self._hotplug: HotPlug | None = None
        self._command: Command | None = None
        self._run: asyncio.Task[Outcome] | None = None

    @property
    def state(self) -> DomainState:
        """Where the machine is in its life."""
        return self._state

    @property
    def pid(self) -> int | None:
        """QEMU's process id while it runs."""
        return None if self._child is None else self._child.pid

    @property
    def command(self) -> tuple[str, ...]:
        """QEMU's argv at the last start; empty before the first."""
        return () if self._command is None else self._command.argv

    @property
    def devices(self) -> tuple[HostDevice, ...]:
        """The devices of the host that the machine has now, whether from its start or since."""
        return () if self._hotplug is None else self._hotplug.devices

    @property
    def interfaces(self) -> tuple[NetworkInterface, ...]:
        """The interfaces that the machine has now, likewise."""
        return () if self._hotplug is None else self._hotplug.interfaces

    def _set_state(self, state: DomainState) -> None:
        """The only writer of the state."""
        if state is self._state:
            return
        check(self._state, state)
        self._state = state
        if self._changed is not None:
            self._changed(state)

    # --- start

    async def start(self, *, paused: bool = False) -> None:
        """Start QEMU and, unless ``paused``, the guest.

        On failure the state is what it was, and nothing is left.

        :raise StateError: it runs already.
        :raise LaunchError: QEMU did not come up.
        :raise SessionvirtError: whatever the broker says.
        """
        require(self._state, *INACTIVE, what="start")
        origin = self._state
        self._set_state(DomainState.PREPARING)
        try:
            async with contextlib.AsyncExitStack() as stack:
                monitor, child, hotplug = await self._launch(stack)
                if not paused:
                    await monitor.execute("cont")
                self._resources = stack.pop_all()
        except BaseException:
            self._set_state(origin)
            raise
        self._monitor, self._child, self._hotplug = monitor, child, hotplug
        self._witness = Witness()
        self._set_state(DomainState.PAUSED if paused else DomainState.RUNNING)
        self._run = asyncio.create_task(self._watch(monitor, child), name="sessionvirt-run")

    async def _launch(self, stack: contextlib.AsyncExitStack) -> tuple[Monitor, Child, HotPlug]:
        """Spawn QEMU with everything it inherits, and wait for its monitor."""
        settings, domain = self.settings, self.domain
        if settings.console is not None:
            domain = on_stdio(domain)
        capabilities, accelerator = await self._survey(domain)
        requests = broker_requests(
            domain,
            with_group=settings.pci_with_group,
            fds=capabilities.takes_iommufd,
            vhost=accelerator is Accelerator.KVM,
            lists=settings.lists,
        )
        if requests:
            from .rehearsal import rehearse

            rehearse(domain, capabilities, accelerator)
        with contextlib.ExitStack() as handed_over:
            self.network = await connect(
                domain,
                capabilities,
                requests,
                resources=stack,
                handed_over=handed_over,
                vhost=accelerator is Accelerator.KVM,
                interactive=settings.interactive,
                bus_address=settings.bus_address,
            )
            ours, theirs = monitor_pair()
            handed_over.enter_context(theirs)
            # Closed twice is harmless; the monitor owns it once it has been tried.
            stack.callback(ours.close)
            hostdevs = self.network.hostdevs
            wiring = Wiring(theirs.fileno(), accelerator, self.network.wirings, hostdevs)
            child = self._spawn(domain, capabilities, wiring, self.network)
            await stack.enter_async_context(child)
        if self.network.lease is not None and (amount := lock_limit(domain)):
            lease = self.network.lease.path
            await let_lock_memory(child, lease, amount, settings.bus_address)
        child.release()
        self._set_state(DomainState.STARTING)
        monitor = await connect_monitor(child, ours, _LAUNCH_PATIENCE)
        await stack.enter_async_context(monitor)
        self.network.check()
        await self._settle(domain, capabilities, monitor)
        hotplug = HotPlug(
            domain,
            monitor,
            child,
            self.network.lease,
            joined=self.network.joined,
            free=() if self._command is None else self._command.free,
            capabilities=capabilities,
            vhost=accelerator is Accelerator.KVM,
            with_group=settings.pci_with_group,
            lists=settings.lists,
            broker=lambda: connect_broker(settings.bus_address),
        )
        return monitor, child, hotplug

    async def _survey(self, domain: Domain) -> tuple[Capabilities, Accelerator]:
        """Find QEMU, what it can do, and what runs the guest."""
        arch = domain.os.arch if domain.os is not None else None
        binary = self.settings.binary or domain.emulator or qemu_capabilities.find_binary(arch)
        capabilities = await qemu_capabilities.load(binary)
        accelerator, self.kvm = self.settings.accelerator, None
        if accelerator is None:
            accelerator, self.kvm = choose_accelerator(domain)
        return capabilities, accelerator

    def _spawn(
        self, domain: Domain, capabilities: Capabilities, wiring: Wiring, network: Network
    ) -> Child:
        """Start QEMU, held back where it has to be let lock memory first."""
        # Half of the time that a start takes is imports; this one is needed here only.
        from sessionvirt.qemu.command import build

        settings = self.settings
        command = build(domain, capabilities, wiring)
        self._command = command
        console = subprocess.DEVNULL if settings.console is None else settings.console
        return Child.spawn(
            command.argv,
            environment=dict(command.environment),
            pass_fds=(*wiring.passed_fds, *network.hold_fds),
            bound=settings.bound,
            held=lock_limit(domain) > 0,
            own_group=settings.own_group,
            stdin=console,
            stdout=console,
        )

    async def _settle(self, domain: Domain, capabilities: Capabilities, monitor: Monitor) -> None:
        """Say what the command line could not, before the guest runs."""
        from sessionvirt.qemu.command import preparations

        if monitor.version != capabilities.version:
            qemu_capabilities.forget(capabilities.binary)
        for name, arguments in preparations(domain):
            await monitor.execute(name, arguments)

    # --- run

    async def _watch(self, monitor: Monitor, child: Child) -> Outcome:
        """See the run to its end, and clean up after it."""
        events = asyncio.create_task(self._follow(monitor), name="sessionvirt-events")
        try:
            code = await child.wait()
            # QEMU's last words are still in the socket.
            await monitor.ended(_DRAIN_PATIENCE)
        finally:
            events.cancel()
            await asyncio.wait((events,))
        for event in monitor.pending_events():
            self._see(event)
        if self._hotplug is not None:
            await self._hotplug.close()
        await self._resources.aclose()
        self._monitor = self._child = self._hotplug = None
        outcome = self._witness.outcome(code, child.stderr)
        self._set_state(outcome.state)
        return outcome

    async def _follow(self, monitor: Monitor) -> None:
        while True:
            self._see(await monitor.next_event())

    def _see(self, event: Event) -> None:
        self._witness.see(event)
        if self._hotplug is not None:
            self._hotplug.see(event)
        if self._state is DomainState.STOPPING:
            return
        match event.name:
            case "SHUTDOWN":
                self._set_state(DomainState.STOPPING)
            case "STOP":
                self._set_state(DomainState.PAUSED)
            case "RESUME":
                self._set_state(DomainState.RUNNING)

    async def pause(self) -> None:
        """Stop the guest's CPUs.

        :raise QemuError: QEMU refuses.
        """
        require(self._state, DomainState.RUNNING, what="pause")
        await self._active_monitor().execute("stop")
        if self._state is DomainState.RUNNING:
            self._set_state(DomainState.PAUSED)

    async def resume(self) -> None:
        """Let the guest's CPUs run.

        :raise QemuError: QEMU refuses.
        """
        require(self._state, DomainState.PAUSED, what="resume")
        await self._active_monitor().execute("cont")
        if self._state is DomainState.PAUSED:
            self._set_state(DomainState.RUNNING)

    async def attach(self, device: HostPci, *, interactive: bool | None = None) -> str:
        """Give the running machine a device of the host, or an interface; on failure nothing of it
        is left. The definition stays as it is: the next start has what that says.

        Cancelled, it is undone; only once QEMU makes the device, the machine has it.

        :param interactive: the broker may show a prompt; by default as the settings say.
        :return: its id.
        :raise StateError: the machine does not run.
        :raise SessionvirtError: as :meth:`.hotplug.HotPlug.attach` says.
        """
        asks = self.settings.interactive if interactive is None else interactive
        return await self._plugs("attach a device").attach(device, interactive=asks)

    async def detach(self, which: str, *, patience: float = 30.0) -> None:
        """Take a device of the host or an interface from the machine: the guest is asked to let go.

        :param which: its id, its address on the host, or its MAC address.
        :param patience: seconds for the guest.
        :raise DeadlineError: it has not; the device goes back as soon as it does.
        :raise StateError: the machine does not run.
        :raise SessionvirtError: as :meth:`.hotplug.HotPlug.detach` says.
        """
        await self._plugs("detach a device").detach(which, patience)

    async def set_link(self, which: str, *, up: bool) -> None:
        """Plug an interface's cable in, or pull it out; the guest sees it.

        :param which: its id, or its MAC address.
        :raise StateError: the machine does not run.
        :raise SessionvirtError: as :meth:`.hotplug.HotPlug.set_link` says.
        """
        await self._plugs("change a link").set_link(which, up=up)

    async def set_bandwidth(
        self,
        which: str,
        *,
        inbound: Rate | None,
        outbound: Rate | None,
        interactive: bool | None = None,
    ) -> None:
        """Limit what an interface receives and sends in a second, from now on. No connection of the
        guest's is lost by it. The definition stays as it is.

        :param which: its id, or its MAC address.
        :param inbound: None: as much as comes; likewise ``outbound``.
        :param interactive: the broker may show a prompt; by default as the settings say.
        :raise StateError: the machine does not run.
        :raise SessionvirtError: as :meth:`.hotplug.HotPlug.set_bandwidth` says.
        """
        asks = self.settings.interactive if interactive is None else interactive
        plugs = self._plugs("limit an interface")
        await plugs.set_bandwidth(which, inbound, outbound, interactive=asks)

    async def set_filter(self, which: str, lists: GuestFilter) -> GuestFilter:
        """Put these lists in place of what an interface's guest may not, without a moment between
        and without an end of its connections. What a ``<filterref>`` forbids stays.

        :param which: its id, or its MAC address.
        :param lists: ``GuestFilter()``: none any more.
        :return: what holds now.
        :raise StateError: the machine does not run.
        :raise NotFoundError: it has no such interface of the broker's.
        :raise SessionvirtError: whatever the broker says; the former lists hold then.
        """
        return await self._plugs("change a filter").set_filter(which, lists)

    async def publish(
        self, *ports: Ports, interface: str | None = None, interactive: bool | None = None
    ) -> tuple[PublishGrant, ...]:
        """Have ports of the host lead to the running machine; all or none. They do until
        :meth:`unpublish`, or the interface goes.

        :param ports: :func:`sessionvirt.model.portforward.read_ports` reads them from a word.
        :param interface: its id or MAC address, or its number; by default the first on a managed
            network.
        :param interactive: as of :meth:`attach`.
        :raise StateError: the machine does not run.
        :raise SessionvirtError: as :meth:`.hotplug.HotPlug.publish` says.
        """
        asks = self.settings.interactive if interactive is None else interactive
        return await self._plugs("publish ports").publish(ports, interface, interactive=asks)

    async def unpublish(self, *ports: Ports) -> None:
        """Have ports lead there no longer. Connections that there are go on.

        :raise StateError: the machine does not run.
        :raise NotFoundError: something of it is not published.
        """
        await self._plugs("unpublish ports").unpublish(ports)

    def _plugs(self, what: str) -> HotPlug:
        require(self._state, DomainState.RUNNING, DomainState.PAUSED, what=what)
        assert self._hotplug is not None
        return self._hotplug

    # --- end

    async def wait(self) -> Outcome:
        """Wait for the end of the run, also one that is over.

        :raise StateError: it was never started.
        """
        if self._run is None:
            raise StateError("cannot wait: the domain was never started")
        return await asyncio.shield(self._run)

    async def power_down(self) -> None:
        """Press the guest's power button (ACPI); what it does about it is its own affair.

        :raise QemuError: QEMU refuses.
        """
        require(self._state, DomainState.RUNNING, DomainState.PAUSED, what="power down")
        monitor = self._active_monitor()
        if self._state is DomainState.PAUSED:
            await monitor.execute("cont")
        await monitor.execute("system_powerdown")

    async def stop(self, patience: float) -> Outcome:
        """Ask the guest to power down; after ``patience`` seconds, end QEMU.

        :raise StateError: it does not run.
        """
        require(self._state, *_ACTIVE, what="stop")
        assert self._run is not None
        # A QEMU that ends in the middle of this is what was asked for.
        with contextlib.suppress(Exception):
            await self.power_down()
        await asyncio.wait((self._run,), timeout=patience)
        return await self.kill()

    async def kill(self) -> Outcome:
        """End QEMU, which flushes its disks; after 5 s without a word. Also if it has ended.

        :raise StateError: it was never started.
        """
        if self._child is not None and self._run is not None and not self._run.done():
            self._witness.kill()
            if self._state is not DomainState.STOPPING:
                self._set_state(DomainState.STOPPING)
            await self._child.terminate(_KILL_PATIENCE)
        return await self.wait()

    def _active_monitor(self) -> Monitor:
        if self._monitor is None:
            raise StateError("QEMU has ended")
        return self._monitor

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._run is not None:
            await self.kill()

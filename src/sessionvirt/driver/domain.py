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
alone.

The state is an enum with one setter. A start that fails goes back to where it came from with
nothing left; whatever way a run ends, :meth:`VirtualMachine.wait` says how.

What this never does: print, log above debug, touch the terminal, ask the broker for a domain that
needs nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import subprocess
from typing import TYPE_CHECKING, Final, Self

from sessionvirt.errors import StateError
from sessionvirt.model.devices import CharType, ConsoleTarget
from sessionvirt.model.domain import DomainType
from sessionvirt.qemu import capabilities as qemu_capabilities
from sessionvirt.qemu.launch import connect_monitor, monitor_pair
from sessionvirt.qemu.process import Child
from sessionvirt.qemu.wiring import Accelerator, Wiring
from sessionvirt.states import INACTIVE, DomainState, check, require

from .network import connect, tap_requests
from .outcome import Outcome, Witness

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sessionvirt.host.kvm import Kvm
    from sessionvirt.model.domain import Domain
    from sessionvirt.qemu.qmp import Event, Monitor

    from .network import Network

__all__ = ["Settings", "VirtualMachine", "choose_accelerator", "on_stdio"]

#: Seconds for QEMU to answer after it was spawned. Generous: big guests zero their memory first.
_LAUNCH_PATIENCE: Final = 60.0
#: Seconds for QEMU to end after SIGTERM, in which it flushes disks.
_KILL_PATIENCE: Final = 5.0
#: Seconds for what QEMU said last to be read after its end.
_DRAIN_PATIENCE: Final = 2.0

_ACTIVE: Final = (DomainState.RUNNING, DomainState.PAUSED, DomainState.STOPPING)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a machine is run; what of it is not in the definition.

    :param binary: QEMU; by default the definition's, or the one for its architecture.
    :param accelerator: by default KVM where guests really run under it.
    :param interactive: the broker may show a prompt.
    :param bus_address: of the system bus; by default the usual one.
    :param bound: QEMU dies with this process.
    :param own_group: QEMU is no member of our process group, so that a terminal's ^C is ours alone.
    :param console: a stream socket's descriptor that becomes the first console of type ``pty`` (and
        stdin and stdout of QEMU); it stays the caller's. By default QEMU makes pseudo terminals.
    """

    binary: str | None = None
    accelerator: Accelerator | None = None
    interactive: bool = True
    bus_address: str | None = None
    bound: bool = True
    own_group: bool = False
    console: int | None = None


def choose_accelerator(domain: Domain) -> tuple[Accelerator, Kvm | None]:
    """Decide what runs the guest: KVM where the definition wants it and it works.

    :return: and what was found out about KVM; None where nobody asked.
    """
    if domain.type is DomainType.QEMU:
        return Accelerator.TCG, None
    from sessionvirt.host.kvm import probe

    found = probe()
    return (Accelerator.KVM if found.usable else Accelerator.TCG), found


def on_stdio(domain: Domain) -> Domain:
    """Return the domain with its first console of type ``pty`` on QEMU's stdin and stdout instead.

    A serial port and the console that is its other name change together. Reading a pseudo terminal
    would lose what a guest says last: its buffer is gone when QEMU is.
    """
    serials, consoles = list(domain.serials), list(domain.consoles)
    first_is_serial = bool(consoles) and consoles[0].target is ConsoleTarget.SERIAL
    if serials:
        if serials[0].type is not CharType.PTY:
            return domain
        serials[0] = dataclasses.replace(serials[0], type=CharType.STDIO)
        if first_is_serial:
            consoles[0] = dataclasses.replace(consoles[0], type=CharType.STDIO)
    elif consoles and consoles[0].type is CharType.PTY:
        consoles[0] = dataclasses.replace(consoles[0], type=CharType.STDIO)
    return dataclasses.replace(domain, serials=tuple(serials), consoles=tuple(consoles))


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
        self._command: tuple[str, ...] = ()
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
        return self._command

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
                monitor, child = await self._launch(stack)
                if not paused:
                    await monitor.execute("cont")
                self._resources = stack.pop_all()
        except BaseException:
            self._set_state(origin)
            raise
        self._monitor, self._child, self._witness = monitor, child, Witness()
        self._set_state(DomainState.PAUSED if paused else DomainState.RUNNING)
        self._run = asyncio.create_task(self._watch(monitor, child), name="sessionvirt-run")

    async def _launch(self, stack: contextlib.AsyncExitStack) -> tuple[Monitor, Child]:
        """Spawn QEMU with everything it inherits, and wait for its monitor."""
        # Half of the time that a start takes is imports; this one is needed here only.
        from sessionvirt.qemu.command import build, preparations

        settings, domain = self.settings, self.domain
        if settings.console is not None:
            domain = on_stdio(domain)
        arch = domain.os.arch if domain.os is not None else None
        binary = settings.binary or domain.emulator or qemu_capabilities.find_binary(arch)
        capabilities = await qemu_capabilities.load(binary)
        accelerator, self.kvm = settings.accelerator, None
        if accelerator is None:
            accelerator, self.kvm = choose_accelerator(domain)
        if tap_requests(domain):
            from .rehearsal import rehearse

            rehearse(domain, capabilities, accelerator)
        with contextlib.ExitStack() as handed_over:
            self.network = await connect(
                domain,
                capabilities,
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
            wiring = Wiring(theirs.fileno(), accelerator, self.network.wirings)
            command = build(domain, capabilities, wiring)
            self._command = command.argv
            console = subprocess.DEVNULL if settings.console is None else settings.console
            child = Child.spawn(
                command.argv,
                environment=dict(command.environment),
                pass_fds=(*wiring.passed_fds, *self.network.hold_fds),
                bound=settings.bound,
                own_group=settings.own_group,
                stdin=console,
                stdout=console,
            )
            await stack.enter_async_context(child)
        self._set_state(DomainState.STARTING)
        monitor = await connect_monitor(child, ours, _LAUNCH_PATIENCE)
        await stack.enter_async_context(monitor)
        self.network.check()
        if monitor.version != capabilities.version:
            qemu_capabilities.forget(binary)
        for name, arguments in preparations(domain):
            await monitor.execute(name, arguments)
        return monitor, child

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
        await self._resources.aclose()
        self._monitor = self._child = None
        outcome = self._witness.outcome(code, child.stderr)
        self._set_state(outcome.state)
        return outcome

    async def _follow(self, monitor: Monitor) -> None:
        while True:
            self._see(await monitor.next_event())

    def _see(self, event: Event) -> None:
        self._witness.see(event)
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

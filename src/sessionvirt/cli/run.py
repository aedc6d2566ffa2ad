# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt run``: a virtual machine in the foreground.

stdout is the guest's console and nothing else; every word of ours is on stderr. QEMU has a process
group of its own where there is a terminal, so that ^C reaches this program alone: the first asks
the guest to power down, the second, or ten seconds, ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final, Self

from sessionvirt.driver.domain import Settings, VirtualMachine
from sessionvirt.driver.lease import broker_requests
from sessionvirt.driver.outcome import Ending
from sessionvirt.host.kvm import KvmVerdict
from sessionvirt.model.devices import CharType
from sessionvirt.states import DomainState

from . import status
from .agent import terminal_agent
from .console import ConsoleCopy, raw_terminal
from .definition import lists_of, load_domain
from .output import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine

    from sessionvirt.driver.outcome import Outcome
    from sessionvirt.model.domain import Domain
    from sessionvirt.model.filter import GuestFilter

__all__ = ["main"]

#: Seconds that a guest has to power down before it is ended.
_POWER_DOWN_PATIENCE: Final = 10.0
#: Seconds for a console that is slow to take the guest's last words.
_CONSOLE_PATIENCE: Final = 5.0


class _InterruptedError(Exception):
    """A signal came before the machine ran."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


def main(args: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    domain, lists = load_domain(args), lists_of(args)
    try:
        return asyncio.run(_main(args, domain, lists))
    except _InterruptedError as interruption:
        return status.SIGNAL + interruption.number


async def _main(args: argparse.Namespace, domain: Domain, lists: GuestFilter) -> int:
    ours, theirs = socket.socketpair()
    wanted = args.console and _has_console(domain)
    with ours, theirs:
        settings = Settings(
            interactive=not args.no_ask_password,
            pci_with_group=args.with_group,
            own_group=sys.stdin.isatty(),
            console=theirs.fileno() if wanted else None,
            lists=lists,
        )
        async with VirtualMachine(domain, settings) as vm:
            with _Run(vm, quiet=args.quiet) as run:
                await _start(vm, args, run)
                theirs.close()
                return await run.finish(ours if wanted else None, args.timeout)


async def _start(vm: VirtualMachine, args: argparse.Namespace, run: _Run) -> None:
    asks = bool(broker_requests(vm.domain)) and not args.no_ask_password
    async with terminal_agent(wanted=asks):
        await run.interruptible(vm.start())
    if not args.quiet:
        _say_accelerator(vm)
    if args.verbose:
        import shlex

        say(f"QEMU is process {vm.pid}: {shlex.join(vm.command)}")


def _has_console(domain: Domain) -> bool:
    first = [serial.type for serial in domain.serials[:1]]
    first += [console.type for console in domain.consoles[:1]]
    return CharType.PTY in first or CharType.STDIO in first


def _say_accelerator(vm: VirtualMachine) -> None:
    if vm.kvm is None or vm.kvm.verdict is KvmVerdict.USABLE:
        return
    say(f"warning: the guest runs under TCG, slowly: {vm.kvm.reason}")
    if vm.kvm.advice:
        say(f"what to do: {vm.kvm.advice}")


class _Run:
    """A started machine, the signals that may end it, and the reason why it ended."""

    def __init__(self, vm: VirtualMachine, *, quiet: bool) -> None:
        self._vm = vm
        self._quiet = quiet
        self._loop = asyncio.get_running_loop()
        self._signal: signal.Signals | None = None
        self._timed_out = False
        self._starting: asyncio.Future[None] | None = None
        self._stopping: asyncio.Task[object] | None = None
        self._handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in self._handled:
            self._loop.add_signal_handler(number, self._interrupt, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number in self._handled:
            self._loop.remove_signal_handler(number)
        if self._stopping is not None:
            self._stopping.cancel()

    async def interruptible(self, starting: Coroutine[object, object, None]) -> None:
        """Wait for a start, which a signal cancels."""
        self._starting = asyncio.ensure_future(starting)
        try:
            await self._starting
        except asyncio.CancelledError:
            if self._signal is None:
                raise
            raise _InterruptedError(self._signal) from None
        finally:
            self._starting = None

    async def finish(self, console: socket.socket | None, limit: float | None) -> int:
        """Wait for the end; returns the exit status."""
        timer = None
        if limit is not None:
            timer = self._loop.call_later(limit, self._time_is_up, limit)
        try:
            outcome = await (self._vm.wait() if console is None else self._with_console(console))
        finally:
            if timer is not None:
                timer.cancel()
        return self._status(outcome)

    async def _with_console(self, console: socket.socket) -> Outcome:
        stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
        with (
            raw_terminal(stdin) as has_keys,
            ConsoleCopy(console, stdin if has_keys else None, stdout) as copy,
        ):
            outcome = await self._vm.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CONSOLE_PATIENCE):
                    await copy.ended()
        return outcome

    def _interrupt(self, number: signal.Signals) -> None:
        if self._starting is not None:
            self._signal = number
            self._starting.cancel()
        elif self._signal is None:
            self._signal = number
            word = "again to end it" if number is signal.SIGINT else "ending it if it does not"
            self._message(f"asking the guest to power down; {word}")
            self._stopping = asyncio.ensure_future(self._vm.stop(_POWER_DOWN_PATIENCE))
        else:
            self._message("ending the machine")
            if self._stopping is not None:
                self._stopping.cancel()
            self._stopping = asyncio.ensure_future(self._vm.kill())

    def _time_is_up(self, limit: float) -> None:
        if self._vm.state in (DomainState.RUNNING, DomainState.PAUSED):
            self._timed_out = True
            self._message(f"the {limit:g} s are up; ending the machine")
            self._stopping = asyncio.ensure_future(self._vm.stop(_POWER_DOWN_PATIENCE))

    def _message(self, text: str) -> None:
        if not self._quiet:
            say(text, fresh_line=True)

    def _status(self, outcome: Outcome) -> int:
        if self._signal is not None:
            return status.SIGNAL + self._signal
        if self._timed_out:
            return status.TIMEOUT
        if outcome.ending in (Ending.POWERED_OFF, Ending.REBOOTED):
            return status.OK
        self._message(str(outcome))
        for line in outcome.stderr.splitlines()[-20:]:
            say(f"qemu: {line}")
        return status.GUEST_DIED

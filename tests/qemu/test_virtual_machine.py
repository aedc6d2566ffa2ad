# SPDX-License-Identifier: LGPL-2.1-or-later
"""A virtual machine's life with real QEMU: the exact states, every way to end, nothing left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessionvirt.driver.domain import Settings, VirtualMachine
from sessionvirt.driver.outcome import Ending
from sessionvirt.errors import LaunchError, NotFoundError, QemuError, StateError
from sessionvirt.model.domain import Domain, parse_domain
from sessionvirt.qemu.qmp import Monitor
from sessionvirt.states import DomainState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

pytestmark = pytest.mark.qemu

FAKE = Path(__file__).resolve().parents[1] / "fakes/qemu.py"

#: No guest: firmware that finds nothing to boot, which is enough to be running.
XML = """\
<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>64</memory>
  <os><type machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>{devices}</devices>
</domain>
"""

START = [DomainState.PREPARING, DomainState.STARTING, DomainState.RUNNING]
END = [DomainState.STOPPING, DomainState.STOPPED]


def domain(devices: str = "", name: str = "test") -> Domain:
    return parse_domain(XML.format(devices=devices, name=name)).value


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all of these, and not the user's."""
    base = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))


def live(
    use: Callable[[VirtualMachine], Awaitable[None]],
    settings: Settings | None = None,
    what: Domain | None = None,
) -> list[DomainState]:
    """Use a machine; returns the states it went through."""
    states: list[DomainState] = []

    async def run() -> None:
        async with (
            asyncio.timeout(60),
            VirtualMachine(what or domain(), settings, changed=states.append) as vm,
        ):
            await use(vm)

    asyncio.run(run())
    return states


def test_started_and_killed() -> None:
    async def use(vm: VirtualMachine) -> None:
        assert vm.state is DomainState.DEFINED
        await vm.start()
        outcome = await vm.kill()
        assert (outcome.ending, outcome.exit_code) == (Ending.KILLED, 0)
        assert await vm.wait() == outcome
        assert await vm.kill() == outcome

    assert live(use) == [*START, *END]


def test_leaving_the_context_ends_it() -> None:
    pids: list[int] = []

    async def use(vm: VirtualMachine) -> None:
        await vm.start()
        assert vm.pid is not None
        pids.append(vm.pid)

    assert live(use) == [*START, *END]
    assert not Path(f"/proc/{pids[0]}").exists()


def test_paused_and_resumed() -> None:
    async def use(vm: VirtualMachine) -> None:
        await vm.start(paused=True)
        await vm.resume()
        await vm.pause()
        with pytest.raises(StateError, match="cannot pause: the domain is paused"):
            await vm.pause()
        await vm.resume()

    paused, running = DomainState.PAUSED, DomainState.RUNNING
    assert live(use) == [*START[:2], paused, running, paused, running, *END]


def test_a_guest_that_does_not_power_down_is_ended() -> None:
    async def use(vm: VirtualMachine) -> None:
        await vm.start()
        outcome = await vm.stop(0.1)
        assert outcome.ending is Ending.KILLED

    assert live(use) == [*START, *END]


def test_it_can_be_started_again() -> None:
    async def use(vm: VirtualMachine) -> None:
        for _ in range(2):
            await vm.start()
            await vm.kill()

    assert live(use) == [*START, *END] * 2


def test_a_running_one_is_not_started_again() -> None:
    async def use(vm: VirtualMachine) -> None:
        await vm.start()
        with pytest.raises(StateError, match="cannot start: the domain is running"):
            await vm.start()

    assert live(use) == [*START, *END]


def test_an_end_by_the_monitor_is_seen_with_its_reason() -> None:
    async def use(vm: VirtualMachine) -> None:
        await vm.start()
        await vm._active_monitor().execute("quit")
        outcome = await vm.wait()
        assert (outcome.ending, outcome.reason) == (Ending.KILLED, "host-qmp-quit")

    assert live(use) == [*START, *END]


def test_a_killed_qemu_has_crashed() -> None:
    async def use(vm: VirtualMachine) -> None:
        await vm.start()
        assert vm.pid is not None
        os.kill(vm.pid, signal.SIGKILL)
        outcome = await vm.wait()
        assert (outcome.ending, outcome.exit_code) == (Ending.DIED, -signal.SIGKILL)
        assert str(outcome) == "QEMU was killed by SIGKILL"

    states = live(use)
    assert states == [*START, DomainState.CRASHED]


def test_what_qemu_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    devices = "<disk type='file'><driver type='raw'/><source file='{}'/><target dev='vda'/></disk>"
    absent = tmp_path / "absent.img"

    async def use(vm: VirtualMachine) -> None:
        with pytest.raises(LaunchError) as caught:
            await vm.start()
        assert caught.value.exit_code == 1
        assert str(absent) in caught.value.stderr
        assert vm.state is DomainState.DEFINED

    assert live(use, what=domain(devices.format(absent))) == [
        DomainState.PREPARING,
        DomainState.STARTING,
        DomainState.DEFINED,
    ]


def test_a_start_that_fails_early_goes_back_too() -> None:
    async def use(vm: VirtualMachine) -> None:
        with pytest.raises(NotFoundError):
            await vm.start()

    settings = Settings(binary="/nonexistent/qemu")
    assert live(use, settings) == [DomainState.PREPARING, DomainState.DEFINED]


def test_a_start_can_be_cancelled() -> None:
    states: list[DomainState] = []

    async def run() -> None:
        spawned = asyncio.Event()

        def changed(state: DomainState) -> None:
            states.append(state)
            if state is DomainState.STARTING:
                spawned.set()

        async with VirtualMachine(domain(), changed=changed) as vm:
            starting = asyncio.create_task(vm.start())
            await spawned.wait()
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert vm.pid is None

    asyncio.run(run())
    assert states == [*START[:2], DomainState.DEFINED]


def test_a_guest_has_a_user_mode_network() -> None:
    async def use(vm: VirtualMachine) -> None:
        await vm.start()
        assert vm.network is not None
        assert vm.network.lease is None
        assert len(vm.network.wirings) == 1

    devices = "<interface type='user'><mac address='52:54:00:01:02:03'/></interface>"
    assert live(use, what=domain(devices))[:3] == START


def test_what_the_command_line_cannot_say_is_said_before_the_guest_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    execute = Monitor.execute

    async def listen(
        monitor: Monitor, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        said.append(command)
        return await execute(monitor, command, arguments)

    monkeypatch.setattr(Monitor, "execute", listen)

    async def use(vm: VirtualMachine) -> None:
        await vm.start()

    live(use, what=domain("<interface type='user'><link state='down'/></interface>"))
    assert said[-2:] == ["set_link", "cont"]


@pytest.mark.parametrize(
    "devices",
    ["<serial type='pty'/>", "<console type='pty'/>", "<serial type='pty'/><console type='pty'/>"],
)
def test_the_first_pty_is_the_callers_socket(devices: str) -> None:
    ours, theirs = socket.socketpair()

    async def use(vm: VirtualMachine) -> None:
        await vm.start()
        assert "pty" not in " ".join(vm.command)
        assert any(part.startswith("stdio,") for part in vm.command)
        theirs.close()
        await vm.kill()
        # Nobody but QEMU had the other end.
        ours.settimeout(10)
        while ours.recv(4096):
            pass

    with ours, theirs:
        live(use, Settings(console=theirs.fileno()), domain(devices))


def test_qemu_has_only_what_it_was_given() -> None:
    """Not the monitor's other end, nor anything of the program that runs it."""
    marker = os.memfd_create("marker")
    os.set_inheritable(marker, True)  # noqa: FBT003 - positional only

    async def use(vm: VirtualMachine) -> None:
        await vm.start()
        directory = f"/proc/{vm.pid}/fd"
        targets = [os.readlink(f"{directory}/{number}") for number in os.listdir(directory)]
        assert not [target for target in targets if "marker" in target]

    try:
        live(use)
    finally:
        os.close(marker)


@pytest.mark.parametrize("mode", ["exits-at-once", "dies-after-capabilities", "closes-monitor"])
def test_a_qemu_that_fails_in_the_middle(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one has been asked what it can do; another is there when it is to be started."""
    monkeypatch.setattr("sessionvirt.qemu.launch._EXIT_PATIENCE", 0.2)
    binary = tmp_path / "qemu"
    real = "/usr/bin/qemu-system-x86_64"
    if not os.path.exists(real):
        pytest.skip(f"needs {real}")
    script = (
        f'#!/bin/sh\ncase "$*" in *" -machine none"*) exec {real} "$@";; esac\n'
        f'exec {sys.executable} {FAKE} {mode} "$@"\n'
    )
    binary.write_text(script)
    binary.chmod(0o755)

    async def use(vm: VirtualMachine) -> None:
        with pytest.raises((LaunchError, QemuError)):
            await vm.start()

    states = live(use, Settings(binary=str(binary)))
    assert states == [DomainState.PREPARING, DomainState.STARTING, DomainState.DEFINED]

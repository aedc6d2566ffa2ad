# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt run`` with a PCI device, as an ordinary user: a guest sees it, and every end of it.

One test boots a guest that looks at its devices; the others have the smallest machine there is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from host.inside import machines, units
from host.inside.hostdevs import (
    comes_back,
    driver,
    frame_passes,
    holding,
)
from host.inside.lookout import look_around
from lab.button import RUNNING, boot_sector
from lab.rawbus import pci
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("permission")]

USER = "user1"


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A directory of the user's, caches and all."""
    user = User.named(USER)
    directory = user.home / "machine"
    directory.mkdir()
    user.own(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def running(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    """``sessionvirt run`` of the smallest machine; it runs when this is entered."""
    user = User.named(USER)
    with place() as directory:
        disk = user.write("machine/disk.img", boot_sector().ljust(1 << 20, b"\0"))
        argv = ["sessionvirt", "run", "--no-ask-password", "--memory=32", "--network=none"]
        with user.popen(
            [*argv, *options, str(disk)],
            stderr=subprocess.STDOUT,
            environment={"XDG_CACHE_HOME": str(directory)},
        ) as process:
            assert process.stdout is not None
            said = b""
            while RUNNING.encode() not in said:
                line = process.stdout.readline()
                assert line, said.decode()
                said += line
            yield process


def qemu_of(process: subprocess.Popen[bytes]) -> int:
    """QEMU is the command's only child."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    (pid,) = children.read_text().split()
    return int(pid)


def lease() -> dict[str, object]:
    """What the user has."""
    with machines.Holder(USER) as holder:
        (found,) = holder.leases()
    return found


def test_a_guest_has_the_card_and_the_host_has_it_again(cards: list[str]) -> None:
    """Proof one: it is listed in the guest; afterwards the host's driver sends frames by it."""
    said, meanwhile, status = look_around(User.named(USER), cards[0])
    assert (meanwhile, status) == ("vfio-pci", 0), said
    assert "GUEST: has 0x8086:0x10d3" in said
    comes_back(cards[0], "e1000e")
    assert frame_passes(*cards)


@pytest.mark.parametrize("end", ["power off", "QEMU", "command", "broker", "reclaim"])
def test_whatever_ends_the_machine_the_card_comes_back(cards: list[str], end: str) -> None:
    """SIGKILL of QEMU, of the command, of the broker before it; and root's reclaim."""
    card = cards[0]
    with running(f"--pci={card}") as process:
        qemu = qemu_of(process)
        assert driver(card) == "vfio-pci"
        held = lease()
        assert held["process"] == qemu
        match end:
            case "power off":
                process.send_signal(signal.SIGTERM)
            case "QEMU":
                os.kill(qemu, signal.SIGKILL)
            case "command":
                process.kill()
            case "broker":
                units.killed()
                os.kill(qemu, signal.SIGKILL)
            case "reclaim":
                name = str(held["lease"]).rpartition("/")[2][:8]
                done = subprocess.run(
                    ["sessionvirt", "reclaim", name], capture_output=True, text=True, check=False
                )
                assert (done.returncode, done.stdout) == (0, ""), done.stderr
                assert "is given back" in done.stderr
        process.wait(60)
        comes_back(card, "e1000e")
    assert not Path(f"/proc/{qemu}").exists()
    with machines.Holder(USER) as holder:
        assert holder.leases() == []


#: Waits for a line, then becomes QEMU with a device of the host, and says so by its monitor.
HELD = 'read -r go && exec "$@"'


def test_e61_qemu_needs_the_memory_that_the_broker_lets_it_lock(cards: list[str]) -> None:
    """Without it VFIO refuses; with it the same command runs."""
    card = cards[0]
    argv = ["sh", "-c", HELD, "held", "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg"]
    argv += ["-m", "64", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    argv += ["-device", f"vfio-pci,host={card}"]
    for amount in (0, 1 << 30):
        with (
            holding(USER, pci(card)) as held,
            User.named(USER).popen(argv, stdin=subprocess.PIPE) as process,
        ):
            if amount:
                pidfd = os.pidfd_open(process.pid)
                try:
                    held.lock_memory(pidfd, amount)
                finally:
                    os.close(pidfd)
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
            if amount:
                assert b'"QMP"' in process.stdout.readline()
            else:
                assert process.wait(60) == 1
                assert b"Cannot allocate memory" in process.stderr.read()
            process.kill()
            process.wait(60)
        comes_back(card, "e1000e")


def test_a_device_that_cannot_be_given_is_a_word_and_a_status(cards: list[str]) -> None:
    """7: the host would suffer; 3: there is none; 6: somebody has it. Nothing was started."""
    user = User.named(USER)
    with place() as directory:
        disk = user.write("machine/disk.img", boot_sector().ljust(1 << 20, b"\0"))

        def status(address: str) -> tuple[int, str]:
            argv = ["sessionvirt", "run", "--no-ask-password", "--network=none"]
            done = user.run(
                [*argv, f"--pci={address}", str(disk)],
                environment={"XDG_CACHE_HOME": str(directory)},
            )
            assert "Traceback" not in done.stderr
            return done.returncode, done.stderr

        root = Path("/sys/block/vda/device").resolve().parent.name
        code, said = status(root)
        assert (code, "file system / on /dev/vda" in said) == (7, True), said
        assert status("0000:7f:1f.7")[0] == 3
        assert status("banana")[0] == 2
        with holding("user2", pci(cards[0])):
            assert status(cards[0])[0] == 6


def test_two_cards_and_an_interrupt(cards: list[str]) -> None:
    """One lease has both; ^C presses the guest's power button."""
    with running(f"--pci={cards[0]}", f"--pci={cards[1]}") as process:
        assert [driver(card) for card in cards] == ["vfio-pci", "vfio-pci"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
    for card in cards:
        comes_back(card, "e1000e")

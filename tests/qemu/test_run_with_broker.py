# SPDX-License-Identifier: LGPL-2.1-or-later
"""An ordinary user's machine on the real broker's network: taken, listed, given back."""

from __future__ import annotations

import json
import os
import select
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.polkit import Polkit
    from lab.users import User

pytestmark = pytest.mark.qemu

ACTION = "org.sessionvirt.broker1.network-attach"

#: A boot sector that says "x" on the first serial port and stops for good:
#: mov al,'x'; mov dx,0x3f8; out dx,al; mov al,'\n'; out dx,al; cli; hlt.
SECTOR = bytes.fromhex("b078baf803eeb00aeefaf4").ljust(510, b"\0") + b"\x55\xaa"

XML = """\
<domain type='qemu'>
  <name>guest</name><memory unit='MiB'>64</memory>
  <os><type machine='q35'>hvm</type><boot dev='hd'/></os>
  <devices>
    <disk type='file'><driver type='raw'/><source file='{disk}'/><target dev='sda'/></disk>
    <interface type='network'><source network='default'/><model type='virtio'/></interface>
    <serial type='pty'/>
  </devices>
</domain>
"""


@pytest.fixture
def guest(alice: User) -> str:
    disk = alice.write("disk.img", SECTOR.ljust(1 << 20, b"\0"))
    return str(alice.write("guest.xml", XML.format(disk=disk)))


@pytest.fixture
def running(
    alice: User, guest: str, broker: Broker, polkit: Polkit
) -> Iterator[subprocess.Popen[bytes]]:
    """alice's machine, which says nothing more and never ends by itself."""
    polkit.answer(ACTION, "yes", user="alice")
    with alice.popen(["sessionvirt", "run", guest]) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"x" in process.stdout.readline(), process.stderr.read().decode()
        yield process
    broker.wait_until_idle()


def leases(user: User) -> list[dict[str, object]]:
    done = user.run(["sessionvirt", "leases", "--json"])
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)["leases"]
    return found


def test_what_it_has_is_listed_and_has_addresses(
    alice: User, running: subprocess.Popen[bytes]
) -> None:
    (lease,) = leases(alice)
    assert (lease["vm"], lease["uid"], lease["state"]) == ("guest", alice.uid, "held")
    grants = lease["grants"]
    assert isinstance(grants, list)
    assert os.path.exists(f"/sys/class/net/{grants[0]['ifname']}")
    assert len(grants[0]["ipv4"]) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_command_gives_everything_back(
    alice: User, broker: Broker, running: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    running.send_signal(number)
    if number is signal.SIGTERM:
        # The guest does not listen to its power button.
        assert running.stderr is not None
        while b"asking the guest" not in running.stderr.readline():
            pass
        running.send_signal(number)
    broker.wait_until_idle(30)
    assert leases(alice) == []


def open_files(pid: int) -> set[str]:
    directory = f"/proc/{pid}/fd"
    return {os.readlink(f"{directory}/{number}") for number in os.listdir(directory)}


def test_only_qemu_holds_the_lease(running: subprocess.Popen[bytes]) -> None:
    """The command has given its copies away: of the TAP, and of the FIFO that is the lease."""
    with open(f"/proc/{running.pid}/task/{running.pid}/children") as file:
        qemus = open_files(int(file.read()))
    held = {target for target in qemus if target.startswith(("/dev/net/tun", "/run/sessionvirt"))}
    assert len(held) == 2
    assert not held & open_files(running.pid)


def test_the_end_of_qemu_gives_everything_back(
    alice: User, broker: Broker, running: subprocess.Popen[bytes]
) -> None:
    with open(f"/proc/{running.pid}/task/{running.pid}/children") as file:
        qemu = int(file.read())
    pidfd = os.pidfd_open(qemu)
    try:
        os.kill(qemu, signal.SIGKILL)
        assert select.select([pidfd], [], [], 10)[0]
    finally:
        os.close(pidfd)
    assert running.wait(30) == 9
    broker.wait_until_idle(30)
    assert leases(alice) == []


def test_a_plan_says_what_would_be_done_and_does_nothing(
    alice: User, guest: str, broker: Broker, polkit: Polkit
) -> None:
    polkit.answer(ACTION, "yes", user="alice")
    done = alice.run(["sessionvirt", "plan", "--json", guest])
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["verdict"] == "yes"
    assert len(plan["steps"]) > 1
    assert leases(alice) == []


def test_without_permission_it_says_what_to_do(
    alice: User, guest: str, broker: Broker, polkit: Polkit
) -> None:
    done = alice.run(["sessionvirt", "run", "--no-ask-password", guest])
    assert done.returncode in (4, 5)
    assert done.stdout == ""
    assert "what to do:" in done.stderr

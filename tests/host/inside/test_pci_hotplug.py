# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running machine of an ordinary user's gets a card of the host, and gives it back.

The program is the user's own (:mod:`host.inside.hotplug_job`), with the installed package: the real
broker, the real VFIO, a real QEMU. The guest that lets go of what it is asked for is one sector
(:mod:`lab.ejecting`): a Debian kernel boots for minutes here.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from host.inside import hotplug_job
from host.inside.hostdevs import (
    DEVICES,
    comes_back,
    driver,
    frame_passes,
    listed,
    node,
)
from host.inside.machines import Holder
from host.inside.sessions import until
from lab.ejecting import RUNNING, boot_sector
from lab.users import User

if TYPE_CHECKING:
    from types import TracebackType

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("permission")]

VFIO = "vfio-pci"
TAP = "<interface type='network'><source network='default'/><model type='virtio'/></interface>"
HOSTDEV = """\
<hostdev mode='subsystem' type='pci' managed='yes'>
  <source><address bus='0x{bus:02x}' slot='0x{slot:02x}'/></source>
</hostdev>
"""
XML = """\
<domain type='qemu'>
  <name>plugged</name><memory unit='MiB'>32</memory>
  <os><type machine='q35'>hvm</type><boot dev='hd'/></os>
  <features><acpi/></features>
  <devices>
    <disk type='file'><driver type='raw'/><source file='{disk}'/><target dev='sda'/></disk>
    <serial type='file'><source path='{console}'/></serial>
    {devices}
  </devices>
</domain>
"""


class Program:
    """The program, with its machine; a context manager that ends both."""

    def __init__(self, devices: str = "", *, paused: bool = False) -> None:
        self.user = User.named("user1")
        self._how = "paused" if paused else "running"
        self._devices = devices
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            place = self.user.home / "plugged"
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            place.mkdir()
            self.user.own(place)
            disk = self.user.write("plugged/disk.img", boot_sector().ljust(1 << 20, b"\0"))
            console = self.user.write("plugged/console", b"")
            text = XML.format(disk=disk, console=console, devices=self._devices)
            # The user may not see the tests.
            job = self.user.write("plugged/job.py", Path(hotplug_job.__file__).read_bytes())
            xml = self.user.write("plugged/domain.xml", text)
            argv = [sys.executable, str(job), str(xml), self._how]
            self._process = stack.enter_context(
                self.user.popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    environment={"XDG_CACHE_HOME": str(place)},
                )
            )
            self.pid = self._answer()["pid"]
            if self._how == "running":
                until(lambda: RUNNING in console.read_text(), "the guest runs")
            self._stack = stack.pop_all()
        return self

    def tell(self, *words: str) -> dict[str, Any]:
        """One line, and its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith(b"{"):
            said = (line + self._process.stdout.read()).decode()
            pytest.fail(f"the program: {said}", pytrace=False)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def attach(self, address: str) -> str:
        """Attach a device; its id."""
        answer = self.tell("attach", address)
        assert "error" not in answer, answer
        return str(answer["said"])

    def has_open(self, path: Path) -> bool:
        """Whether QEMU has a file open."""
        for one in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # QEMU runs on
                if one.readlink() == path:
                    return True
        return False

    def locked_limit(self) -> int:
        """The bytes that QEMU may lock."""
        text = Path(f"/proc/{self.pid}/limits").read_text()
        match = re.search(r"^Max locked memory +(\d+) ", text, re.M)
        assert match
        return int(match[1])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            with contextlib.suppress(OSError):
                assert self._process.stdin is not None
                self._process.stdin.close()
            self._process.wait(60)


def grants() -> list[str]:
    """What the broker's only lease has."""
    with Holder("user1") as client:
        found = client.leases()
    return [str(grant["id"].value) for lease in found for grant in lease["grants"]]


def test_a_card_comes_and_goes_twice_and_carries_a_packet(cards: list[str]) -> None:
    """A guest that answers: the whole way there and back, while the machine runs on."""
    card, other = cards
    with Program(TAP) as program:
        for number in (1, 2):
            name = program.attach(card)
            assert name == f"hostdev{number - 1}"
            assert (driver(card), listed("user1")[card]["holder"]) == (VFIO, "plugged")
            assert program.has_open(node(card))
            assert program.locked_limit() == (32 << 20) + (1 << 30)
            assert grants() == ["tap0", f"pci{number}"]
            answer = program.tell("detach", name, "30")
            assert "error" not in answer, answer
            assert answer["devices"] == []
            comes_back(card, "e1000e")
            assert grants() == ["tap0"]
            assert Path(f"/proc/{program.pid}").exists()
        assert frame_passes(card, other)


def test_a_guest_that_does_not_answer_keeps_it(cards: list[str]) -> None:
    """Its CPUs are halted. Once they run it lets go, late, and the card goes back by itself.

    (QEMU 10.0 counts a reset as an answer, too, and aborts in one of five:
    ``resettable_container_child_foreach: Assertion len == rc->children->len``.)
    """
    card = cards[0]
    with Program(TAP, paused=True) as program:
        name = program.attach(card)
        answer = program.tell("detach", card, "1")
        kind, cause, evidence, advice = answer["error"]
        assert (kind, cause) == ("DeadlineError", f"the guest has not let go of {name}")
        assert card in evidence
        assert advice
        assert answer["devices"] == [[name, card, "pci1"]]
        assert (driver(card), program.has_open(node(card))) == (VFIO, True)
        program.tell("resume")
        comes_back(card, "e1000e")
        assert program.tell("look")["devices"] == []
        # And the end of the machine takes back what is there then.
        program.attach(card)
        assert driver(card) == VFIO
    comes_back(card, "e1000e")


def test_a_machine_that_had_nothing_of_the_brokers(cards: list[str]) -> None:
    """The hold of its lease goes to QEMU over the monitor, and ends with it, killed or not."""
    card, other = cards
    with Program() as program:
        assert grants() == []
        program.attach(card)
        program.attach(other)
        assert grants() == ["pci0", "pci1"]
        assert "error" not in program.tell("detach", other, "30")
        comes_back(other, "e1000e")
        program.tell("attach", other)
        assert [driver(one) for one in cards] == [VFIO, VFIO]
    for one in cards:
        comes_back(one, "e1000e")
    until(lambda: grants() == [], "the lease is over")


def test_one_of_the_start_can_go(cards: list[str]) -> None:
    card = cards[0]
    bus, slot = int(card[5:7], 16), int(card[8:10], 16)
    with Program(HOSTDEV.format(bus=bus, slot=slot)) as program:
        assert program.tell("look")["devices"] == [["hostdev0", card, "pci0"]]
        assert "error" not in program.tell("detach", "hostdev0", "30")
        comes_back(card, "e1000e")
        # The lease is still there, and QEMU's.
        assert program.attach(card) == "hostdev1"
    comes_back(card, "e1000e")


@pytest.mark.parametrize("devices", [TAP, ""])
def test_a_card_that_the_host_pulls_out(cards: list[str], devices: str) -> None:
    """QEMU has the guest let go of it, the broker drops it; a lease of nothing else is over."""
    card = cards[0]
    with Program(devices) as program:
        program.attach(card)
        try:
            remove = ["sh", "-c", f"echo 1 >{DEVICES / card / 'remove'}"]
            subprocess.run(remove, check=True, timeout=60)
            until(lambda: program.tell("look")["devices"] == [], "QEMU has let go of it")
            until(lambda: grants() == ["tap0"] * bool(devices), "so has the broker")
        finally:
            Path("/sys/bus/pci/rescan").write_text("1")
        comes_back(card, "e1000e")
        program.attach(card)
        assert driver(card) == VFIO
    comes_back(card, "e1000e")


def test_what_is_refused_leaves_the_machine_as_it_was(cards: list[str]) -> None:
    """By the broker, and before anybody is asked."""
    card = cards[0]
    with Program(TAP) as program:
        assert program.tell("attach", "0000:00:1f.2")["error"][0] == "UnsafeError"
        program.attach(card)
        assert program.tell("attach", card)["error"][0] == "BusyError"
        assert program.tell("detach", "0000:7f:00.0", "1")["error"][0] == "NotFoundError"
        assert grants() == ["tap0", "pci1"]
    comes_back(card, "e1000e")

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A virtual function goes to its user with a MAC address and a VLAN, and comes back as it was.

On QEMU's igb and the kernel's, by the kernel's rtnetlink.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from dbus_fast import Variant

from host.inside import machines, units
from host.inside.functions import functions
from host.inside.hostdevs import comes_back, driver, holding, node, opened, override, refused
from host.inside.sessions import until
from host.inside.test_pci_crash import dies_after, dying, left
from lab import host
from lab.button import RUNNING, boot_sector
from lab.rawbus import BusError, pci
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.inside.functions import Functions

pytestmark = pytest.mark.host

VFIO = "vfio-pci"
MAC, OTHER = "52:54:00:00:42:01", "52:54:00:00:42:02"
GIVEN = {"mac": MAC, "vlan": [(42, 0)], "spoofchk": True, "trust": False}


MACHINE = """\
<domain type='qemu'>
  <name>function</name><memory unit='MiB'>32</memory>
  <os><type machine='q35'>hvm</type></os><features><acpi/></features>
  <devices>
    <disk type='file'><source file='{disk}'/><target dev='vda'/></disk>
    <interface type='hostdev' managed='yes'>
      <mac address='{mac}'/>
      <source><address type='pci' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/></source>
      <vlan><tag id='42'/></vlan>
    </interface>
    <serial type='stdio'/>
  </devices>
</domain>
"""


def vlan(number: int) -> Variant:
    return Variant("u", number)


@pytest.fixture
def made() -> Iterator[Functions]:
    with machines.permitted(), functions() as made:
        yield made


def test_what_was_asked_for_is_set_and_what_was_there_is_put_back(made: Functions) -> None:
    """All that was: also the VLAN's priority, the spoof check and the trust, which were changed."""
    first, second = made.addresses
    former, mac = driver(first), made.mac_on_the_host(0)
    made.set(0, "vlan", "7", "qos", "3")
    made.set(0, "spoofchk", "off")
    made.set(0, "trust", "on")
    before, others = made.settings(0), made.settings(1)
    assert before == {"mac": mac, "vlan": [(7, 3)], "spoofchk": False, "trust": True}
    with holding("user1", pci(first, mac=MAC.upper(), vlan=vlan(42))) as lease:
        (grant,) = lease.grants
        assert (grant["mac"], grant["vlan"], grant["former"]) == (MAC, 42, former)
        assert (made.settings(0), driver(first)) == (GIVEN, VFIO)
        assert (made.settings(1), driver(second)) == (others, former)
    comes_back(first, former)
    assert made.settings(0) == before
    assert made.mac_on_the_host(0) == mac


def test_one_of_the_two_leaves_the_other_alone(made: Functions) -> None:
    first = made.addresses[0]
    made.set(0, "vlan", "7")
    before = made.settings(0)
    with holding("user1", pci(first, mac=MAC)) as lease:
        assert (lease.grants[0]["mac"], lease.grants[0]["vlan"]) == (MAC, 0)
        assert made.settings(0) == GIVEN | {"vlan": [(7, 0)]}
    made.set(0, "spoofchk", "off")
    with holding("user1", pci(first, vlan=vlan(4094))) as lease:
        assert (lease.grants[0]["mac"], lease.grants[0]["vlan"]) == ("", 4094)
        assert made.settings(0) == before | {"vlan": [(4094, 0)], "spoofchk": False}
    with holding("user1", pci(first)):
        assert made.settings(0) == before | {"spoofchk": False}


def test_closed_means_closed_for_its_address_too(made: Functions) -> None:
    """Nothing is put back while somebody has it; then before its driver finds it again."""
    first = made.addresses[0]
    former, before, mac = driver(first), made.settings(0), made.mac_on_the_host(0)
    with holding("user1", pci(first, mac=MAC, vlan=vlan(42))) as lease:
        with opened("user1", node(first), first) as said:
            assert said == "open"
            lease.close()
            until(lambda: lease.state() == "releasing", "the lease has ended")
            units.killed()
            until(lambda: lease.state() != "held", "the next broker sees that it has ended")
            assert (made.settings(0), driver(first)) == (GIVEN, VFIO)
            assert refused("user2", pci(made.addresses[1], mac=MAC)).short == "Busy"
        comes_back(first, former)
        assert made.settings(0) == before
        assert made.mac_on_the_host(0) == mac


def test_an_address_is_ones_at_a_time(made: Functions) -> None:
    first, second = made.addresses
    card = json.loads(host.ip("-json", "link", "show", "dev", made.name))[0]["address"]
    for taken in (card, made.settings(1)["mac"]):
        error = refused("user1", pci(first, mac=taken))
        assert (error.short, taken in error.text) == ("Busy", True)
    both = [pci(first, mac=MAC), pci(second, mac=MAC)]
    assert refused("user1", *both).short == "Busy"
    assert (override(first), made.settings(0)["mac"] != MAC) == ("", True)
    with holding("user1", pci(first, mac=MAC), vm="mine"):
        for user in ("user1", "user2"):
            assert refused(user, pci(second, mac=MAC)).short == "Busy"
        with holding("user2", pci(second, mac=OTHER)):
            assert [made.settings(number)["mac"] for number in (0, 1)] == [MAC, OTHER]


def test_what_is_no_function_of_a_card_that_is_up_is_refused_by_name(
    made: Functions, cards: list[str]
) -> None:
    error = refused("user1", pci(cards[0], vlan=vlan(42)))
    assert (error.short, cards[0] in error.text) == ("NotSupported", True)
    for wrong in (0, 4095):
        assert "vlan: must be from 1" in refused("user1", pci(cards[0], vlan=vlan(wrong))).text
    host.ip("link", "set", made.name, "down")
    error = refused("user1", pci(made.addresses[0], mac=MAC))
    assert (error.short, f"{made.card} is down" in error.text) == ("NotSupported", True)
    host.ip("link", "set", made.name, "up")
    assert driver(made.addresses[0]) != VFIO


def test_a_function_that_goes_with_its_card_takes_its_settings_along(made: Functions) -> None:
    first = made.addresses[0]
    with holding("user1", pci(first, mac=MAC, vlan=vlan(42))) as lease:
        made.remake()
        until(lambda: lease.state() == "", "the lease is over")
    assert driver(first) != VFIO
    assert made.settings(0)["mac"] != MAC


def test_a_machine_of_its_definition_has_it(made: Functions) -> None:
    """``sessionvirt plan``, ``run`` and ``leases``, by a user who has nothing but the XML."""
    first = made.addresses[0]
    former, before = driver(first), made.settings(0)
    _, bus, place = first.split(":")
    slot, function = place.split(".")
    user = User.named("user1")
    with contextlib.ExitStack() as stack:
        directory = user.home / "machine"
        directory.mkdir()
        stack.callback(shutil.rmtree, directory)
        user.own(directory)
        disk = user.write("machine/disk.img", boot_sector().ljust(1 << 20, b"\0"))
        words = {"mac": MAC, "bus": bus, "slot": slot, "function": function}
        text = MACHINE.format(disk=disk, **words)
        xml = str(user.write("machine/function.xml", text.encode()))
        cache = {"XDG_CACHE_HOME": str(directory)}
        done = user.run(["sessionvirt", "plan", "--strict", "--json", xml], environment=cache)
        plan = json.loads(done.stdout)
        assert plan["requests"][0]["action"] == "org.sessionvirt.broker1.pci-network"
        set_, rebind = (
            [number for number, step in enumerate(plan["steps"]) if word in step["do"]]
            for word in (f"give the MAC address {MAC} (spoof check) and VLAN 42", f"{first} from")
        )
        assert set_ < rebind
        argv = ["sessionvirt", "run", "--no-ask-password", xml]
        with user.popen(argv, stderr=subprocess.STDOUT, environment=cache) as process:
            assert process.stdout is not None
            said = b""
            while RUNNING.encode() not in said:
                line = process.stdout.readline()
                assert line, said.decode()
                said += line
            assert (driver(first), made.settings(0)) == (VFIO, GIVEN)
            (row,) = user.run(["sessionvirt", "leases"]).stdout.splitlines()[1:]
            assert f"VLAN 42  {first}  {MAC}" in row
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        comes_back(first, former)
        assert made.settings(0) == before


def test_g69_killed_in_every_state_of_setting_and_putting_back() -> None:
    with machines.permitted(), functions() as made:
        first = made.addresses[0]
        former, mac = driver(first), made.mac_on_the_host(0)
        made.set(0, "vlan", "7", "qos", "3")
        made.set(0, "spoofchk", "off")
        before = made.settings(0)
        with holding("user1", pci(first)):
            pass  # VFIO's modules are loaded from here on, for which a broker starts anew
        comes_back(first, former)
        with dying():
            for number in itertools.count():
                pid = units.main_pid()
                dies_after(number + 1)
                asked = pci(first, mac=MAC, vlan=vlan(42))
                with contextlib.suppress(BusError), holding("user1", asked):
                    pass
                assert left() == [], number
                comes_back(first, former)
                assert (made.settings(0), made.mac_on_the_host(0)) == (before, mac), number
                if units.main_pid() == pid:
                    break
        assert number > 11

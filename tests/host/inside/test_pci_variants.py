# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VFIO driver that is made for a model: how it is found and loaded, in the installed unit.

Debian's kernel has no such driver. So a module without VFIO stands for one, in a list of aliases
that is laid over the kernel's and in modprobe's own configuration: it is found by the broker in its
unit, and loaded by udev, from the device, by alias. What that does not show is that a device is
bound to such a driver; but for its name that is the same as for vfio-pci.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dbus_fast import Variant

from host.inside import machines, units
from host.inside.hostdevs import NVME, comes_back, driver, holding, listed, refused, with_ids
from host.inside.sessions import until
from lab.rawbus import pci

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("permission")]

ALIASES = Path(f"/usr/lib/modules/{os.uname().release}/modules.alias")
CONFIGURATION = Path("/etc/modprobe.d/sessionvirt-test.conf")
#: Binds nothing by itself, and its driver is not VFIO's.
MODULE = "pci_stub"
LINE = f"alias vfio_pci:v00008086d000010D3sv*sd*bc*sc*i* {MODULE}\n"
LOADED = Path("/sys/module") / MODULE


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@pytest.fixture
def variant(tmp_path: Path) -> Iterator[None]:
    """The kernel's list says that the module is made for the cards."""
    with contextlib.ExitStack() as stack:
        units.stop()
        longer = tmp_path / "modules.alias"
        longer.write_text(ALIASES.read_text() + LINE)
        run("mount", "--bind", str(longer), str(ALIASES))
        stack.callback(run, "umount", str(ALIASES))
        # kmod looks into an index of its own, and first here.
        CONFIGURATION.write_text(LINE)
        stack.callback(run, "udevadm", "control", "--reload")
        stack.callback(CONFIGURATION.unlink)
        run("udevadm", "control", "--reload")
        stack.callback(run, "modprobe", "--remove", "--quiet", MODULE)
        stack.callback(units.stop)
        yield


def test_the_broker_sees_the_kernels_list_and_nothing_else_of_it() -> None:
    with machines.Holder("user1") as client:
        client.ask_for("ListNetworks", {})
        pid = units.main_pid()
    inside = ["nsenter", f"--target={pid}", "--mount"]
    run(*inside, "cmp", "/tmp/modules.alias", f"/proc/1/root{ALIASES}")
    look = [*inside, "ls", "-A", "/usr/lib/modules"]
    listing = subprocess.run(look, check=True, capture_output=True, text=True)
    assert listing.stdout == ""


def said(began: str, *words: str) -> bool:
    lines = units.journal_since(began, f"--unit={units.BROKER}")
    return any(all(word in line for word in words) for line in lines)


@pytest.mark.usefixtures("variant")
def test_it_is_found_in_the_list_and_loaded_by_udev_from_the_device(cards: list[str]) -> None:
    """And what is no driver of VFIO's is not taken for one: the device goes to vfio-pci."""
    (disk,) = with_ids(NVME)
    rows: dict[str, Any] = listed("user1")
    assert (rows[cards[0]]["variant"], rows[disk]["variant"]) == (MODULE, "")
    assert not LOADED.exists()
    began = units.now()
    # Who asks for the general one, or for another device, has nothing loaded for this one.
    for request in (pci(cards[0], driver=Variant("s", "vfio-pci")), pci(disk)):
        with holding("user1", request) as lease:
            assert lease.grants[0]["driver"] == "vfio-pci"
    assert not LOADED.exists()
    with holding("user1", pci(cards[0])) as lease:
        assert lease.grants[0]["driver"] == driver(cards[0]) == "vfio-pci"
        assert LOADED.exists()
    comes_back(cards[0], "e1000e")
    until(lambda: said(began, MODULE, "did not come"), "the log says so")
    for name, words in ((MODULE, f"modprobe {MODULE}"), ("nvidia", "and not nvidia")):
        error = refused("user1", pci(cards[1], driver=Variant("s", name)))
        assert (error.short, words in error.text) == ("NotSupported", True)


@pytest.mark.usefixtures("variant")
def test_only_a_devices_own_alias_is_loaded(cards: list[str]) -> None:
    """What a broker that was taken over could write: another device's event, another word."""
    (disk,) = with_ids(NVME)
    for device, word in ((disk, "variant"), (cards[0], "pcistub"), (cards[0], "variants")):
        event = Path("/sys/bus/pci/devices") / device / "uevent"
        event.write_text(f"change {UUID} SESSIONVIRT={word} MODALIAS=pcistub")
        run("udevadm", "settle")
        assert not LOADED.exists(), word
    event = Path("/sys/bus/pci/devices") / cards[0] / "uevent"
    event.write_text(f"change {UUID} SESSIONVIRT=variant")
    run("udevadm", "settle")
    assert LOADED.exists()


UUID = "00000000-0000-4000-8000-000000000000"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""PCI functions as the broker finds them in sysfs, and the names that people are told."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from lab.fakesysfs import FakeSysfs
from sessionvirt_broker import pci
from sessionvirt_broker.pci import PciBus, isolation_faults
from sessionvirt_broker.pcinames import LIMIT, PciNames

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

NIC = "0000:03:00.0"
PCI_IDS = """\
#\tList of PCI ID's
8085  Not Intel
\t10d3  Not this one
8086  Intel Corporation
\t10d2  Neighbour
\t10d3  82574L Gigabit Network Connection
\t\t103c 1774  NC112T Adapter
\t10d4  Another
8087  Also Not Intel
\t10d3  Nor this
C 02  Network controller
\t00  Ethernet controller
"""


@pytest.fixture
def host(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


def only(host: FakeSysfs) -> pci.Function:
    (function,) = PciBus(host.sys).functions().values()
    return function


# --- addresses


@pytest.mark.parametrize(
    "text", [NIC, "ffff:ff:1f.7", "0000:00:00.0", "10000:e1:00.0", "fffffffe:00:00.0"]
)
def test_an_address_that_may_be_asked_for(text: str) -> None:
    assert pci.is_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "03:00.0", "0000:03:00.8", "0000:03:20.0", "0000:0G:00.0", "0000:03:00.0\n",
        " 0000:03:00.0", "0000:AB:00.0", "00001:e1:00.0", "100000000:e1:00.0",
        "../0000:03:00.0", "\u0660000:03:00.0",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    assert not pci.is_address(text)


# --- one function


def test_every_fact_of_a_function(host: FakeSysfs) -> None:
    bridge = host.function("0000:00:1c.0", class_code=0x060400, header=1, driver="pcieport")
    path = host.function(
        NIC,
        driver="e1000e",
        group=7,
        below=bridge,
        files={"rom": "", "boot_vga": "1\n"},
    )
    found = PciBus(host.sys).function(NIC)
    assert found is not None
    assert found == pci.Function(
        address=pci.PciAddress(NIC),
        vendor=0x8086,
        device=0x10D3,
        subsystem_vendor=0x8086,
        subsystem_device=0xA01F,
        class_code=0x020000,
        driver="e1000e",
        group="7",
        endpoint=True,
        resets=("flr", "pm", "bus"),
        rom=True,
        boot_vga=True,
        physfn="",
        numvfs=0,
        path=path,
    )
    assert (found.ids, found.subsystem) == ("8086:10d3", "8086:a01f")
    assert found.identity == "8086:10d3/8086:a01f/020000/"


def test_a_function_with_nothing(host: FakeSysfs) -> None:
    host.function(NIC, resets=None, subsystem=(0, 0))
    found = only(host)
    assert (found.driver, found.group, found.resets) == ("", "", ())
    assert (found.subsystem, found.rom, found.boot_vga) == ("", False, False)


def test_a_kernel_that_does_not_say_how_it_resets(host: FakeSysfs) -> None:
    host.function(NIC, resets=None, files={"reset": ""})
    assert only(host).resets == ("unknown",)


def test_a_device_that_is_there_and_can_not_reset(host: FakeSysfs) -> None:
    host.function(NIC, resets="")
    assert only(host).resets == ()


@pytest.mark.parametrize(
    ("header", "endpoint"), [(0, True), (0x80, True), (1, False), (0x81, False), (2, False)]
)
def test_an_endpoint_by_its_header(host: FakeSysfs, header: int, *, endpoint: bool) -> None:
    host.function(NIC, header=header)
    assert only(host).endpoint is endpoint


@pytest.mark.parametrize("config", [b"", b"\0" * 63, b"\xff" * 256])
def test_what_a_device_answers_is_not_asked(host: FakeSysfs, config: bytes) -> None:
    """A guest can hang its own, and one that sleeps would be woken: it is what it was."""
    path = host.function(NIC)
    before = only(host)
    (path / "config").write_bytes(config)
    assert only(host) == before


def test_virtual_functions(host: FakeSysfs) -> None:
    physical = host.function(NIC)
    virtual = [host.function(f"0000:03:10.{number}") for number in range(3)]
    host.virtual_functions(physical, *virtual)
    found = PciBus(host.sys).functions()
    assert [one.numvfs for one in found.values()] == [3, 0, 0, 0]
    assert [one.physfn for one in found.values()] == ["", NIC, NIC, NIC]


def test_another_device_at_the_address_has_another_identity(host: FakeSysfs) -> None:
    path = host.function(NIC)
    before = only(host)
    (path / "subsystem_device").write_text("0x0001\n")
    assert only(host).identity != before.identity


# --- the bus


def test_the_order_is_that_of_addresses(host: FakeSysfs) -> None:
    for address in ("10000:e1:00.0", "ffff:00:00.0", "0000:0a:00.0", "0000:09:00.1"):
        host.function(address)
    found = list(PciBus(host.sys).functions())
    assert found == ["0000:09:00.1", "0000:0a:00.0", "ffff:00:00.0", "10000:e1:00.0"]


def test_a_host_without_pci(tmp_path: Path) -> None:
    assert PciBus(tmp_path).functions() == {}
    assert PciBus(tmp_path).function(NIC) is None


def test_one_that_is_gone(host: FakeSysfs) -> None:
    shutil.rmtree(host.function(NIC))
    host.function("0000:04:00.0")
    assert list(PciBus(host.sys).functions()) == ["0000:04:00.0"]
    assert PciBus(host.sys).function(NIC) is None


def test_one_that_goes_while_it_is_read(host: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    path = host.function(NIC)
    listdir = os.listdir

    def and_away(where: str | int) -> list[str]:
        names = listdir(where)
        if isinstance(where, int):
            shutil.rmtree(path)
        return names

    monkeypatch.setattr(os, "listdir", and_away)
    assert PciBus(host.sys).functions() == {}


@pytest.mark.parametrize("text", ["", "0x", "banana\n", "-0x1\n", "0x" + "f" * 4000, "\xff\0"])
def test_absurd_files_are_zero_and_raise_nothing(host: FakeSysfs, text: str) -> None:
    names = ("device", "subsystem_vendor", "subsystem_device", "class")
    host.function(NIC, files=dict.fromkeys(names, text))
    found = only(host)
    assert (found.ids, found.class_code, found.subsystem) == ("8086:0000", 0, "")


@pytest.mark.parametrize("text", ["", "0x0000\n", "banana\n"])
def test_one_without_a_vendor_is_not_told_and_counts_in_its_group(
    host: FakeSysfs, text: str
) -> None:
    host.function(NIC, group=7, files={"vendor": text})
    bus = PciBus(host.sys)
    assert (bus.functions(), bus.function(NIC), bus.group("7")) == ({}, None, ())
    assert (bus.group_size("7"), bus.group_size("8"), bus.group_size("../7")) == (1, 0, 0)


def test_what_is_no_file_raises_nothing(host: FakeSysfs) -> None:
    path = host.function(NIC)
    for name in ("device", "config", "reset_method"):
        (path / name).unlink()
        (path / name).mkdir()
    (path / "class").unlink()
    os.mkfifo(path / "class")
    found = only(host)
    assert (found.device, found.class_code, found.endpoint, found.resets) == (0, 0, True, ())


def test_a_link_in_place_of_a_file_is_not_followed(host: FakeSysfs, tmp_path: Path) -> None:
    path = host.function(NIC)
    (tmp_path / "secret").write_text("0x1234\n")
    (path / "device").unlink()
    (path / "device").symlink_to(tmp_path / "secret")
    assert only(host).device == 0


@pytest.mark.parametrize("address", ["..", "../../../etc", "", "0000:03:00.0/.."])
def test_a_path_is_no_address(host: FakeSysfs, address: str) -> None:
    host.function(NIC)
    assert PciBus(host.sys).function(address) is None


# --- groups


def test_a_group_has_its_bridges_and_its_endpoints(host: FakeSysfs) -> None:
    bridge = host.function("0000:00:1c.0", header=1, group=7)
    host.function("0000:03:00.1", group=7, below=bridge)
    host.function(NIC, group=7, below=bridge)
    host.function("0000:04:00.0", group=8)
    found = PciBus(host.sys).group("7")
    assert [one.address for one in found] == ["0000:00:1c.0", NIC, "0000:03:00.1"]
    assert [one.endpoint for one in found] == [False, True, True]


@pytest.mark.parametrize("number", ["", "9", "../7", "7/devices/..", "\u0667", "-1"])
def test_no_group(host: FakeSysfs, number: str) -> None:
    host.function(NIC, group=7)
    assert PciBus(host.sys).group(number) == ()


def test_a_member_of_another_bus_is_left_out(host: FakeSysfs) -> None:
    host.function(NIC, group=7)
    other = host.devices / "platform/soc"
    other.mkdir(parents=True)
    host.link(host.sys / "kernel/iommu_groups/7/devices/soc", other)
    assert [one.address for one in PciBus(host.sys).group("7")] == [NIC]


# --- isolation


def test_a_host_that_isolates(host: FakeSysfs) -> None:
    host.function(NIC, group=7)
    host.write(
        host.sys / "module",
        {
            "vfio/parameters/enable_unsafe_noiommu_mode": "N\n",
            "vfio_iommu_type1/parameters/allow_unsafe_interrupts": "N\n",
        },
    )
    assert isolation_faults(host.sys, host.proc) == ()
    assert PciBus(host.sys).group_faults("7") == ()


def test_modules_that_are_not_loaded(host: FakeSysfs) -> None:
    assert isolation_faults(host.sys, host.proc) == ()


@pytest.mark.parametrize(
    ("parameter", "word"),
    [
        ("vfio/parameters/enable_unsafe_noiommu_mode", "no-IOMMU"),
        ("vfio_iommu_type1/parameters/allow_unsafe_interrupts", "interrupt"),
    ],
)
@pytest.mark.parametrize("value", ["Y\n", "1\n", ""])
def test_a_module_that_was_told_not_to_isolate(
    host: FakeSysfs, parameter: str, word: str, value: str
) -> None:
    host.write(host.sys / "module", {parameter: value})
    (fault,) = isolation_faults(host.sys, host.proc)
    assert word in fault


def test_a_kernel_that_splits_groups(host: FakeSysfs) -> None:
    (host.proc / "cmdline").write_text("quiet pcie_acs_override=downstream,multifunction\n")
    (fault,) = isolation_faults(host.sys, host.proc)
    assert "pcie_acs_override" in fault


def test_a_command_line_that_cannot_be_read(host: FakeSysfs) -> None:
    (host.proc / "cmdline").unlink()
    assert isolation_faults(host.sys, host.proc) == ("the kernel's command line cannot be read",)


def test_a_group_without_an_iommu(host: FakeSysfs) -> None:
    host.function(NIC, group=7)
    host.group(7, name="vfio-noiommu")
    (fault,) = PciBus(host.sys).group_faults("7")
    assert "no-IOMMU" in fault
    assert PciBus(host.sys).group_faults("") == ("no IOMMU isolates it",)


# --- names


@pytest.fixture
def names(tmp_path: Path) -> PciNames:
    (tmp_path / "data").mkdir()
    return PciNames(tmp_path / "data", tmp_path / "pci.ids")


def udev(tmp_path: Path, vendor: str, model: str) -> None:
    (tmp_path / "data" / f"+pci:{NIC}").write_text(
        f"I:123\nE:ID_PCI_CLASS_FROM_DATABASE=Network controller\n"
        f"E:ID_VENDOR_FROM_DATABASE={vendor}\nE:ID_MODEL_FROM_DATABASE={model}\nV:1\n"
    )


def test_a_name_of_udev(host: FakeSysfs, names: PciNames, tmp_path: Path) -> None:
    host.function(NIC)
    udev(tmp_path, "Intel Corporation", "82574L  Gigabit Network Connection")
    expected = "Intel Corporation 82574L Gigabit Network Connection"
    assert names.name(only(host)) == expected


def test_a_name_of_pci_ids(host: FakeSysfs, names: PciNames, tmp_path: Path) -> None:
    host.function(NIC)
    (tmp_path / "pci.ids").write_text(PCI_IDS)
    assert names.name(only(host)) == "Intel Corporation 82574L Gigabit Network Connection"


def test_several_names_at_once(host: FakeSysfs, names: PciNames, tmp_path: Path) -> None:
    (tmp_path / "pci.ids").write_text(PCI_IDS)
    host.function(NIC)
    host.function("0000:04:00.0", device=0x10D4)
    host.function("0000:05:00.0", vendor=0x8087)
    host.function("0000:06:00.0", vendor=0x8087, device=0x1774)
    assert list(names.names(PciBus(host.sys).functions().values()).values()) == [
        "Intel Corporation 82574L Gigabit Network Connection",
        "Intel Corporation Another",
        "Also Not Intel Nor this",
        "PCI device 8087:1774",
    ]


def test_a_name_of_numbers(host: FakeSysfs, names: PciNames) -> None:
    host.function(NIC)
    assert names.name(only(host)) == "PCI device 8086:10d3"


def test_a_class_is_no_vendor(host: FakeSysfs, names: PciNames, tmp_path: Path) -> None:
    # "C 02" begins no vendor; what is below it is of no vendor either.
    (tmp_path / "pci.ids").write_text("8086  Intel\nC 02  Network controller\n\t10d3  Wrong\n")
    host.function(NIC)
    assert names.name(only(host)) == "PCI device 8086:10d3"


def test_a_hostile_name(host: FakeSysfs, names: PciNames, tmp_path: Path) -> None:
    host.function(NIC)
    udev(
        tmp_path, "\x1b[31mEvil\u202e\u2066", "$(user) \x00\udcff".encode(errors="replace").decode()
    )
    assert names.name(only(host)) == "?[31mEvil?? ?(user) ??"


def test_a_name_has_a_length(host: FakeSysfs, names: PciNames, tmp_path: Path) -> None:
    host.function(NIC)
    udev(tmp_path, "V" * 95, "M" * 500)
    name = names.name(only(host))
    assert len(name) == LIMIT
    assert name.endswith("...")


def test_bytes_that_are_no_text(host: FakeSysfs, names: PciNames, tmp_path: Path) -> None:
    host.function(NIC)
    (tmp_path / "pci.ids").write_bytes(b"8086  Int\xffel\n\t10d3  \xfe\n")
    assert names.name(only(host)) == "Int\ufffdel \ufffd"

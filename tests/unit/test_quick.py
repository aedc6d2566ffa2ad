# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains for people without XML."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from golden.cases import BINARY, wiring
from sessionvirt.cli.arguments import parser
from sessionvirt.cli.definition import load_domain
from sessionvirt.errors import DefinitionError, NotFoundError, UsageError
from sessionvirt.model.addresses import PciAddress
from sessionvirt.model.bandwidth import BandwidthRate
from sessionvirt.model.devices import CharType, DiskFormat
from sessionvirt.model.domain import dump_domain, parse_domain
from sessionvirt.model.interface import InterfaceType
from sessionvirt.model.quick import QuickDisk, QuickNetwork, disk_format, quick_domain
from sessionvirt.qemu.command import build

if TYPE_CHECKING:
    from pathlib import Path

    from sessionvirt.model.domain import Domain

pytestmark = pytest.mark.unit


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "my disk (1).qcow2"
    path.write_bytes(b"QFI\xfb" + bytes(200))
    return path


def test_a_disk(disk: Path) -> None:
    domain = quick_domain(
        [QuickDisk(disk)],
        memory_mib=2048,
        vcpus=2,
        networks=[QuickNetwork("default"), QuickNetwork(bridge="br0", vlan=42), QuickNetwork()],
    )
    assert domain.name == "my-disk-1"
    assert (domain.memory, domain.vcpus) == (2 << 30, 2)
    assert domain.disks[0].file == str(disk)
    assert domain.disks[0].format is DiskFormat.QCOW2
    assert [nic.type for nic in domain.interfaces] == [
        InterfaceType.NETWORK,
        InterfaceType.BRIDGE,
        InterfaceType.USER,
    ]
    vlans = [nic.vlan and [tag.id for tag in nic.vlan.tags] for nic in domain.interfaces]
    assert vlans == [None, [42], None]
    assert parse_domain(dump_domain(domain), strict=True).value == domain
    assert build(domain, BINARY, wiring(domain)).argv


def test_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kernel = tmp_path / "vmlinuz-6.1"
    domain = quick_domain(
        kernel=kernel.relative_to(tmp_path),
        initrd=tmp_path / "i",
        append="console=ttyS0",
        console=CharType.STDIO,
        networks=(),
    )
    assert domain.os is not None
    assert (domain.os.kernel, domain.os.cmdline) == (str(kernel), "console=ttyS0")
    assert domain.name == "vmlinuz-6"
    assert domain.consoles[0].type is CharType.STDIO
    assert domain.interfaces == ()


def test_devices_of_the_host(disk: Path) -> None:
    """They are taken from their drivers: who has no XML has not prepared them."""
    pci = [PciAddress(0, 3, 0, 0), PciAddress(1, 0xC1, 0x1F, 7)]
    domain = quick_domain([QuickDisk(disk)], pci=pci)
    assert [device.host for device in domain.hostdevs] == pci
    assert all(device.managed for device in domain.hostdevs)
    assert parse_domain(dump_domain(domain), strict=True).value == domain
    assert build(domain, BINARY, wiring(domain)).argv
    with pytest.raises(DefinitionError, match=r"0000:03:00\.0' is used twice"):
        quick_domain([QuickDisk(disk)], pci=pci[:1] * 2)


@pytest.mark.parametrize(
    ("head", "found"),
    [(b"", "raw"), (b"QFI\xfb", "qcow2"), (b"\x7fELF", "raw"), (bytes(600), "raw")],
)
def test_format(tmp_path: Path, head: bytes, found: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(head)
    assert disk_format(path) == found


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"KDMV", "vmdk"), (bytes(64) + b"\x7f\x10\xda\xbe", "vdi"), (b"vhdxfile", "vhdx")],
)
def test_other_formats_are_not_taken_for_raw(tmp_path: Path, head: bytes, name: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(head)
    with pytest.raises(UsageError, match=name) as caught:
        disk_format(path)
    assert "qemu-img convert" in caught.value.advice


def test_a_format_that_is_said_is_believed(disk: Path) -> None:
    domain = quick_domain([QuickDisk(disk, DiskFormat.RAW)])
    assert domain.disks[0].format is DiskFormat.RAW


def test_what_cannot_be(tmp_path: Path, disk: Path) -> None:
    with pytest.raises(UsageError, match="nothing to boot"):
        quick_domain()
    with pytest.raises(NotFoundError, match="cannot be read"):
        quick_domain([QuickDisk(tmp_path / "absent")])
    with pytest.raises(UsageError, match="26 disks"):
        quick_domain([QuickDisk(disk)] * 27)
    with pytest.raises(DefinitionError, match="memory"):
        quick_domain([QuickDisk(disk)], memory_mib=0)
    with pytest.raises(DefinitionError, match="kernel"):
        quick_domain([QuickDisk(disk)], append="quiet")


def test_a_vlan_of_the_command_line_is_the_interfaces(disk: Path) -> None:
    def load(*words: str) -> Domain:
        return load_domain(parser().parse_args(["run", *words, str(disk)]))

    (nic,) = load("--bridge", "br0,vlan=42").interfaces
    assert nic.vlan is not None
    assert (nic.bridge, [tag.id for tag in nic.vlan.tags]) == ("br0", [42])
    assert "<tag id='42'/>" in dump_domain(load("--bridge=br0,vlan=42"))
    (nic,) = load("--bridge", "br0").interfaces
    assert (nic.bridge, nic.vlan) == ("br0", None)
    for text in ("0", "4095", "-1", "4_2", "\u0664", "x", "", " 42", "042", "42,vlan=42", "42,"):
        with pytest.raises(UsageError, match="cannot be said after 'br0'"):
            load("--bridge", f"br0,vlan={text}")
    for text in ("br0,", "br0,vlan", "br0,mtu=1500", "br0,42"):
        with pytest.raises(UsageError, match="cannot be said after 'br0'"):
            load("--bridge", text)


def test_an_interface_of_the_command_line_has_a_mode(disk: Path) -> None:
    def load(*words: str) -> Domain:
        return load_domain(parser().parse_args(["run", *words, str(disk)]))

    (nic,) = load("--direct", "eth0").interfaces
    assert (nic.type, nic.device, nic.mode, nic.queues) == ("direct", "eth0", "bridge", 1)
    for text in ("eth0,mode=private,queues=4", "eth0,queues=4,mode=private"):
        (nic,) = load("--direct", text).interfaces
        assert (nic.device, nic.mode, nic.queues) == ("eth0", "private", 4)
    assert "<source dev='eth0' mode='vepa'/>" in dump_domain(load("--direct=eth0,mode=vepa"))
    for text in (
        "mode=passthrough",
        "mode=",
        "mode=hub",
        "mode=vepa,mode=vepa",
        "vlan=4",
        "queues=0",
    ):
        with pytest.raises(UsageError, match="cannot be said after 'eth0'"):
            load("--direct", f"eth0,{text}")


def test_an_interface_of_the_command_line_is_isolated_and_limited(disk: Path) -> None:
    def load(*words: str) -> Domain:
        return load_domain(parser().parse_args(["run", *words, str(disk)]))

    for words in (["--network", "lab,isolated,queues=4"], ["--bridge=br0,queues=4,isolated"]):
        (nic,) = load(*words).interfaces
        assert (nic.isolated, nic.queues, nic.bandwidth) == (True, 4, None)
    assert "<port isolated='yes'/>" in dump_domain(load("--network=lab,isolated"))
    domain = load("--network", "lab", "--limit-inbound", "10M,burst=1M", "--limit-outbound=8Mbit")
    limits = domain.interfaces[0].bandwidth
    assert limits is not None
    assert limits.inbound == BandwidthRate(average=10_000, burst=1024)
    assert limits.outbound == BandwidthRate(average=1000)
    assert parse_domain(dump_domain(domain), strict=True).value == domain
    for words in (
        ["--network=user,isolated"],
        ["--limit-inbound=1M"],
        ["--network=none", "--limit-outbound=1M"],
        ["--direct=eth0", "--limit-outbound=1M"],
        ["--direct=eth0,isolated"],
        ["--network=lab,isolated=1"],
        ["--network=lab", "--limit-inbound=fast"],
    ):
        with pytest.raises(UsageError):
            load(*words)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices of the host: what is asked for them, and what is said of them."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from golden.cases import BINARY, parsed
from sessionvirt.broker_data import DeviceInfo
from sessionvirt.broker_requests import BandwidthRequest, PciRequest, TapRequest
from sessionvirt.cli import devices as verb
from sessionvirt.cli.arguments import parser
from sessionvirt.cli.definition import load_domain
from sessionvirt.cli.devicewords import (
    assignable,
    class_words,
    groups,
    iommu_advice,
    notes,
    reset_words,
)
from sessionvirt.driver.lease import broker_requests
from sessionvirt.driver.rehearsal import rehearse
from sessionvirt.errors import NotFoundError, UsageError
from sessionvirt.host.cpu import CpuVendor, vendor
from sessionvirt.host.iommu import group_count
from sessionvirt.model.addresses import PciAddress
from sessionvirt.qemu.wiring import Accelerator

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

pytestmark = pytest.mark.unit

# -- what is asked for -----------------------------------------------------------------------------


@pytest.mark.parametrize("with_group", [True, False])
def test_each_device_is_a_request_after_the_taps(*, with_group: bool) -> None:
    hostdevs = parsed("hostdevs").value
    domain = dataclasses.replace(
        parsed("interfaces").value, interfaces=(), hostdevs=hostdevs.hostdevs
    )
    nic, other = "0000:03:00.0", "10001:c1:1f.7"
    wanted = (
        PciRequest(nic, with_group=with_group, also=(other,)),
        PciRequest(
            other, with_group=with_group, also=(nic,), managed=False, driver="mlx5_vfio_pci"
        ),
    )
    assert broker_requests(domain, with_group=with_group) == wanted
    both = dataclasses.replace(domain, interfaces=parsed("interfaces").value.interfaces)
    kinds = [type(each) for each in broker_requests(both)]
    assert [kind for kind in kinds if kind is not BandwidthRequest] == [
        *(TapRequest, TapRequest, TapRequest, PciRequest, PciRequest)
    ]


def test_who_needs_nothing_asks_for_nothing() -> None:
    assert broker_requests(parsed("minimal").value, with_group=True) == ()


def test_only_so_many_can_be_named() -> None:
    names = tuple(f"0000:{number:02x}:00.0" for number in range(33))
    assert PciRequest("0000:ff:00.0", also=names[:32]).parameters()["also"] == (
        "as",
        list(names[:32]),
    )
    with pytest.raises(UsageError):
        PciRequest("0000:ff:00.0", also=names)


def test_a_rom_that_is_missing_is_found_before_anybody_is_asked(tmp_path: Path) -> None:
    (hostdev, *_) = parsed("hostdevs").value.hostdevs
    rom = tmp_path / "rom.bin"
    hostdev = dataclasses.replace(hostdev, rom_file=str(rom))
    domain = dataclasses.replace(
        parsed("hostdevs").value, hostdevs=(hostdev,), disks=(), interfaces=()
    )
    with pytest.raises(NotFoundError, match=r"hostdev.*rom") as caught:
        rehearse(domain, BINARY, Accelerator.TCG)
    assert caught.value.evidence == "there is no such file"
    rom.touch()
    assert any("vfio-pci" in word for word in rehearse(domain, BINARY, Accelerator.TCG).argv)


# -- the command line ------------------------------------------------------------------------------


def arguments(*words: str) -> argparse.Namespace:
    return parser().parse_args(["run", *words])


def test_addresses_of_the_command_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.touch()
    words = ("--pci", "03:00.0", "--pci", "0001:C1:1f.7", "--with-group", str(disk))
    domain = load_domain(arguments(*words))
    assert [device.host for device in domain.hostdevs] == [
        PciAddress(0, 3, 0, 0),
        PciAddress(1, 0xC1, 0x1F, 7),
    ]
    assert load_domain(arguments(str(disk))).hostdevs == ()
    with pytest.raises(UsageError, match="--pci: '03:00' is not a PCI address") as caught:
        load_domain(arguments("--pci", "03:00", str(disk)))
    assert "sessionvirt devices" in caught.value.advice


def test_a_definition_has_its_own_devices_and_may_have_their_groups(tmp_path: Path) -> None:
    path = tmp_path / "guest.xml"
    path.write_text("<domain><name>g</name><memory unit='MiB'>64</memory></domain>")
    assert load_domain(arguments("--with-group", str(path))).name == "g"
    with pytest.raises(UsageError, match="--pci cannot be combined with an XML definition"):
        load_domain(arguments("--pci", "03:00.0", str(path)))


# -- what is said ----------------------------------------------------------------------------------


def device(address: str, verdict: str, **rest: object) -> DeviceInfo:
    plain = DeviceInfo(
        address=address,
        name="a name",
        ids="8086:10d3",
        subsystem="",
        class_code="020000",
        driver="e1000e",
        variant="",
        group="6",
        endpoint=verdict != "bridge",
        resets=("flr",),
        rom=False,
        uses=(),
        holder="",
        verdict=verdict,
    )
    return dataclasses.replace(plain, **rest)  # type: ignore[arg-type]


A, B, C = "0000:03:00.0", "0000:03:00.1", "0000:03:00.2"


@pytest.mark.parametrize(
    ("members", "verdict", "words"),
    [
        ([device(A, "free")], "free", "free to assign"),
        ([device(A, "bridge"), device(B, "free")], "free", "free to assign"),
        (
            [device(A, "group"), device(B, "group"), device(C, "bridge")],
            "group",
            f"takes 1 other along: {A}, {B} go together (--with-group)",
        ),
        (
            [device(A, "group"), device(B, "group"), device(C, "group")],
            "group",
            f"takes 2 others along: {A}, {B}, {C} go together (--with-group)",
        ),
        (
            [device(A, "refused"), device(B, "refused", uses=("swap on /dev/vda2",))],
            "refused",
            f"refused: {B}: swap on /dev/vda2",
        ),
        (
            [device(A, "refused", uses=("file system /", "file system /home"))],
            "refused",
            f"refused: {A}: file system / (and 1 more)",
        ),
        ([device(A, "refused")], "refused", "refused: it cannot be isolated from other devices"),
        ([device(A, "held", holder="win11")], "held", "held by win11"),
        ([device(A, "held", holder="-")], "held", "held by another user's machine"),
        ([device(A, "held")], "held", "held by a machine that has just ended"),
        ([device(A, "held", holder="x"), device(B, "refused")], "held", "held by x"),
        ([device(A, "bridge")], "bridge", "bridges only, nothing to assign"),
        (
            [device(A, "no-iommu", group="")],
            "no-iommu",
            "no IOMMU: none of these can be given to a machine",
        ),
        ([device(A, "free"), device(B, "reserved")], "reserved", "reserved"),
    ],
)
def test_one_verdict_for_a_group(members: list[DeviceInfo], verdict: str, words: str) -> None:
    (group,) = groups(members)
    assert (group.verdict, group.explanation) == (verdict, words)
    assert group.devices == tuple(members)


def test_groups_in_order_and_those_of_none_last() -> None:
    found = groups(
        [
            device("0000:00:00.0", "no-iommu", group=""),
            device("0000:01:00.0", "free", group="9"),
            device("0000:02:00.0", "group", group="2"),
            device("0000:03:00.0", "group", group="2"),
        ]
    )
    assert [(group.number, len(group.devices)) for group in found] == [("9", 1), ("2", 2), ("", 1)]


def test_what_one_function_is() -> None:
    assert [class_words(code) for code in ("010802", "0c0330", "02ff00", "ff0000")] == [
        "NVMe",
        "USB controller",
        "network",
        "class ff0000",
    ]
    plain = device(A, "refused", uses=("swap",), holder="x", resets=())
    assert reset_words(plain) == "no reset"
    assert notes(plain) == [
        "in use: swap",
        "held by x",
        "warning: it cannot be reset; what a guest left may stay in it",
    ]
    assert reset_words(device(A, "free", resets=("flr", "bus"))) == "reset flr, bus"
    assert notes(device(A, "held", holder="x")) == []
    bridge = device(A, "bridge", resets=())
    assert (reset_words(bridge), notes(bridge)) == ("", [])


@pytest.mark.parametrize(
    ("verdict", "can"),
    [("free", True), ("group", True), ("refused", False), ("held", False), ("bridge", False)],
)
def test_what_can_be_given(verdict: str, *, can: bool) -> None:
    assert assignable(device(A, verdict)) is can


def test_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        device("0000:02:00.0", "bridge", name="Root Port", class_code="060400", driver="pcieport"),
        device(A, "group", name="82574L \x1b[2J", driver="", variant="a_vfio_pci", resets=()),
        device(B, "group", name="82574L Gigabit"),
    ]

    async def ask() -> tuple[DeviceInfo, ...]:
        return tuple(rows)

    monkeypatch.setattr(verb, "_ask", ask)
    assert verb.main(parser().parse_args(["devices"])) == 0
    assert capsys.readouterr().out.splitlines() == [
        "group 6: takes 1 other along: 0000:03:00.0, 0000:03:00.1 go together (--with-group)",
        "  0000:02:00.0  Root Port       PCI bridge  driver pcieport               reset flr",
        r"  0000:03:00.0  82574L \x1b[2J  Ethernet    no driver (VFIO: a_vfio_pci)  no reset",
        "    warning: it cannot be reset; what a guest left may stay in it",
        "  0000:03:00.1  82574L Gigabit  Ethernet    driver e1000e                 reset flr",
    ]
    assert verb.main(parser().parse_args(["devices", "--json"])) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["version"], report["advice"]) == (1, "")
    assert report["groups"][0]["devices"][1]["class"] == "020000"
    rows.append(device("nonsense\n", "free"))
    assert verb.main(parser().parse_args(["devices", "--names"])) == 0
    assert capsys.readouterr().out.split() == [A, B]


@pytest.mark.parametrize(
    ("text", "found", "words"),
    [
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n", CpuVendor.INTEL, "intel_iommu=on"),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", CpuVendor.AMD, "AMD-Vi"),
        ("vendor_id\t: HygonGenuine\n", CpuVendor.AMD, "AMD-Vi"),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", CpuVendor.ARM, "SMMU"),
        ("processor\t: 0\nhart\t\t: 2\n", CpuVendor.OTHER, "firmware"),
        (None, CpuVendor.OTHER, "firmware"),
    ],
)
def test_where_an_iommu_is_turned_on(
    tmp_path: Path, text: str | None, found: CpuVendor, words: str
) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    assert vendor(str(path)) is found
    assert words in iommu_advice(found)


def test_groups_are_counted_where_the_kernel_has_any(tmp_path: Path) -> None:
    assert group_count(str(tmp_path / "none")) == 0
    assert group_count(str(tmp_path)) == 0
    for name in ("0", "17", "not-a-group"):
        (tmp_path / name).mkdir()
    assert group_count(str(tmp_path)) == 2

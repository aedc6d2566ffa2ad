# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must be acquired for a domain."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from golden.cases import BINARY, parsed
from sessionvirt.broker_requests import PciRequest, TapRequest
from sessionvirt.driver import rehearsal
from sessionvirt.driver.lease import broker_requests
from sessionvirt.errors import NotFoundError
from sessionvirt.model.addresses import MacAddress, PciAddress
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.needs import Need, NeedKind, PciNeed, needs, pci_needs
from sessionvirt.qemu.wiring import Accelerator

if TYPE_CHECKING:
    from pathlib import Path

HOSTDEV = """\
<domain type='qemu'><name>one</name><memory>65536</memory><os><type machine='q35'>hvm</type></os>
<devices>
<hostdev type='pci'><source><address bus='3' slot='0'/></source></hostdev></devices></domain>
"""

pytestmark = pytest.mark.unit

FUNCTION = MacAddress("52:54:00:11:22:06")


def test_one_for_each_interface_in_order() -> None:
    mac = [interface.mac for interface in parsed("interfaces").value.interfaces]
    assert needs(parsed("interfaces").value) == (
        Need(NeedKind.TAP, 0, network="default", mac=mac[0], queues=2, mtu=1400),
        Need(NeedKind.TAP, 1, bridge="br0", vlan=42, mac=mac[1]),
        Need(NeedKind.USER, 2, mac=mac[2]),
        Need(NeedKind.USER, 3, mac=mac[3]),
        Need(NeedKind.TAP, 4, bridge="br0", vlan=43, mac=mac[4]),
    )


def test_none_without_interfaces() -> None:
    assert needs(parsed("minimal").value) == ()
    assert pci_needs(parsed("minimal").value) == ()


def test_each_host_device_names_the_others() -> None:
    """Also one that is an interface, whose card is told more."""
    nic, other, function = (
        PciAddress(0, 3, 0, 0), PciAddress(0x10001, 0xC1, 0x1F, 7), PciAddress(0, 3, 0x10, 2),
    )  # fmt: skip
    assert pci_needs(parsed("hostdevs").value) == (
        PciNeed(nic, (other, function), managed=True),
        PciNeed(other, (nic, function), managed=False, driver="mlx5_vfio_pci"),
        PciNeed(function, (nic, other), managed=True, mac=FUNCTION, vlan=42),
    )
    *plain, asked = broker_requests(parsed("hostdevs").value)
    assert isinstance(asked, PciRequest)
    assert (asked.address, asked.mac, asked.vlan) == ("0000:03:10.2", FUNCTION, 42)
    assert not any({"mac", "vlan"} & one.parameters().keys() for one in plain)
    # The other interface is the only one that a backend is made for.
    assert [need.interface for need in needs(parsed("hostdevs").value)] == [1]


def test_a_vlan_is_asked_for_with_its_bridge() -> None:
    requests = broker_requests(parsed("interfaces").value)
    sent = [one.parameters() for one in requests]
    assert [one.get("vlan") for one in sent] == [None, ("u", 42), ("u", 43)]
    assert [one.get("bridge") for one in sent] == [None, ("s", "br0"), ("s", "br0")]


@pytest.mark.parametrize(("queues", "fds"), [(11, True), (12, False)])
def test_devices_are_asked_for_as_descriptors_where_one_answer_carries_them(
    queues: int,
    fds: bool,  # noqa: FBT001
) -> None:
    """16, with the hold, the queues, and two for each device; all of them in the same way."""
    domain = dataclasses.replace(
        parsed("hostdevs").value,
        interfaces=(dataclasses.replace(parsed("interfaces").value.interfaces[0], queues=queues),),
    )
    tap, *devices = broker_requests(domain, fds=True)
    assert isinstance(tap, TapRequest)
    assert [isinstance(one, PciRequest) and one.fds for one in devices] == [fds, fds]
    assert [one.parameters().get("driver") for one in devices] == [None, ("s", "mlx5_vfio_pci")]
    sent = [one.parameters().get("fds") for one in devices]
    assert sent == [("b", True) if fds else None] * 2
    assert not any("fds" in one.parameters() for one in broker_requests(domain))


@pytest.mark.parametrize(
    ("version", "objects", "node", "word"),
    [
        ((9, 0, 0), {"iommufd"}, True, '"iommufd":"iommufd0"'),
        ((9, 0, 0), {"iommufd"}, False, '"host":"0000:03:00.0"'),
        ((9, 0, 0), set(), True, '"host":"0000:03:00.0"'),
        ((8, 2, 9), {"iommufd"}, True, '"host":"0000:03:00.0"'),
    ],
)
def test_a_rehearsal_has_descriptors_where_qemu_and_the_host_have(
    version: tuple[int, int, int],
    objects: set[str],
    node: bool,  # noqa: FBT001
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if node:
        (tmp_path / "iommu").touch()
    monkeypatch.setattr(rehearsal, "_IOMMUFD", str(tmp_path / "iommu"))
    binary = dataclasses.replace(BINARY, version=version, objects=frozenset(objects))
    assert binary.takes_iommufd is (version >= (9, 0, 0) and bool(objects))
    command = rehearsal.rehearse(parse_domain(HOSTDEV).value, binary, Accelerator.TCG)
    (device,) = [each for each in command.argv if '"vfio-pci"' in each]
    assert word in device


def test_a_rehearsal_knows_a_card_of_the_host_by_its_interface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts among the devices that come as descriptors, and its ROM among the files."""
    (tmp_path / "iommu").touch()
    monkeypatch.setattr(rehearsal, "_IOMMUFD", str(tmp_path / "iommu"))
    binary = dataclasses.replace(BINARY, version=(9, 0, 0), objects=frozenset({"iommufd"}))
    domain = parse_domain(
        "<domain type='qemu'><name>vm</name><memory>1024</memory><devices>"
        "<interface type='hostdev'><source><address bus='3' slot='0x10'/></source></interface>"
        "</devices></domain>"
    ).value
    command = rehearsal.rehearse(domain, binary, Accelerator.TCG)
    (device,) = [each for each in command.argv if '"vfio-pci"' in each]
    assert '"iommufd":"iommufd0"' in device
    nic = dataclasses.replace(domain.interfaces[0], rom_file=str(tmp_path / "absent"))
    with pytest.raises(NotFoundError, match=r"rom/@file: cannot use .*absent"):
        rehearsal.rehearse(dataclasses.replace(domain, interfaces=(nic,)), binary, Accelerator.TCG)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must be acquired for a domain."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from golden.cases import BINARY, parsed
from sessionvirt.broker_requests import PciRequest, TapRequest
from sessionvirt.driver import rehearsal
from sessionvirt.driver.lease import broker_requests
from sessionvirt.model.addresses import PciAddress
from sessionvirt.model.devices import Interface, InterfaceType, NicModel
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.needs import Need, NeedKind, PciNeed, needs, pci_needs
from sessionvirt.model.nic import NicDriver
from sessionvirt.qemu.wiring import Accelerator

if TYPE_CHECKING:
    from pathlib import Path

HOSTDEV = """\
<domain type='qemu'><name>one</name><memory>65536</memory><os><type machine='q35'>hvm</type></os>
<devices>
<hostdev type='pci'><source><address bus='3' slot='0'/></source></hostdev></devices></domain>
"""

pytestmark = pytest.mark.unit


def nic(queues: int = 1, **more: Any) -> Interface:
    """A virtio interface on a network."""
    return Interface(
        type=InterfaceType.NETWORK,
        network="default",
        model=NicModel.VIRTIO,
        driver=NicDriver(queues=queues, **more),
    )


def test_one_for_each_interface_in_order() -> None:
    mac = [interface.mac for interface in parsed("interfaces").value.interfaces]
    assert needs(parsed("interfaces").value) == (
        Need(NeedKind.TAP, 0, network="default", mac=mac[0], queues=2, mtu=1400, vhost=True),
        Need(NeedKind.TAP, 1, bridge="br0", mac=mac[1]),
        Need(NeedKind.USER, 2, mac=mac[2]),
        Need(NeedKind.USER, 3, mac=mac[3]),
    )


def test_none_without_interfaces() -> None:
    assert needs(parsed("minimal").value) == ()
    assert pci_needs(parsed("minimal").value) == ()


def test_each_host_device_names_the_others() -> None:
    nic, other = PciAddress(0, 3, 0, 0), PciAddress(1, 0xC1, 0x1F, 7)
    assert pci_needs(parsed("hostdevs").value) == (
        PciNeed(0, nic, (other,), managed=True),
        PciNeed(1, other, (nic,), managed=False),
    )


@pytest.mark.parametrize(("queues", "fds"), [(11, True), (12, False)])
def test_devices_are_asked_for_as_descriptors_where_one_answer_carries_them(
    queues: int,
    fds: bool,  # noqa: FBT001
) -> None:
    """16, with the hold, the queues, and two for each device; all of them in the same way."""
    domain = dataclasses.replace(
        parsed("hostdevs").value,
        interfaces=(nic(queues),),
    )
    tap, *devices = broker_requests(domain, fds=True)
    assert isinstance(tap, TapRequest)
    assert [isinstance(one, PciRequest) and one.fds for one in devices] == [fds, fds]
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

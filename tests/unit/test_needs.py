# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must be acquired for a domain."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any

import pytest

from golden.cases import BINARY, parsed
from sessionvirt.broker_data import TapGrant
from sessionvirt.broker_requests import BandwidthRequest, PciRequest, Rate, TapRequest
from sessionvirt.descriptors import Fd
from sessionvirt.driver import network, rehearsal
from sessionvirt.driver.lease import broker_requests
from sessionvirt.errors import NotFoundError
from sessionvirt.model.addresses import MacAddress, PciAddress
from sessionvirt.model.bandwidth import BandwidthRate
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.interface import Interface, InterfaceType, NicModel
from sessionvirt.model.needs import Need, NeedKind, PciNeed, interface_need, needs, pci_needs
from sessionvirt.model.nic import NicBackend, NicDriver
from sessionvirt.model.portforward import PortProtocol, Ports
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
    limited = Need(
        *(NeedKind.TAP, 0),
        network="default",
        mac=mac[0],
        queues=2,
        mtu=1400,
        vhost=True,
        inbound=BandwidthRate(average=1000, peak=5000, burst=5120),
        outbound=BandwidthRate(average=128),
    )
    ports = [Ports(PortProtocol.TCP, "127.0.0.1", *pair) for pair in ((8080, 80), (8082, 82))]
    assert needs(parsed("interfaces").value) == (
        limited,
        Need(NeedKind.TAP, 1, bridge="br0", vlan=42, mac=mac[1]),
        Need(NeedKind.USER, 2, mac=mac[2], ports=tuple(ports)),
        Need(NeedKind.USER, 3, mac=mac[3]),
        Need(NeedKind.TAP, 4, bridge="br0", vlan=43, mac=mac[4], isolated=True),
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


def test_an_interface_of_the_host_is_asked_for_with_its_mode() -> None:
    """Without one it is vepa, as libvirt has it."""
    first, second = needs(parsed("direct").value)
    assert (first.kind, first.device, first.mode) == (NeedKind.TAP, "eth0", "bridge")
    assert (second.kind, second.device, second.mode) == (NeedKind.TAP, "eth0.42", "vepa")
    asked = broker_requests(parsed("direct").value, vhost=True)
    assert [(one.kind, one.parameters()) for one in asked] == [
        (
            "direct",
            {
                "device": ("s", "eth0"),
                "mode": ("s", "bridge"),
                "mac": ("s", "52:54:00:11:22:01"),
                "queues": ("u", 2),
                "vhost": ("b", True),
                "name": ("s", "lan"),
            },
        ),
        (
            "direct",
            {
                "device": ("s", "eth0.42"),
                "mode": ("s", "vepa"),
                "mac": ("s", "52:54:00:11:22:02"),
            },
        ),
    ]


def test_a_vlan_is_asked_for_with_its_bridge() -> None:
    requests = broker_requests(parsed("interfaces").value)
    sent = [one.parameters() for one in requests if isinstance(one, TapRequest)]
    assert [one.get("vlan") for one in sent] == [None, ("u", 42), ("u", 43)]
    assert [one.get("isolated") for one in sent] == [None, None, ("b", True)]
    assert [one.get("bridge") for one in sent] == [None, ("s", "br0"), ("s", "br0")]


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
    assert [one.parameters().get("driver") for one in devices] == [None, ("s", "mlx5_vfio_pci")]
    sent = [one.parameters().get("fds") for one in devices]
    assert sent == [("b", True) if fds else None] * 2
    assert not any("fds" in one.parameters() for one in broker_requests(domain))


@pytest.mark.parametrize(
    ("queues", "asked"),
    [
        ((1,), [True]),
        ((7,), [True]),
        ((8,), [False]),
        ((4, 3), [True, True]),
        ((5, 4), [True, False]),
    ],
)
def test_vhost_is_asked_for_as_long_as_one_answer_has_room(
    queues: tuple[int, ...], asked: list[bool]
) -> None:
    """16, with the hold and each queue once and once more. What has no room is given without."""
    domain = dataclasses.replace(
        parsed("minimal").value, interfaces=tuple(nic(number) for number in queues)
    )
    found = broker_requests(domain, vhost=True)
    assert [isinstance(one, TapRequest) and one.vhost for one in found] == asked
    assert not any("vhost" in one.parameters() for one in broker_requests(domain))


def test_devices_come_as_descriptors_before_vhost_does() -> None:
    """That is who may open a device; this is speed."""
    domain = dataclasses.replace(parsed("hostdevs").value, interfaces=(nic(6),))
    tap, *devices = broker_requests(domain, fds=True, vhost=True)
    assert "vhost" not in tap.parameters()
    assert ["fds" in one.parameters() for one in devices] == [True, True]
    tap, *devices = broker_requests(domain, fds=False, vhost=True)
    assert "vhost" in tap.parameters()


@pytest.mark.parametrize(
    ("backend", "kvm", "asked"),
    [
        (None, True, True),
        (None, False, False),
        (NicBackend.QEMU, True, False),
        (NicBackend.VHOST, False, True),
    ],
)
def test_the_document_decides_about_vhost_where_it_says_something(
    backend: NicBackend | None,
    kvm: bool,  # noqa: FBT001
    asked: bool,  # noqa: FBT001
) -> None:
    domain = dataclasses.replace(parsed("minimal").value, interfaces=(nic(name=backend),))
    (request,) = broker_requests(domain, vhost=kvm)
    assert ("vhost" in request.parameters()) is asked
    other = dataclasses.replace(domain.interfaces[0], model=NicModel.E1000E, driver=None)
    (request,) = broker_requests(dataclasses.replace(domain, interfaces=(other,)), vhost=True)
    assert "vhost" not in request.parameters()


def grant(*, vhost: int) -> TapGrant:
    """One of a queue, with so many descriptors of /dev/vhost-net; they are none's."""
    fds = [Fd(os.open(os.devnull, os.O_RDONLY)) for _ in range(1 + vhost)]
    words: dict[str, Any] = dict.fromkeys(("ifname", "network", "bridge"), "")
    return TapGrant(
        "tap0", "tap", tuple(fds[:1]), ifindex=1, mac="52:54:00:00:00:01", mtu=1500,
        ipv4=(), ipv6=(), vhost_fds=tuple(fds[1:]), vhost=bool(vhost), **words,
    )  # fmt: skip


def test_vhost_that_is_insisted_on_is_there_or_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(network, "_VHOST_NET", str(tmp_path / "vhost-net"))
    insists, silent = (interface_need(nic(name=name), 0) for name in (NicBackend.VHOST, None))
    for vhost in (1, 0):
        given = grant(vhost=vhost)
        with contextlib.ExitStack() as stack:
            for fd in given.descriptors:
                stack.enter_context(fd)
            found = network.tap_wiring(silent, given, stack, vhost=True)
            assert found.vhost_fds == tuple(fd.fileno() for fd in given.vhost_fds)
            if vhost:
                assert network.tap_wiring(insists, given, stack, vhost=False) == found
                continue
            with pytest.raises(NotFoundError, match="interface 0 is to have vhost"):
                network.tap_wiring(insists, given, stack, vhost=False)
            # A user who may opens the node.
            (tmp_path / "vhost-net").touch()
            own = network.tap_wiring(insists, given, stack, vhost=False).vhost_fds
            assert [os.readlink(f"/proc/self/fd/{fd}") for fd in own] == [
                str(tmp_path / "vhost-net")
            ]


def test_a_name_that_libvirt_made_up_is_nobodys_wish() -> None:
    for target, name in (("vnet7", None), ("macvtap0", None), ("web", "web"), (None, None)):
        made = dataclasses.replace(nic(), target=target)
        assert interface_need(made, 0).name == name


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


def test_a_limit_names_its_tap_by_its_place_in_the_call() -> None:
    text = """\
<domain type='qemu'><name>one</name><memory>65536</memory><os><type machine='q35'>hvm</type></os>
<devices><interface type='user'/><interface type='network'><source network='a'/></interface>
<interface type='bridge'><source bridge='b'/><bandwidth><inbound average='0'/>
<outbound average='9' floor='1'/></bandwidth></interface>
<hostdev type='pci'><source><address bus='3' slot='0'/></source></hostdev></devices></domain>
"""
    domain = parse_domain(text)
    assert [unknown.path.rpartition("/")[2] for unknown in domain.unknown] == ["@floor"]
    asked = broker_requests(domain.value)
    assert [one.kind for one in asked] == ["tap", "tap", "pci", "bandwidth"]
    assert asked[-1] == BandwidthRequest("tap1", None, Rate(9))

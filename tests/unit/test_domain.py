# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains that contradict themselves, domains from hostile bytes, domains of every shape."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from golden.cases import CASES, DIRECTORY
from sessionvirt.errors import DefinitionError
from sessionvirt.model.addresses import MacAddress, PciAddress
from sessionvirt.model.check import check_domain
from sessionvirt.model.devices import (
    Cache,
    CharType,
    Console,
    Disk,
    DiskBus,
    DiskFormat,
)
from sessionvirt.model.domain import Cpu, CpuMode, Domain, Os, dump_domain, parse_domain
from sessionvirt.model.hostdev import Hostdev, HostPlace
from sessionvirt.model.interface import Interface, InterfaceType, NicModel, host_devices
from sessionvirt.model.memory_lock import lock_limit
from sessionvirt.model.needs import needs
from sessionvirt.model.nic import GuestOffloads, HostOffloads, NicBackend, NicDriver
from sessionvirt.xmltree import MAX_BYTES

pytestmark = pytest.mark.unit

VDA = "<disk type='file'><source file='/a'/><target dev='vda'/></disk>"
NIC = "<interface type='user'/>"
LAN = "<interface type='bridge'><source bridge='b'/><vlan>{}</vlan></interface>"
LIMITED = "<interface type='bridge'><source bridge='b'/><bandwidth>{}</bandwidth></interface>"
VLAN = "4: /domain/devices/interface/vlan"
HOSTDEV = (
    "<hostdev mode='subsystem' type='pci' managed='yes'>"
    "<source><address bus='0x03' slot='0x00'/></source></hostdev>"
)
FUNCTION = (
    "<interface type='hostdev' managed='yes'><mac address='52:54:00:00:42:01'/>"
    "<source><address type='pci' bus='0x03' slot='0x10'/></source><vlan><tag id='42'/></vlan>"
    "</interface>"
)


def document(devices: str = "", rest: str = "", name: str = "guest") -> str:
    """Devices on line 4, the rest on line 3."""
    return (
        f"<domain>\n<name>{name}</name><memory unit='MiB'>64</memory>\n{rest}\n"
        f"<devices>{devices}</devices>\n</domain>"
    )


def with_memory(memory: str) -> str:
    return document().replace("<memory unit='MiB'>64</memory>", memory)


CONTRADICTIONS = {
    "two boot orders alike": (
        document(
            VDA.replace("</disk>", "<boot order='1'/></disk>")
            + NIC.replace("/>", "><boot order='1'/></interface>")
        ),
        "4: /domain/devices/interface/boot/@order",
    ),
    "boot order said twice": (
        document(VDA.replace("</disk>", "<boot order='1'/></disk>"), "<os><boot dev='hd'/></os>"),
        "4: /domain/devices/disk/boot/@order",
    ),
    "a function of a card without an address": (
        document("<interface type='hostdev'/>"),
        "4: /domain/devices/interface/source/address",
    ),
    "one that is a host device, too": (
        document(HOSTDEV.replace("0x00", "0x10") + FUNCTION),
        "4: /domain/devices/interface/source/address",
    ),
    "one that is none on the host": (
        document(FUNCTION.replace("0x10", "0x20")),
        "4: /domain/devices/interface/source/address",
    ),
    "one on a bridge": (
        document(FUNCTION.replace("<source>", "<source bridge='br0'>")),
        "4: /domain/devices/interface/source/@bridge",
    ),
    "one on a network": (
        document(FUNCTION.replace("<source>", "<source network='default'>")),
        "4: /domain/devices/interface/source/@network",
    ),
    "one with two VLANs": (
        document(FUNCTION.replace("</vlan>", "<tag id='43'/></vlan>")),
        "4: /domain/devices/interface/vlan",
    ),
    "one with a trunk": (
        document(FUNCTION.replace("<vlan>", "<vlan trunk='yes'>")),
        "4: /domain/devices/interface/vlan",
    ),
    "one with a VLAN of no number": (
        document(FUNCTION.replace("<tag id='42'/>", "")),
        "4: /domain/devices/interface/vlan",
    ),
    "one in VLAN 0": (
        document(FUNCTION.replace("'42'", "'0'")),
        "4: /domain/devices/interface/vlan/tag/@id",
    ),
    "one in VLAN 4095": (
        document(FUNCTION.replace("'42'", "'4095'")),
        "4: /domain/devices/interface/vlan/tag/@id",
    ),
    "one with an MTU": (
        document(FUNCTION.replace("<vlan>", "<mtu size='9000'/><vlan>")),
        "4: /domain/devices/interface/mtu/@size",
    ),
    "one with queues": (
        document(FUNCTION.replace("<vlan>", "<driver queues='2'/><vlan>")),
        "4: /domain/devices/interface/driver/@queues",
    ),
    "one without a link": (
        document(FUNCTION.replace("<vlan>", "<link state='down'/><vlan>")),
        "4: /domain/devices/interface/link/@state",
    ),
    "one with the address of another": (
        document(NIC.replace("/>", "><mac address='52:54:00:00:42:01'/></interface>") + FUNCTION),
        "4: /domain/devices/interface[2]/mac/@address",
    ),
    "a VLAN of an emulated card": (
        document(NIC.replace("/>", "><vlan><tag id='42'/></vlan></interface>")),
        "4: /domain/devices/interface/vlan",
    ),
    "an emulated card that is managed": (
        document(NIC.replace("/>", " managed='yes'/>")),
        "4: /domain/devices/interface/@managed",
    ),
    "an emulated card at a place of the host": (
        document(FUNCTION.replace("hostdev", "user").replace(" managed='yes'", "")),
        "4: /domain/devices/interface/source/address",
    ),
    "a ROM without a path": (
        document(NIC.replace("/>", "><rom file=''/></interface>")),
        "4: /domain/devices/interface/rom/@file",
    ),
    "boot device listed twice": (
        document(rest="<os><boot dev='hd'/><boot dev='hd'/></os>"),
        "3: /domain/os/boot[2]",
    ),
    "same target twice": (document(VDA + VDA), "4: /domain/devices/disk[2]/target/@dev"),
    "same SATA port twice": (
        document(VDA.replace("vda", "sdb") + VDA.replace("vda", "hdb")),
        "4: /domain/devices/disk[2]/target/@dev",
    ),
    "memory 0": (with_memory("<memory>0</memory>"), "2: /domain/memory"),
    "no memory": (with_memory(""), "1: /domain/memory"),
    "current memory above memory": (
        document(rest="<currentMemory unit='GiB'>1</currentMemory>"),
        "3: /domain/currentMemory",
    ),
    "current vcpus above vcpus": (
        document(rest="<vcpu current='3'>2</vcpu>"),
        "3: /domain/vcpu/@current",
    ),
    "topology": (
        document(rest="<cpu><topology sockets='1' cores='2' threads='1'/></cpu>"),
        "3: /domain/cpu/topology",
    ),
    "cdrom on virtio": (
        document("<disk device='cdrom'><target dev='sda' bus='virtio'/></disk>"),
        "4: /domain/devices/disk/target/@bus",
    ),
    "read-only SATA disk": (
        document("<disk><source file='/a'/><target dev='sda'/><readonly/></disk>"),
        "4: /domain/devices/disk/readonly",
    ),
    "disk without a source": (
        document("<disk><target dev='vda'/></disk>"),
        "4: /domain/devices/disk",
    ),
    "native io through the cache": (
        document(VDA.replace("<source", "<driver io='native'/><source")),
        "4: /domain/devices/disk/driver/@io",
    ),
    "shared qcow2": (
        document(VDA.replace("<source", "<driver type='qcow2'/><shareable/><source")),
        "4: /domain/devices/disk/shareable",
    ),
    "empty path": (document(VDA.replace("/a", "")), "4: /domain/devices/disk/source/@file"),
    "multicast MAC": (
        document("<interface type='user'><mac address='01:00:5e:00:00:01'/></interface>"),
        "4: /domain/devices/interface/mac/@address",
    ),
    "same MAC twice": (
        document("<interface type='user'><mac address='52:54:00:00:00:01'/></interface>" * 2),
        "4: /domain/devices/interface[2]/mac/@address",
    ),
    "network without a name": (
        document("<interface type='network'/>"),
        "4: /domain/devices/interface/source/@network",
    ),
    "bridge without a name": (
        document("<interface type='bridge'/>"),
        "4: /domain/devices/interface/source/@bridge",
    ),
    "user with a bridge": (
        document("<interface type='user'><source bridge='br0'/></interface>"),
        "4: /domain/devices/interface/source/@bridge",
    ),
    "user with a network": (
        document("<interface type='user'><source network='n'/></interface>"),
        "4: /domain/devices/interface/source/@network",
    ),
    "direct without a device": (
        document("<interface type='direct'><source mode='bridge'/></interface>"),
        "4: /domain/devices/interface/source/@dev",
    ),
    "a device of a network": (
        document("<interface type='network'><source network='n' dev='eth0'/></interface>"),
        "4: /domain/devices/interface/source/@dev",
    ),
    "a mode of a bridge": (
        document("<interface type='bridge'><source bridge='b' mode='private'/></interface>"),
        "4: /domain/devices/interface/source/@mode",
    ),
    "a mode that there is not": (
        document("<interface type='direct'><source dev='eth0' mode='hub'/></interface>"),
        "4: /domain/devices/interface/source/@mode",
    ),
    "passthrough": (
        document("<interface type='direct'><source dev='eth0' mode='passthrough'/></interface>"),
        "4: /domain/devices/interface/source/@mode",
    ),
    "direct with a bridge": (
        document("<interface type='direct'><source dev='eth0' bridge='b'/></interface>"),
        "4: /domain/devices/interface/source/@bridge",
    ),
    "direct with a VLAN": (
        document(
            "<interface type='direct'><source dev='eth0'/><vlan><tag id='1'/></vlan></interface>"
        ),
        "4: /domain/devices/interface/vlan",
    ),
    "isolated from nobody": (
        document("<interface type='user'><port isolated='yes'/></interface>"),
        "4: /domain/devices/interface/port/@isolated",
    ),
    "a limit of what has no TAP": (
        document(
            "<interface type='user'><bandwidth><inbound average='1'/></bandwidth></interface>"
        ),
        "4: /domain/devices/interface/bandwidth",
    ),
    "a limit of a macvtap": (
        document(
            "<interface type='direct'><source dev='eth0'/>"
            "<bandwidth><outbound average='1'/></bandwidth></interface>"
        ),
        "4: /domain/devices/interface/bandwidth",
    ),
    "a limit without an average": (
        document(LIMITED.format("<inbound burst='1'/>")),
        "4: /domain/devices/interface/bandwidth/inbound",
    ),
    "a limit beyond what there is": (
        document(LIMITED.format("<outbound average='4000001'/>")),
        "4: /domain/devices/interface/bandwidth/outbound/@average",
    ),
    "a peak below the average": (
        document(LIMITED.format("<outbound average='2' peak='1'/>")),
        "4: /domain/devices/interface/bandwidth/outbound/@peak",
    ),
    "a burst of minutes": (
        document(LIMITED.format("<inbound average='1' burst='235'/>")),
        "4: /domain/devices/interface/bandwidth/inbound/@burst",
    ),
    "interface name too long": (
        document(f"<interface type='bridge'><source bridge='{'b' * 16}'/></interface>"),
        "4: /domain/devices/interface/source/@bridge",
    ),
    "queues without virtio": (
        document("<interface type='bridge'><source bridge='b'/><driver queues='2'/></interface>"),
        "4: /domain/devices/interface/driver/@queues",
    ),
    "virtio's words for another card": (
        document(
            "<interface type='user'><model type='e1000'/>"
            "<driver><guest csum='off'/></driver></interface>"
        ),
        "4: /domain/devices/interface/driver",
    ),
    "vhost for another card": (
        document(
            "<interface type='bridge'><source bridge='b'/><model type='e1000e'/>"
            "<driver name='vhost'/></interface>"
        ),
        "4: /domain/devices/interface/driver",
    ),
    "vfio for a card that is emulated": (
        document("<interface type='user'><model type='virtio'/><driver name='vfio'/></interface>"),
        "4: /domain/devices/interface/driver/@name",
    ),
    "an emulated card's words for one of the host": (
        document(
            "<interface type='hostdev'><source><address bus='3' slot='0'/></source>"
            "<driver name='qemu'/></interface>"
        ),
        "4: /domain/devices/interface/driver",
    ),
    "vhost without a TAP": (
        document("<interface type='user'><model type='virtio'/><driver name='vhost'/></interface>"),
        "4: /domain/devices/interface/driver/@name",
    ),
    "a ring of a size that is none": (
        document("<interface type='user'><driver rx_queue_size='300'/></interface>"),
        "4: /domain/devices/interface/driver/@rx_queue_size",
    ),
    "the 257th queue": (
        document("<interface type='user'><driver queues='257'/></interface>"),
        "4: /domain/devices/interface/driver/@queues",
    ),
    "an offload that is neither on nor off": (
        document("<interface type='user'><driver><host tso4='yes'/></driver></interface>"),
        "4: /domain/devices/interface/driver/host/@tso4",
    ),
    "a target that is no interface's name": (
        document("<interface type='user'><target dev='a/b'/></interface>"),
        "4: /domain/devices/interface/target/@dev",
    ),
    "VLAN of a network": (
        document("<interface type='user'><vlan><tag id='1'/></vlan></interface>"),
        "4: /domain/devices/interface/vlan",
    ),
    "VLAN without a tag": (
        document("<interface type='bridge'><source bridge='b'/><vlan/></interface>"),
        "4: /domain/devices/interface/vlan",
    ),
    "VLAN 4095": (document(LAN.format("<tag id='4095'/>")), f"{VLAN}/tag/@id"),
    "VLAN 0": (document(LAN.format("<tag id='0'/>")), f"{VLAN}/tag/@id"),
    "VLAN trunk": (
        document(LAN.format("<tag id='1'/>").replace("<vlan", "<vlan trunk='yes'")),
        VLAN,
    ),
    "VLAN trunk by two tags": (
        document(LAN.format("<tag id='1'/><tag id='2'/>")),
        VLAN,
    ),
    "VLAN trunk by a native tag": (
        document(LAN.format("<tag id='1' nativeMode='tagged'/>")),
        f"{VLAN}/tag/@nativeMode",
    ),
    "initrd without kernel": (
        document(rest="<os><initrd>/i</initrd></os>"),
        "3: /domain/os/initrd",
    ),
    "file console without a file": (
        document("<console type='file'/>"),
        "4: /domain/devices/console/source/@path",
    ),
    "two on the terminal": (
        document("<serial type='stdio'/><serial type='stdio'/>"),
        "4: /domain/devices/serial[2]",
    ),
    "two serial consoles": (
        document("<console type='pty'/><console type='pty'/>"),
        "4: /domain/devices/console[2]",
    ),
    "same serial port twice": (
        document("<serial type='pty'><target port='1'/></serial>" * 2),
        "4: /domain/devices/serial[2]/target/@port",
    ),
    "VNC port too low": (
        document("<graphics type='vnc' port='80'/>"),
        "4: /domain/devices/graphics/@port",
    ),
    "VNC on a name": (
        document("<graphics type='vnc' listen='localhost,password=off'/>"),
        "4: /domain/devices/graphics",
    ),
    "empty name": (document(name=" "), "2: /domain/name"),
    "slash in the name": (document(name="a/b"), "2: /domain/name"),
    "newline in the name": (document(name="a&#10;b"), "2: /domain/name"),
    "escape in the name": (document(name="a\u009bb"), "2: /domain/name"),
    "name too long": (document(name="\u00e9" * 128), "2: /domain/name"),
    "host device without an address": (
        document("<hostdev type='pci'><source/></hostdev>"),
        "4: /domain/devices/hostdev/source/address",
    ),
    "host device without a bus": (
        document(HOSTDEV.replace("bus='0x03'", "")),
        "4: /domain/devices/hostdev/source/address/@bus",
    ),
    "host device that cannot be": (
        document(HOSTDEV.replace("0x00", "0x20")),
        "4: /domain/devices/hostdev/source/address",
    ),
    "host device of another kind of address": (
        document(HOSTDEV.replace("address bus", "address type='usb' bus")),
        "4: /domain/devices/hostdev/source/address/@type",
    ),
    "same host device twice": (
        document(HOSTDEV + HOSTDEV.replace("0x03", "3").replace("yes", "no")),
        "4: /domain/devices/hostdev[2]/source/address",
    ),
    "34 host devices": (
        document("".join(HOSTDEV.replace("0x03", hex(bus)) for bus in range(34))),
        "4: /domain/devices/hostdev[34]",
    ),
    "host device with another driver": (
        document(HOSTDEV.replace("<source>", "<driver name='kvm'/><source>")),
        "4: /domain/devices/hostdev/driver/@name",
    ),
    "host device with another mode": (
        document(HOSTDEV.replace("subsystem", "capabilities")),
        "4: /domain/devices/hostdev/@mode",
    ),
    "ROM without a path": (
        document(HOSTDEV.replace("<source>", "<rom file=''/><source>")),
        "4: /domain/devices/hostdev/rom/@file",
    ),
    "boot order of an interface and a host device": (
        document(
            HOSTDEV.replace("<source>", "<boot order='1'/><source>")
            + NIC.replace("/>", "><boot order='1'/></interface>")
        ),
        "4: /domain/devices/hostdev/boot/@order",
    ),
    "disk of another type": (
        document("<disk type='network'><target dev='vda'/></disk>"),
        "4: /domain/devices/disk/@type",
    ),
}


@pytest.mark.parametrize("which", CONTRADICTIONS)
def test_contradiction(which: str) -> None:
    text, place = CONTRADICTIONS[which]
    with pytest.raises(DefinitionError) as caught:
        parse_domain(text, file="guest.xml")
    assert caught.value.evidence == f"guest.xml:{place}"
    assert place.partition(" ")[2] in caught.value.cause
    assert caught.value.advice.endswith(".")


def test_the_plain_document_is_fine() -> None:
    assert parse_domain(document(VDA + NIC), strict=True).value.disks[0].target == "vda"


def test_a_live_network_interface_may_name_its_bridge() -> None:
    """libvirt writes the bridge beside the network while the domain runs."""
    nic = "<interface type='network'><source network='default' bridge='virbr0'/></interface>"
    assert parse_domain(document(nic)).value.interfaces[0].network == "default"


def test_a_host_device() -> None:
    """What libvirt takes for granted where the document is silent is taken so here."""
    silent = HOSTDEV.replace(" mode='subsystem'", "").replace(" managed='yes'", "")
    first, second = (
        parse_domain(document(text), strict=True).value.hostdevs[0] for text in (HOSTDEV, silent)
    )
    assert first.host == second.host == PciAddress(0, 3, 0, 0)
    assert (first.managed, second.managed) == (True, False)


def test_a_function_of_a_card() -> None:
    """It is a device of the host, beside those that are nothing more."""
    text = document(FUNCTION + HOSTDEV.replace("0x00", "0x10").replace("0x03", "0x04"))
    domain = parse_domain(text, strict=True).value
    nic, hostdev = domain.interfaces[0], domain.hostdevs[0]
    assert (nic.host, nic.vlan_id, nic.managed) == (PciAddress(0, 3, 0x10, 0), 42, True)
    assert host_devices(domain) == (hostdev, nic)
    assert needs(domain) == ()
    assert parse_domain(dump_domain(domain), strict=True).value == domain
    plain = parse_domain(document(FUNCTION.replace("<vlan><tag id='42'/></vlan>", ""))).value
    assert plain.interfaces[0].vlan_id is None


@pytest.mark.parametrize("kind", ["usb", "scsi", "scsi_host", "mdev"])
def test_other_host_devices_are_not_understood(kind: str) -> None:
    parsed = parse_domain(document(HOSTDEV.replace("pci", kind) + HOSTDEV))
    assert [each.path for each in parsed.unknown] == ["/domain/devices/hostdev[1]"]
    assert len(parsed.value.hostdevs) == 1
    assert f"type='{kind}'" in dump_domain(parsed.value).replace('"', "'")


@pytest.mark.parametrize(
    ("hostdevs", "memory", "limit"),
    [
        ("", "1 GiB", 0),
        (HOSTDEV, "1 GiB", 2 << 30),
        (HOSTDEV + HOSTDEV.replace("0x03", "0x04"), "1 GiB", 2 << 30),
        (FUNCTION, "1 GiB", 2 << 30),
        (HOSTDEV, "1025 KiB", (1 << 30) + (2 << 20)),
    ],
    ids=["none", "one", "two, one address space", "a function", "rounded as for QEMU"],
)
def test_memory_to_lock(hostdevs: str, memory: str, limit: int) -> None:
    amount, unit = memory.split()
    text = document(hostdevs).replace("unit='MiB'>64", f"unit='{unit}'>{amount}")
    assert lock_limit(parse_domain(text).value) == limit


def test_a_name_of_255_bytes_is_fine() -> None:
    assert parse_domain(document(name="n" * 255)).value.name == "n" * 255


def test_text_that_is_not_utf_8_is_refused() -> None:
    disk = Disk(file="/a\udcff", target="vda")
    with pytest.raises(DefinitionError, match="UTF-8"):
        check_domain(Domain(name="a", memory=1 << 20, disks=(disk,)))


# -- hostile input ---------------------------------------------------------------------------------

SEEDS = [(DIRECTORY / f"{case}.xml").read_bytes() for case in CASES]


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_mutilated_documents(data: st.DataObject) -> None:
    """Real documents with pieces replaced: a domain, or a DefinitionError; nothing else."""
    seed = data.draw(st.sampled_from(SEEDS))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(seed)))
        end = data.draw(st.integers(start, min(len(seed), start + 20)))
        piece = data.draw(
            st.binary(max_size=6)
            | st.sampled_from([b"'", b"<x/>", b"-1", b"999999999999999999999999", b"&#0;", b"\n"])
        )
        seed = seed[:start] + piece + seed[end:]
    try:
        parsed = parse_domain(seed)
    except DefinitionError:
        return
    assert parse_domain(dump_domain(parsed.value)).value == parsed.value


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(DefinitionError):
        parse_domain(data)


@pytest.mark.parametrize(
    "unit",
    [
        "<x{}/>",
        "<x/>",
        "<disk><source file='/a'/><target dev='vda'/></disk>",
        "<controller type='pci' index='{}'/>",
        "<interface type='user'/>",
        "<rng><x/></rng>",
        "<graphics type='x'/>",
        "<hostdev type='pci'><source><address bus='{}' slot='0'/></source></hostdev>",
    ],
)
def test_many_of_one_kind_take_no_longer_than_they_must(unit: str) -> None:
    """As many as the size limit lets in; quadratic work would take minutes."""
    body = "".join(unit.format(index) for index in range((MAX_BYTES - 1000) // len(unit)))
    start = time.process_time()  # whatever else the machine does
    with contextlib.suppress(DefinitionError):
        dump_domain(parse_domain(document(body)).value)
    assert time.process_time() - start < 20


# -- domains of every shape ------------------------------------------------------------------------

TEXT = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff\u2028\u2029"),
    min_size=1,
    max_size=20,
)
NAMES = TEXT.filter(lambda text: "/" not in text and bool(text.strip()))
DISKS = st.builds(
    Disk,
    file=TEXT,
    format=st.sampled_from(DiskFormat),
    cache=st.sampled_from(Cache),
    bus=st.none() | st.just(DiskBus.VIRTIO),
    target=st.sampled_from(["vda", "vdb", "vdc", "vdzz"]),
    readonly=st.booleans(),
    serial=st.none() | st.just("A 1"),
)


def test_a_card_of_the_hosts_may_name_its_driver_as_libvirt_does() -> None:
    text = document(
        "<interface type='hostdev' managed='yes'><source><address bus='3' slot='0'/></source>"
        "<driver name='vfio'/></interface>"
    )
    (nic,) = parse_domain(text, strict=True).value.interfaces
    assert nic.is_hostdev


INTERFACES = st.builds(
    Interface,
    type=st.just(InterfaceType.BRIDGE),
    bridge=st.just("br0"),
    mac=st.none() | st.integers(0, 0xFF).map(lambda n: MacAddress(f"52:54:00:00:00:{n:02x}")),
    model=st.just(NicModel.VIRTIO),
    driver=st.none()
    | st.builds(
        NicDriver,
        name=st.none() | st.sampled_from((NicBackend.VHOST, NicBackend.QEMU)),
        queues=st.none() | st.integers(1, 4),
        event_idx=st.none() | st.booleans(),
        rx_queue_size=st.none() | st.sampled_from((256, 1024)),
        host=st.none() | st.builds(HostOffloads, mrg_rxbuf=st.none() | st.booleans()),
        guest=st.none() | st.builds(GuestOffloads, ufo=st.none() | st.booleans()),
    ),
    target=st.none() | st.sampled_from(("vnet0", "web.1")),
    mtu=st.none() | st.integers(68, 65535),
)
HOSTDEVS = st.builds(
    Hostdev,
    managed=st.booleans(),
    source=st.builds(
        HostPlace,
        domain=st.integers(0, 0xFFFF),
        bus=st.integers(0, 0xFF),
        slot=st.integers(0, 0x1F),
        function=st.integers(0, 7),
    ),
    rom_bar=st.none() | st.booleans(),
    rom_file=st.none() | TEXT,
)
DOMAINS = st.builds(
    Domain,
    name=NAMES,
    title=st.none() | TEXT,
    description=st.none() | st.just(""),
    memory=st.integers(1, 1 << 40),
    vcpus=st.integers(1, 64),
    os=st.none() | st.builds(Os, kernel=TEXT, cmdline=st.none() | TEXT),
    cpu=st.none() | st.builds(Cpu, mode=st.sampled_from(CpuMode)),
    disks=st.lists(DISKS, max_size=3, unique_by=lambda disk: disk.target).map(tuple),
    interfaces=st.lists(INTERFACES, max_size=3, unique_by=lambda nic: nic.mac).map(tuple),
    hostdevs=st.lists(HOSTDEVS, max_size=3, unique_by=lambda each: each.host).map(tuple),
    consoles=st.none().map(lambda _: ()) | st.just((Console(type=CharType.PTY),)),
)


@given(DOMAINS)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_is_written_is_read(domain: Domain) -> None:
    check_domain(domain)
    text = dump_domain(domain)
    parsed = parse_domain(text, strict=True)
    assert parsed.value == domain
    assert dump_domain(parsed.value) == text


def test_a_change_survives() -> None:
    domain = parse_domain(SEEDS[CASES.index("virt-manager")]).value
    changed = dataclasses.replace(domain, memory=1 << 30, current_memory=None, disks=())
    text = dump_domain(changed)
    assert parse_domain(text).value == changed
    assert "<channel type='unix'>" in text


def test_the_import_stays_lean() -> None:
    """The command reads XML before it needs any of these; each costs more than the model."""
    script = "import sys, sessionvirt.model.domain; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "sessionvirt.model.domain" in output
    assert not {"asyncio", "json", "uuid", "xml.etree.ElementTree", "subprocess"} & set(output)

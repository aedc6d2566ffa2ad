# SPDX-License-Identifier: LGPL-2.1-or-later
"""Command lines: what no value can do to them, and what is refused instead of built."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.cases import BINARY, parsed
from golden.cases import wiring as golden_wiring
from sessionvirt.errors import DefinitionError
from sessionvirt.model.addresses import MacAddress
from sessionvirt.model.devices import (
    CharType,
    Console,
    ConsoleTarget,
    Disk,
    Graphics,
    Serial,
)
from sessionvirt.model.domain import Domain, Os, QemuArgument, parse_domain
from sessionvirt.model.interface import Interface, InterfaceType, NicModel
from sessionvirt.qemu.command import build, preparations
from sessionvirt.qemu.command_consoles import main_console
from sessionvirt.qemu.option import joined, structured
from sessionvirt.qemu.wiring import Accelerator, PasstWiring, TapWiring, UserWiring, Wiring

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.unit

PLAIN = Wiring(3, Accelerator.TCG)
PORT = "<controller type='pci' index='1' model='pcie-root-port'/>"
HOSTDEV = (
    "<hostdev type='pci'><source><address bus='3' slot='0'/></source>"
    "<address type='pci' slot='5' multifunction='on'/></hostdev>"
)
MAC = MacAddress("52:54:00:00:00:01")


def option(argv: Sequence[str], name: str) -> list[str]:
    """The values of an option, in order."""
    return [value for key, value in itertools.pairwise(argv) if key == name]


def devices(argv: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``-device`` values by id."""
    values = [json.loads(value) for value in option(argv, "-device")]
    return {value["id"]: value for value in values}


def split(value: str) -> list[str]:
    """As QEMU does it (util/qemu-option.c): a comma ends, two are one."""
    return [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]


def document(devices: str = "", rest: str = "") -> Domain:
    text = (
        f"<domain><name>g</name><memory unit='MiB'>64</memory>{rest}\n"
        f"<devices>{devices}</devices></domain>"
    )
    return parse_domain(text, file="guest.xml").value


# -- injection -------------------------------------------------------------------------------------

NASTY = st.text(
    st.sampled_from(list(",=\"'{}[]:\\- ax\u00e9$;|&\t%")), min_size=1, max_size=12
).filter(lambda text: bool(text.strip()))


@given(NASTY)
def test_a_joined_value_stays_one_value(text: str) -> None:
    assert split(joined("head", path=text, last="1")) == ["head", f"path={text}", "last=1"]


@given(NASTY)
def test_a_structured_value_stays_one_value(text: str) -> None:
    assert json.loads(structured({"a": text, "b": None})) == {"a": text}
    assert structured({"a": text}).isascii()


@given(NASTY, NASTY, NASTY)
@settings(deadline=None)
def test_values_change_nothing_but_themselves(name: str, path: str, words: str) -> None:
    """The same machine with harmless values has the same options, in the same places."""

    def machine(name: str, path: str, words: str) -> Domain:
        return Domain(
            name=name,
            memory=1 << 26,
            os=Os(kernel=path, initrd=path, cmdline=words),
            disks=(Disk(file=path, target="vda"),),
            serials=(Serial(type=CharType.FILE, path=path),),
            graphics=Graphics(type="vnc", socket=path),
        )

    name = name.replace("\t", " ") + "n"
    found = build(machine(name, path, words), BINARY, PLAIN).argv
    plain = build(machine("name", "path", "words"), BINARY, PLAIN).argv
    differing = {
        index for index, pair in enumerate(zip(found, plain, strict=True)) if pair[0] != pair[1]
    }
    keys = [plain[index - 1] for index in sorted(differing)]
    assert set(keys) <= {"-name", "-kernel", "-initrd", "-append", "-blockdev", "-chardev", "-vnc"}
    assert split(option(found, "-name")[0]) == [f"guest={name}", "debug-threads=on"]
    assert split(option(found, "-chardev")[1]) == [
        "file",
        "id=char-serial0",
        f"path={path}",
        "append=off",
    ]
    assert split(option(found, "-vnc")[0]) == [f"unix:{path}"]
    assert json.loads(option(found, "-blockdev")[0])["filename"] == path
    assert (option(found, "-kernel"), option(found, "-append")) == ([path], [words])


# -- what the binary lacks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "element", "path", "instead"),
    [
        (
            "virtio-net-pci",
            "<interface type='user'><model type='virtio'/></interface>",
            "interface",
            "e1000e",
        ),
        (
            "virtio-blk-pci",
            "<disk><source file='/a'/><target dev='vda'/></disk>",
            "disk",
            "bus='sata'",
        ),
        ("virtio-rng-pci", "<rng><backend/></rng>", "rng", "no <rng>"),
        ("virtio-balloon-pci", "<memballoon model='virtio'/>", "memballoon", "model='none'"),
        ("qemu-xhci", "<input type='tablet'/>", "input", "bus='virtio'"),
        ("VGA", "<video/>", "video", "Install a QEMU"),
        ("vfio-pci", HOSTDEV, "hostdev", "Install a QEMU"),
        ("isa-serial", "<serial type='pty'/>", "serial", "Install a QEMU"),
    ],
)
def test_a_missing_device_is_named(device: str, element: str, path: str, instead: str) -> None:
    poor = dataclasses.replace(BINARY, devices=BINARY.devices - {device})
    domain = document(element)
    users = tuple(UserWiring(MAC) for _ in domain.interfaces)
    with pytest.raises(DefinitionError) as caught:
        build(domain, poor, dataclasses.replace(PLAIN, interfaces=users))
    assert caught.value.evidence == f"guest.xml:2: /domain/devices/{path}"
    assert f"{BINARY.binary} (QEMU 7.2.22) has no device '{device}'" in caught.value.cause
    assert instead in caught.value.advice
    build(domain, BINARY, dataclasses.replace(PLAIN, interfaces=users))


def test_a_missing_network_backend_is_named() -> None:
    poor = dataclasses.replace(BINARY, netdevs=frozenset({"tap"}))
    domain = document("<interface type='user'/>")
    with pytest.raises(DefinitionError, match="no network backend 'user'"):
        build(domain, poor, dataclasses.replace(PLAIN, interfaces=(UserWiring(MAC),)))


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("<os><type machine='virt'>hvm</type></os>", "no machine type 'virt'"),
        ("<os><type machine='microvm'>hvm</type></os>", "cannot be described"),
        ("<os><type arch='aarch64'>hvm</type></os>", "aarch64"),
        ("<cpu><model>Pentium9</model></cpu>", "no CPU model 'Pentium9'"),
        ("<cpu><feature name='aes'/></cpu>", "which CPU model"),
    ],
)
def test_what_this_binary_cannot_be(rest: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words) as caught:
        build(document(rest=rest), BINARY, PLAIN)
    assert caught.value.evidence.startswith("guest.xml:1: /domain/")
    assert caught.value.advice


@pytest.mark.parametrize(
    ("elements", "path", "words"),
    [
        ("<disk><source file='/a'/><target dev='sdg'/></disk>", "disk/target/@dev", "6 ports"),
        (
            "<controller type='usb' model='none'/><input type='tablet' bus='usb'/>",
            "input",
            "no USB",
        ),
        (
            "<rng><backend/><address type='pci' bus='9'/></rng>",
            "rng/address",
            "no PCI bus",
        ),
        (
            "<rng><backend/><address type='pci' slot='0x1f'/></rng>",
            "rng/address",
            "already used by the chipset",
        ),
        (
            "<rng><backend/><address type='pci' slot='0x20'/></rng>",
            "rng/address",
            "no PCI function",
        ),
        (
            "<rng><backend/><address type='pci' slot='5'/></rng>" * 2,
            "rng[2]/address",
            r"already used by /domain/devices/rng\[1\]",
        ),
        (
            f"{PORT}<rng><backend/><address type='pci' bus='1' slot='1'/></rng>",
            "rng/address",
            "slot 0 only",
        ),
        (
            PORT * 2,
            "controller[2]/@index",
            "index of its own",
        ),
        (
            "<controller type='sata'><address type='pci' slot='3'/></controller>",
            "controller/address",
            "slot 0x1f",
        ),
        (
            PORT.replace("/>", "><address type='pci' bus='1'/></controller>"),
            "controller/address",
            "on bus 0",
        ),
        (
            PORT.replace("/>", "><target chassis='7'/></controller>")
            + PORT.replace("='1'", "='2'").replace("/>", "><target chassis='7'/></controller>"),
            "controller[2]/target/@chassis",
            "used twice",
        ),
        (
            "<rng><backend/><address type='pci' slot='5'/></rng>" + HOSTDEV,
            "rng/address",
            "already used by /domain/devices/hostdev",
        ),
        ("<rng><backend/></rng>" * 300, "rng[113]", "no PCI slot is left"),
    ],
)
def test_devices_that_have_no_place(elements: str, path: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words) as caught:
        build(document(elements), BINARY, PLAIN)
    assert caught.value.evidence == f"guest.xml:2: /domain/devices/{path}"
    assert caught.value.advice


def test_no_chassis_twice() -> None:
    """Declared numbers are kept; given ones step over them."""
    port = "<controller type='pci' index='{}' model='pcie-root-port'>{}</controller>"
    elements = port.format(1, "") + port.format(2, "<target chassis='3' port='0x80'/>")
    found = devices(build(document(elements + "<rng><backend/></rng>" * 9), BINARY, PLAIN).argv)
    ports = {name: each for name, each in found.items() if each["driver"] == "pcie-root-port"}
    numbers = [each["chassis"] for each in ports.values()]
    assert (ports["pci.2"]["chassis"], ports["pci.2"]["port"]) == (3, 0x80)
    assert len(set(numbers)) == len(numbers)
    assert len(ports) == 10 + 4


# -- wiring ----------------------------------------------------------------------------------------


def test_all_descriptors_are_passed() -> None:
    wiring = Wiring(
        3,
        Accelerator.TCG,
        (TapWiring((5, 6), MAC, 1500, (7, 8)), PasstWiring(9, MAC), UserWiring(MAC)),
    )
    assert wiring.passed_fds == (3, 5, 6, 7, 8, 9)


def test_wiring_of_another_domain_is_a_mistake() -> None:
    domain = document("<interface type='user'><mac address='52:54:00:00:00:02'/></interface>")
    with pytest.raises(ValueError, match=r"argument"):
        build(domain, BINARY, PLAIN)
    with pytest.raises(ValueError, match="interface 0"):
        build(domain, BINARY, dataclasses.replace(PLAIN, interfaces=(UserWiring(MAC),)))


@pytest.mark.parametrize(
    ("wanted", "offered", "told"),
    [(None, 1500, None), (None, 9000, 9000), (1400, 1500, 1400), (1500, 9000, None)],
)
def test_mtu(wanted: int | None, offered: int, told: int | None) -> None:
    nic = Interface(type=InterfaceType.BRIDGE, bridge="br0", model=NicModel.VIRTIO, mtu=wanted)
    domain = Domain(name="g", memory=1 << 26, interfaces=(nic,))
    wiring = dataclasses.replace(PLAIN, interfaces=(TapWiring((5,), MAC, offered),))
    assert devices(build(domain, BINARY, wiring).argv)["net0"].get("host_mtu") == told


@pytest.mark.parametrize("model", ["virtio", "e1000e"])
def test_more_than_the_network_carries(model: str) -> None:
    """Whether the guest could be told or not."""
    domain = document(
        f"<interface type='bridge'><source bridge='b'/><model type='{model}'/><mtu size='9000'/>"
        "</interface>"
    )
    wiring = dataclasses.replace(PLAIN, interfaces=(TapWiring((5,), MAC, 1500),))
    with pytest.raises(DefinitionError, match="carries 1500 bytes") as caught:
        build(domain, BINARY, wiring)
    assert caught.value.evidence == "guest.xml:2: /domain/devices/interface/mtu/@size"


def test_a_document_that_is_silent_changes_nothing_of_the_card() -> None:
    """Not even by an empty <driver>."""
    element = "<interface type='bridge'><source bridge='b'/><model type='virtio'/>{}</interface>"
    wiring = dataclasses.replace(PLAIN, interfaces=(TapWiring((5,), MAC, 1500),))
    silent, empty = (
        devices(build(document(element.format(driver)), BINARY, wiring).argv)["net0"]
        for driver in ("", "<driver name='qemu'><host/><guest/></driver>")
    )
    assert silent == empty
    assert set(silent) == {"driver", "id", "netdev", "mac", "bus", "addr"}


def test_what_is_said_over_qmp() -> None:
    assert preparations(parsed("interfaces").value) == (
        ("set_link", {"name": "net1", "up": False}),
    )
    assert preparations(parsed("linux").value) == (("balloon", {"value": 384 << 20}),)
    none = "<memballoon model='none'/>"
    assert preparations(document(none, "<currentMemory>1024</currentMemory>")) == ()
    assert preparations(document(rest="<currentMemory unit='MiB'>64</currentMemory>")) == ()


# -- stability and defaults ------------------------------------------------------------------------


def test_another_disk_moves_no_interface() -> None:
    domain = parsed("linux").value
    more = (*domain.disks, Disk(file="/images/b", target="vdb"))
    before = devices(build(domain, BINARY, golden_wiring(domain)).argv)["net0"]
    grown = dataclasses.replace(domain, disks=more)
    assert devices(build(grown, BINARY, golden_wiring(domain)).argv)["net0"] == before


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_another_host_device_moves_no_interface(machine: str) -> None:
    system = f"<os><type machine='{machine}'>hvm</type></os>"
    floating = HOSTDEV.replace("<address type='pci' slot='5' multifunction='on'/>", "")
    nics = "<interface type='user'><model type='virtio'/></interface>" * 2
    wiring = dataclasses.replace(PLAIN, interfaces=(UserWiring(MAC),) * 2)
    found = [
        devices(build(document(hostdevs + nics, system), BINARY, wiring).argv)
        for hostdevs in ("", floating, floating + floating.replace("'3'", "'4'"))
    ]
    assert found[0]["net0"] == found[1]["net0"] == found[2]["net0"]
    assert found[0]["net1"] == found[1]["net1"] == found[2]["net1"]
    assert found[1]["hostdev0"] == found[2]["hostdev0"]
    places = {(each["bus"], each["addr"]) for each in found[2].values()}
    assert len(places) == len(found[2])
    # An express device stands on a root port of its own.
    assert found[2]["hostdev1"]["bus"] == ("pci.4" if machine == "q35" else "pci.0")


def test_acpi_is_off_without_a_word() -> None:
    assert "acpi=off" in option(build(document(), BINARY, PLAIN).argv, "-machine")[0]
    acpi = document(rest="<features><acpi/></features>")
    assert "acpi" not in option(build(acpi, BINARY, PLAIN).argv, "-machine")[0]


def test_interface_models_where_none_is_named() -> None:
    """libvirt's order, by what the binary has."""
    domain = document("<interface type='user'/>")
    wiring = dataclasses.replace(PLAIN, interfaces=(UserWiring(MAC),))
    found = []
    have = BINARY.devices
    for missing in ("", "rtl8139", "e1000"):
        have -= {missing}
        binary = dataclasses.replace(BINARY, devices=have)
        found.append(devices(build(domain, binary, wiring).argv)["net0"]["driver"])
    assert found == ["rtl8139", "e1000", "virtio-net-pci"]


def test_boot_from_a_network_is_from_a_card_of_the_host_where_there_is_no_other() -> None:
    function = "<interface type='hostdev'><source><address bus='3' slot='0'/></source></interface>"
    for text, first in ((function, "hostdev0"), (function + "<interface type='user'/>", "net1")):
        domain = parse_domain(
            "<domain type='qemu'><name>x</name><memory>1024</memory><os><boot dev='network'/></os>"
            f"<devices>{text}</devices></domain>"
        ).value
        argv = build(domain, BINARY, golden_wiring(domain)).argv
        (booted,) = [json.loads(one) for one in argv if '"bootindex"' in one]
        assert booted["id"] == first


def test_boot_order() -> None:
    cdrom = "<disk device='cdrom'><source file='/c'/><target dev='sda'/></disk>"
    disk = "<disk><source file='/a'/><target dev='vda'/></disk>"
    boot = "<os><boot dev='cdrom'/><boot dev='hd'/></os>"
    listed = devices(build(document(disk + cdrom, boot), BINARY, PLAIN).argv)
    assert (listed["sda"]["bootindex"], listed["vda"]["bootindex"]) == (1, 2)
    silent = devices(build(document(disk + cdrom), BINARY, PLAIN).argv)
    assert silent["vda"]["bootindex"] == 1
    assert "bootindex" not in silent["sda"]


def test_own_arguments_come_last() -> None:
    domain = Domain(name="g", memory=1 << 26, qemu_arguments=(QemuArgument(value="-x,y"),))
    assert build(domain, BINARY, PLAIN).argv[-1] == "-x,y"


def test_a_contradiction_made_in_code_is_refused() -> None:
    domain = dataclasses.replace(document(), name="a\nb")
    with pytest.raises(DefinitionError, match="the name"):
        build(domain, BINARY, PLAIN)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ("", None),
        ("<console type='stdio'/>", ("char-serial0", CharType.STDIO)),
        ("<serial type='file'><source path='/l'/></serial>", ("char-serial0", CharType.FILE)),
        (
            "<serial type='file'><source path='/l'/></serial><console type='pty'/>",
            ("char-serial0", CharType.FILE),
        ),
        (
            "<serial type='pty'/><console type='pty'><target type='virtio'/></console>",
            ("char-console0", CharType.PTY),
        ),
    ],
)
def test_the_console(elements: str, expected: tuple[str, CharType] | None) -> None:
    domain = document(elements)
    assert main_console(domain) == expected
    backends = [
        value.split("id=")[1] for value in option(build(domain, BINARY, PLAIN).argv, "-chardev")
    ]
    assert expected is None or any(value.startswith(expected[0]) for value in backends)


def test_equal_consoles_are_devices_of_their_own() -> None:
    console = Console(type=CharType.PTY, target=ConsoleTarget.VIRTIO)
    domain = Domain(name="g", memory=1 << 26, consoles=(console, console))
    found = devices(build(domain, BINARY, PLAIN).argv)
    assert {"console0", "console1"} <= found.keys()
    assert main_console(domain) == ("char-console0", CharType.PTY)

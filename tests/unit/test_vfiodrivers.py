# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which VFIO driver a device goes to: the kernel's modules.alias, what is loaded, what is asked.

No kernel of Debian's has a variant; that udev's rule loads a module by a device's own alias, and
that the unit shows the file, is proved in the test host.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lab.fakesysfs import FakeSysfs
from sessionvirt_broker import vfio as vfio_module
from sessionvirt_broker.errors import DeviceUnsafe, NotSupported
from sessionvirt_broker.pci import PciBus
from sessionvirt_broker.variants import Variants
from sessionvirt_broker.vfio import Vfio
from sessionvirt_broker.vfiodrivers import Drivers, is_driver_name

if TYPE_CHECKING:
    from pathlib import Path

    from sessionvirt_broker.pci import Function

pytestmark = pytest.mark.unit

NIC = "0000:03:00.0"
#: As of Linux 6.12 with all of them; the last is vfio-pci's own.
ALIASES = """\
# Aliases extracted from modules themselves.
alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core
alias devname:vfio/vfio vfio
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci
alias vfio_pci:v000019E5d0000A251sv*sd*bc*sc*i* hisi_acc_vfio_pci
alias vfio_pci:v00001AF4d00001041sv*sd*bc*sc*i* virtio_vfio_pci
alias vfio_pci:v00001DD8d00001003sv*sd*bc02sc00i00* pds_vfio_pci
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
"""


class Host:
    """A tree, what is loaded in it, and the choice."""

    def __init__(self, root: Path) -> None:
        self.tree = FakeSysfs(root)
        self.vfio = Vfio(self.tree.sys, root / "dev")
        self.aliases = root / "modules.alias"
        self.aliases.write_text(ALIASES)
        self.drivers = Drivers(Variants(self.aliases))

    def device(self, vendor: int = 0x15B3, device: int = 0x101E, **facts: Any) -> Function:
        if not self.vfio.device(NIC).exists():
            self.tree.function(NIC, vendor=vendor, device=device, **facts)
        found = PciBus(self.tree.sys).function(NIC)
        assert found is not None
        return found

    def load(self, module: str, *drivers: str) -> None:
        where = self.tree.sys / "module" / module / "drivers"
        where.mkdir(parents=True)
        for driver in drivers:
            (where / driver).mkdir()

    def choose(self, one: Function, asked: str = "", *, general: bool = False) -> str:
        return self.drivers.choose(one, asked, self.vfio, general=general)

    @property
    def event(self) -> str:
        path = self.vfio.device(NIC) / "uevent"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vfio_module, "_PATIENCE_SECONDS", 0.05)


# The file


@pytest.mark.parametrize(
    ("ids", "module"),
    [
        ((0x15B3, 0x101E), "mlx5_vfio_pci"),
        ((0x15B3, 0x101D), ""),
        ((0x19E5, 0xA251), "hisi_acc_vfio_pci"),
        ((0x8086, 0x10D3), ""),
    ],
)
def test_a_model_has_its_module(ids: tuple[int, int], module: str, host: Host) -> None:
    assert host.drivers.variant(host.device(*ids)) == module


@pytest.mark.parametrize(
    ("class_code", "module"), [(0x020000, "pds_vfio_pci"), (0x020001, ""), (0x020100, "")]
)
def test_a_class_has_three_parts_and_a_wildcard_may_follow(
    class_code: int, module: str, host: Host
) -> None:
    assert host.drivers.variant(host.device(0x1DD8, 0x1003, class_code=class_code)) == module


def test_the_one_with_the_fewest_wildcards_is_taken(host: Host) -> None:
    """As libvirt does; of equals the first in the file."""
    board = "alias vfio_pci:v000015B3d0000101Esv00008086sd0000A01Fbc*sc*i* of_the_board\n"
    host.aliases.write_text(
        "alias vfio_pci:v*d0000101Esv*sd*bc*sc*i* of_everybody\n" + ALIASES + board
    )
    assert Variants(host.aliases).module(host.device()) == "of_the_board"
    host.aliases.write_text(ALIASES + board.replace("sd0000A01F", "sd0000A020"))
    assert Variants(host.aliases).module(host.device()) == "mlx5_vfio_pci"
    host.aliases.write_text(ALIASES + ALIASES.replace("mlx5_vfio_pci", "another"))
    assert Variants(host.aliases).module(host.device()) == "mlx5_vfio_pci"


LINE = b"alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* a_module\n"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n",
        LINE.replace(b"0000101E", b"0000101e"),
        LINE.replace(b"0000101E", b"000010*"),
        LINE.replace(b"0000101E", b"000010??"),
        LINE.replace(b"a_module", b"../a_module"),
        LINE.replace(b"a_module", "m\u00f6dule".encode()),
        LINE.replace(b"a_module", b"m" * 56),
        LINE.replace(b"a_module", b"one two"),
        LINE.replace(b"alias", b"#alias"),
        LINE.strip(),  # cut off: it may go on
        b"alias vfio_pci:" * 100000,
    ],
)
def test_what_is_no_such_line_is_nobodys(text: bytes, host: Host) -> None:
    host.aliases.write_bytes(text)
    assert Variants(host.aliases).module(host.device()) == ""
    host.aliases.write_bytes(text + b"\n" + LINE)
    assert Variants(host.aliases).module(host.device()) == "a_module"


def test_it_is_read_once_and_to_a_bound(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = Variants(host.aliases)
    assert variants.module(host.device()) == "mlx5_vfio_pci"
    host.aliases.unlink()
    found = PciBus(host.tree.sys).function(NIC)
    assert found is not None
    assert variants.module(found) == "mlx5_vfio_pci"
    assert Variants(host.aliases).module(found) == ""
    from sessionvirt_broker import variants as module

    monkeypatch.setattr(module, "_MOST_LINES", 1)
    host.aliases.write_text(ALIASES.replace("15B3", "15B4") + ALIASES)
    assert Variants(host.aliases).module(found) == ""


# The driver


@pytest.mark.parametrize(
    ("drivers", "expected"),
    [
        (["pci:hisi-acc-vfio-pci"], "hisi-acc-vfio-pci"),
        (["pci:hisi-acc-vfio-pci", "auxiliary:other-vfio", "pci:hisi_core"], "hisi-acc-vfio-pci"),
        (["pci:one-vfio", "pci:two-vfio"], ""),
        (["pci:pci-stub"], ""),
        (["pci:a vfio"], ""),
        ([], ""),
    ],
)
def test_a_modules_driver_has_a_name_of_its_own(
    drivers: list[str], expected: str, host: Host
) -> None:
    host.load("hisi_acc_vfio_pci", *drivers)
    assert host.vfio.variant("hisi_acc_vfio_pci") == expected
    one = host.device(0x19E5, 0xA251)
    for asked in ("", "hisi_acc_vfio_pci", "hisi-acc-vfio-pci"):
        assert host.choose(one, asked) == (expected or "hisi_acc_vfio_pci")


def test_a_device_goes_to_what_is_made_for_it(host: Host) -> None:
    one = host.device()
    assert host.choose(one) == "mlx5_vfio_pci"  # not loaded: the module stands for it
    host.load("mlx5_vfio_pci", "pci:mlx5_vfio_pci")
    assert host.choose(one) == "mlx5_vfio_pci"
    for asked in ("vfio-pci", "vfio_pci"):
        assert host.choose(one, asked, general=True) == "vfio-pci"
    assert host.choose(one, general=True) == "vfio-pci"


@pytest.mark.parametrize("asked", ["nvidia", "mlx5_core", "hisi_acc_vfio_pci", "vfio"])
def test_another_driver_is_not_to_be_had(asked: str, host: Host) -> None:
    with pytest.raises(NotSupported, match=f"vfio-pci or mlx5_vfio_pci, and not {asked}"):
        host.choose(host.device(), asked)


def test_without_a_variant_there_is_only_the_general_one(host: Host) -> None:
    one = host.device(0x8086, 0x10D3)
    assert host.choose(one) == host.choose(one, "vfio-pci", general=True) == "vfio-pci"
    with pytest.raises(NotSupported, match="can have vfio-pci, and not mlx5_vfio_pci"):
        host.choose(one, "mlx5_vfio_pci")


def test_what_is_bound_already_is_what_was_asked_for(host: Host) -> None:
    one = host.device(driver="mlx5_vfio_pci")
    assert host.drivers.bound(one, "") == host.drivers.bound(one, "mlx5-vfio-pci")
    with pytest.raises(DeviceUnsafe, match="has the driver mlx5_vfio_pci, and not vfio-pci"):
        host.drivers.bound(one, "vfio-pci")


@pytest.mark.parametrize(
    ("text", "good"),
    [("vfio-pci", True), ("mlx5_vfio_pci", True), ("-x", False), ("a/b", False), ("..", False),
     ("x" * 56, False), ("v\u0131fio", False), ("vfio-pci\n", False), ("a b", False)],
)  # fmt: skip
def test_the_form_of_a_name(text: str, good: bool) -> None:  # noqa: FBT001
    assert is_driver_name(text) is good


# Loading


def test_a_module_that_is_there_is_not_loaded(host: Host) -> None:
    one = host.device()
    assert host.drivers.to_load([one], host.vfio) == [(NIC, "mlx5_vfio_pci")]
    host.load("mlx5_vfio_pci", "pci:mlx5_vfio_pci")
    assert host.drivers.to_load([one], host.vfio) == []
    assert host.vfio.load_variant(NIC, "mlx5_vfio_pci")


@pytest.mark.usefixtures("impatient")
def test_one_that_does_not_come_is_nobodys_choice_until_it_is_there(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event names no module: the rule goes by the device. Nothing changes by the clock."""
    one = host.device()
    assert not host.vfio.load_variant(NIC, "mlx5_vfio_pci")
    assert host.event.startswith("change ")
    assert host.event.endswith(" SESSIONVIRT=variant")
    assert "mlx5" not in host.event
    assert host.drivers.to_load([one], host.vfio) == []
    assert host.choose(one) == "vfio-pci"
    with pytest.raises(NotSupported, match="modprobe mlx5_vfio_pci"):
        host.choose(one, "mlx5_vfio_pci")
    monkeypatch.setattr(vfio_module, "_REFUSAL_SECONDS", 0.0)
    assert host.drivers.to_load([one], host.vfio) == [(NIC, "mlx5_vfio_pci")]
    assert host.choose(one) == "vfio-pci"
    host.load("mlx5_vfio_pci", "pci:mlx5_vfio_pci")
    assert host.choose(one) == "mlx5_vfio_pci"


def test_what_does_not_come_costs_less_each_time(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody waits meanwhile: ten seconds once, then half a second after ever longer pauses."""
    clock = [1000.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    host.device()
    played = SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep)
    monkeypatch.setattr(vfio_module, "time", played)
    waited = []
    for _ in range(9):
        begin = clock[0]
        assert not host.vfio.load_variant(NIC, "mlx5_vfio_pci")
        waited.append(round(clock[0] - begin, 1))
        begin = clock[0]
        while not host.vfio.may_load("mlx5_vfio_pci"):
            assert not host.vfio.load_variant(NIC, "mlx5_vfio_pci")  # at once
            clock[0] += 30
        waited.append(round(clock[0] - begin))
    assert waited[::2] == [10.0] + [0.5] * 8
    assert waited[1::2] == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    host.load("mlx5_vfio_pci", "pci:mlx5_vfio_pci")
    assert host.vfio.load_variant(NIC, "mlx5_vfio_pci")
    assert host.vfio.may_load("mlx5_vfio_pci")

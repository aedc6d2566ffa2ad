# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kind ``pci`` on trees like /sys: what is refused and why, what is offered, what is planned.

That the kernel then does it is proved in the test host.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lab.fakesysfs import FakeSysfs
from sessionvirt_broker import vfio as vfio_module
from sessionvirt_broker.config import BUILTIN, PciPolicy
from sessionvirt_broker.devices import Devices
from sessionvirt_broker.errors import (
    BrokerError,
    Busy,
    DeviceUnsafe,
    HostFailure,
    InvalidRequest,
    NotFound,
    NotSupported,
    Restarting,
    StateChanged,
)
from sessionvirt_broker.host import Host
from sessionvirt_broker.hostdev import PciKind
from sessionvirt_broker.kind import Offer, Owner
from sessionvirt_broker.kinds import STEPS
from sessionvirt_broker.limits import Share
from sessionvirt_broker.pcinames import PciNames
from sessionvirt_broker.steps import decode
from sessionvirt_broker.variants import Variants
from sessionvirt_broker.vfio import Vfio
from sessionvirt_broker.vfiodrivers import Drivers
from sessionvirt_broker.vfiosteps import (
    GiveGroup,
    KeepGroup,
    OpenDevice,
    OverrideDriver,
    RebindDevice,
)
from sessionvirt_broker.wire import Fields, VmName

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sessionvirt_broker.kind import Plan, Request
    from sessionvirt_broker.steps import Step

pytestmark = pytest.mark.unit

NIC, PEER, THIRD = "0000:03:00.0", "0000:03:00.1", "0000:03:00.2"
BRIDGE, ABSENT = "0000:00:1c.0", "0000:09:00.0"
UID = 1000
OWNER = Owner(UID, VmName("win11"))
NAME = "Intel Corporation 82574L Gigabit Network Connection"
PCI_IDS = """\
8086  Intel Corporation
\t10d3  82574L Gigabit Network Connection
"""
#: Of a device that nothing is known to use: not of the network class, which wants an interface.
PLAIN = 0x118000


class Links:
    """What the routing socket would say."""

    def __init__(self) -> None:
        self.by_ifindex: dict[int, list[str]] = {}
        self.default: frozenset[int] = frozenset()

    def addresses(self) -> dict[int, list[str]]:
        return self.by_ifindex

    def default_routes(self) -> frozenset[int]:
        return self.default


class Lab:
    """A host, the kind, and how a request goes through it."""

    def __init__(self, root: Path) -> None:
        self.tree = FakeSysfs(root)
        self.links = Links()
        self.udev = root / "udev"
        self.udev.mkdir()
        (root / "pci.ids").write_text(PCI_IDS)
        (root / "dev/vfio").mkdir(parents=True)
        self.names = PciNames(self.udev, root / "pci.ids")
        self.aliases = root / "modules.alias"
        self.drivers = Drivers(Variants(self.aliases))
        self.kind = self.broker(replaceable=False)
        self.vfio = Vfio(self.tree.sys, root / "dev")
        self.fds: dict[str, list[int]] = {}
        links: Any = self.links
        lacking: Any = None
        self.host: Any = Host(links, lacking, lacking, None, self.vfio, self.fds)
        self.policy = PciPolicy()
        self.owner = OWNER

    def broker(self, *, replaceable: bool) -> PciKind:
        tree = self.tree
        return PciKind(tree.sys, tree.proc, self.names, self.drivers, replaceable=replaceable)

    @property
    def configuration(self) -> Any:
        return replace(BUILTIN, pci=self.policy)

    def device(self, address: str = NIC, group: int | None = 7, **facts: Any) -> Path:
        """An endpoint that nobody uses."""
        return self.tree.function(address, group=group, **{"class_code": PLAIN, **facts})

    def group_of(self, *addresses: str) -> list[Path]:
        return [self.device(address) for address in addresses]

    def request(self, address: str = NIC, **fields: Any) -> Request:
        types = {str: "s", bool: "b", list: "as"}
        given = {"address": address, **fields}
        values = {key: (types[type(value)], value) for key, value in given.items()}
        return self.kind.parse(Fields("requests[0]", values), 0, self.configuration)

    def survey(self, address: str = NIC, **fields: Any) -> Offer:
        request = self.request(address, **fields)
        return self.kind.survey(request, self.owner, self.configuration, self.host)

    def plan(self, address: str = NIC, **fields: Any) -> Plan:
        request = self.request(address, **fields)
        return self.kind.plan(request, self.owner, self.configuration, self.host)

    def prepare(self, address: str = NIC, **fields: Any) -> None:
        request = self.request(address, **fields)
        if not self.kind.is_ready(request, self.host):
            self.kind.prepare(request, self.host)

    def refusal(self, address: str = NIC, **fields: Any) -> BrokerError:
        """Both the survey and the plan refuse; neither trusts the other."""
        with pytest.raises(BrokerError) as first:
            self.survey(address, **fields)
        with pytest.raises(BrokerError) as second:
            self.plan(address, **fields)
        if type(first.value) is not Busy or "IOMMU group" not in str(first.value):
            assert (type(first.value), str(first.value)) == (type(second.value), str(second.value))
        return first.value

    def has_iommufd(self, *addresses: str) -> None:
        """The kernel has it, and the devices at these addresses are VFIO's."""
        (self.tree.proc / "devices").write_text("245 vfio-dev\n246 vfio\n")
        self.vfio.iommufd.touch()
        nodes = self.vfio.node("devices")
        nodes.mkdir()
        for number, address in enumerate(addresses):
            directory = self.vfio.device(address) / f"vfio-dev/vfio{number}"
            directory.mkdir(parents=True)
            (directory / "dev").write_text("0:0\n")  # what a plain file has
            (nodes / f"vfio{number}").touch()

    def hold(self, group: str, *steps: Step) -> None:
        """A lease has a group."""
        self.kind.begun([*steps, GiveGroup(group, UID)])

    def has(self, group: str) -> None:
        """The lease that asks has this group."""
        self.owner = replace(OWNER, has=frozenset({f"vfio-{group}"}))

    def goes(self, *paths: Path, driver: str = "vfio-pci") -> None:
        """They have a VFIO driver now."""
        for path in paths:
            (path / "driver").unlink(missing_ok=True)
            self.tree.bind(path, driver)

    def rows(self, holders: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
        devices = Devices(self.tree.sys, self.kind, self.names, self.drivers)
        rows = devices.rows(self.configuration, self.host, holders or {})
        return {str(row["address"]): row for row in rows}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def words(steps: Iterable[Step]) -> list[tuple[str, str]]:
    return [(step.describe(), step.describe_undo()) for step in steps]


# Parsing


def test_a_request_with_everything(lab: Lab) -> None:
    request: Any = lab.request(with_group=True, also=[PEER, PEER], managed=False)
    assert (request.address, request.with_group, request.managed) == (NIC, True, False)
    assert request.also == {PEER}
    plain: Any = lab.request()
    assert (plain.with_group, plain.managed, plain.also) == (False, True, frozenset())


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "address"),
        ({"address": ("u", 3)}, "address"),
        ({"address": ("s", "")}, "address"),
        ({"address": ("s", "03:00.0")}, "address"),
        ({"address": ("s", NIC.upper() + "\n")}, "address"),
        ({"address": ("s", f"../{NIC}")}, "address"),
        ({"address": ("s", NIC), "also": ("as", ["x"])}, "also"),
        ({"address": ("s", NIC), "also": ("as", [PEER] * 33)}, "also"),
        ({"address": ("s", NIC), "also": ("s", PEER)}, "also"),
        ({"address": ("s", NIC), "with_group": ("s", "yes")}, "with_group"),
        ({"address": ("s", NIC), "managed": ("u", 1)}, "managed"),
        ({"address": ("s", NIC), "fds": ("u", 1)}, "fds"),
        ({"address": ("s", NIC), "queues": ("u", 1)}, "queues"),
        ({"address": ("s", NIC), "driver": ("s", "../vfio")}, "driver"),
        ({"address": ("s", NIC), "driver": ("s", "x" * 56)}, "driver"),
        ({"address": ("s", NIC), "driver": ("u", 1)}, "driver"),
    ],
)
def test_what_is_malformed_is_refused_by_its_field(
    values: dict[str, Any], word: str, lab: Lab
) -> None:
    with pytest.raises(InvalidRequest, match=word) as caught:
        lab.kind.parse(Fields("requests[2]", values), 2, lab.configuration)
    assert "requests[2]" in str(caught.value)


# Refusals


def test_there_is_no_such_device(lab: Lab) -> None:
    lab.device()
    error = lab.refusal(ABSENT)
    assert (type(error), ABSENT in str(error)) == (NotFound, True)


def test_a_bridge_is_not_given(lab: Lab) -> None:
    lab.tree.function(BRIDGE, class_code=0x060400, header=1, group=3)
    error = lab.refusal(BRIDGE)
    assert (type(error), "bridge" in str(error)) == (NotSupported, True)


def test_no_iommu_no_device(lab: Lab) -> None:
    lab.device(group=None)
    error = lab.refusal()
    assert (type(error), "no IOMMU" in str(error)) == (NotSupported, True)


def noiommu(lab: Lab) -> None:
    lab.tree.group(7, name="vfio-noiommu")


def acs_override(lab: Lab) -> None:
    with (lab.tree.proc / "cmdline").open("a") as file:
        file.write(" pcie_acs_override=downstream\n")


def unsafe_interrupts(lab: Lab) -> None:
    where = lab.tree.sys / "module/vfio_iommu_type1/parameters"
    lab.tree.write(where, {"allow_unsafe_interrupts": "Y\n"})


WEAK = {
    noiommu: "no-IOMMU",
    acs_override: "pcie_acs_override",
    unsafe_interrupts: "allow_unsafe_interrupts",
}


@pytest.mark.parametrize("weaken", WEAK, ids=lambda one: one.__name__)
def test_weak_isolation_is_refused_unless_root_permits_it(weaken: Any, lab: Lab) -> None:
    lab.device()
    weaken(lab)
    error = lab.refusal()
    assert type(error) is DeviceUnsafe
    assert NIC in str(error)
    assert WEAK[weaken] in str(error)
    assert lab.rows()[NIC]["verdict"] == "refused"
    lab.policy = PciPolicy(weak_isolation=True)
    assert lab.survey().share == Share(devices=1)
    assert lab.rows()[NIC]["verdict"] == "free"


def test_a_group_goes_as_a_whole_or_not_at_all(lab: Lab) -> None:
    lab.group_of(NIC, PEER, THIRD)
    alone = lab.refusal()
    assert type(alone) is DeviceUnsafe
    assert f"{PEER}, {THIRD}" in str(alone)
    some = lab.refusal(also=[PEER])
    assert type(some) is DeviceUnsafe
    assert THIRD in str(some)
    assert PEER not in str(some)
    assert type(lab.refusal(also=[ABSENT])) is DeviceUnsafe
    for fields in ({"also": [PEER, THIRD]}, {"also": [ABSENT, PEER, THIRD]}, {"with_group": True}):
        assert dict(lab.survey(**fields).details)["members"] == f"{NIC} {PEER} {THIRD}"


def test_bridges_of_a_group_do_not_count(lab: Lab) -> None:
    lab.device()
    lab.tree.function(BRIDGE, class_code=0x060400, header=1, group=7)
    assert dict(lab.survey().details)["members"] == NIC


def root_disk(lab: Lab, path: Path) -> str:
    disk = lab.tree.block("sda", path / "ata1", "8:0")
    lab.tree.mount("8:0", "/", "ext4", f"/dev/{disk.name}")
    return "file system /"


def default_route(lab: Lab, path: Path) -> str:
    lab.tree.interface("eth0", path, 2)
    lab.links.default = frozenset({2})
    return "default route via eth0"


def address(lab: Lab, path: Path) -> str:
    lab.tree.interface("eth0", path, 2)
    lab.links.by_ifindex = {2: ["192.0.2.1"]}
    return "address 192.0.2.1 on eth0"


def boot_display(_: Lab, path: Path) -> str:
    (path / "boot_vga").write_text("1\n")
    return "boot display"


@pytest.mark.parametrize("which", [NIC, PEER])
@pytest.mark.parametrize("used_by", [root_disk, default_route, address, boot_display])
def test_what_the_host_uses_is_refused_also_of_another_member(
    used_by: Any, which: str, lab: Lab
) -> None:
    paths = dict(zip((NIC, PEER), lab.group_of(NIC, PEER), strict=True))
    phrase = used_by(lab, paths[which])
    error = lab.refusal(with_group=True)
    assert type(error) is DeviceUnsafe
    assert f"{which}: " in str(error)
    assert phrase in str(error)
    # Root may permit it, and by the member that is used.
    lab.policy = PciPolicy(allow=frozenset({which}))
    lab.survey(with_group=True)
    lab.policy = PciPolicy(allow=frozenset({NIC, PEER} - {which}))
    assert type(lab.refusal(with_group=True)) is DeviceUnsafe


@pytest.mark.parametrize("which", [NIC, PEER])
def test_root_keeps_a_device_and_its_group_whatever_else_root_says(which: str, lab: Lab) -> None:
    lab.group_of(NIC, PEER)
    lab.policy = PciPolicy(allow=frozenset({NIC, PEER}), deny=frozenset({which}))
    error = lab.refusal(with_group=True)
    assert (type(error), str(error)) == (
        DeviceUnsafe,
        f"{which}: broker.toml keeps it for the host",
    )


def test_what_cannot_be_looked_at_is_refused(lab: Lab) -> None:
    lab.device()
    (lab.tree.proc / "self/mountinfo").write_text("nonsense\n")
    error = lab.refusal()
    assert type(error) is HostFailure
    (lab.tree.proc / "self/mountinfo").unlink()
    assert type(lab.refusal()) is HostFailure


@pytest.mark.parametrize("driver", ["vfio-pci", "mlx5-vfio-pci"])
def test_a_device_that_another_program_has_is_busy(driver: str, lab: Lab) -> None:
    lab.group_of(NIC)
    lab.device(PEER, driver=driver)
    error = lab.refusal(with_group=True)
    assert type(error) is Busy
    assert f"{PEER} has the driver {driver}" in str(error)


def test_a_device_that_another_program_keeps_for_vfio_is_busy(lab: Lab) -> None:
    """As driverctl does it: ``driver_override``, before the driver is there."""
    path = lab.device(driver="e1000e")
    (path / "driver_override").write_text("vfio-pci\n")
    error = lab.refusal()
    assert (type(error), "driver_override" in str(error)) == (Busy, True)


def test_another_override_is_kept_in_mind(lab: Lab) -> None:
    path = lab.device(driver="nouveau")
    (path / "driver_override").write_text("nvidia\n")
    (shared,) = lab.plan().shared
    override, rebind, _ = shared.steps()
    assert isinstance(override, OverrideDriver)
    assert isinstance(rebind, RebindDevice)
    assert (override.former, override.former_driver) == ("nvidia", "nouveau")
    assert rebind.former == "nouveau"
    undo = f"set driver_override of {NIC} back to nvidia, and give it back to nouveau"
    assert override.describe_undo() == undo


@pytest.mark.parametrize("driver", ["e1000e", ""])
def test_what_is_not_managed_has_a_vfio_driver_already(driver: str, lab: Lab) -> None:
    """Without one there would be no node to give, and it would be waited for."""
    lab.device(driver="vfio-pci")
    lab.device(PEER, driver=driver)
    error = lab.refusal(with_group=True, managed=False)
    assert type(error) is DeviceUnsafe
    assert f"{PEER} has {f'the driver {driver}' if driver else 'no driver'}" in str(error)


def test_what_is_not_managed_keeps_its_driver(lab: Lab) -> None:
    path = lab.device(driver="mlx5-vfio-pci")
    (path / "driver_override").write_text("vfio-pci\n")  # libvirt's own doing: nodedev-detach
    lab.survey(managed=False)
    plan = lab.plan(managed=False)
    (shared,) = plan.shared
    assert shared.steps() == (GiveGroup("7", UID),)
    grant = lab.kind.grant(plan.steps)
    assert (grant["driver"], grant["former"]) == ("mlx5-vfio-pci", "mlx5-vfio-pci")


@pytest.mark.parametrize("how", ["held", "vfio"])
def test_a_virtual_function_of_a_device_that_is_given_is_busy(how: str, lab: Lab) -> None:
    physical = lab.device(PEER, group=8, driver="vfio-pci" if how == "vfio" else "ixgbe")
    virtual = lab.device(NIC, group=7)
    lab.tree.virtual_functions(physical, virtual)
    if how == "held":
        lab.survey()
        lab.hold("8")
    error = lab.refusal()
    assert (type(error), PEER in str(error)) == (Busy, True)


def test_a_device_with_virtual_functions_is_in_use(lab: Lab) -> None:
    physical, virtual = lab.device(NIC), lab.device(PEER, group=8)
    lab.tree.virtual_functions(physical, virtual)
    error = lab.refusal()
    assert (type(error), "1 virtual function exists" in str(error)) == (DeviceUnsafe, True)
    lab.survey(PEER)


def test_a_group_is_one_leases_at_a_time(lab: Lab) -> None:
    lab.group_of(NIC, PEER)
    lab.device(THIRD, group=8)
    lab.hold("7")
    for which in (NIC, PEER):
        with pytest.raises(Busy, match="IOMMU group 7"):
            lab.survey(which, with_group=True)
    lab.survey(THIRD)
    lab.kind.ended([GiveGroup("7", UID)])
    lab.survey(with_group=True)


# What is offered


def test_one_device_is_offered_by_name_and_address(lab: Lab) -> None:
    lab.device(driver="e1000e")
    offer = lab.survey()
    assert offer.action == "pci-assign"
    assert offer.sentence == (
        'Authentication is required to give "$(device)" ($(address)) to the virtual machine'
        ' "$(vm)". The host cannot use it until the machine ends.'
    )
    assert dict(offer.details) == {
        "vm": "win11",
        "uid": "1000",
        "address": NIC,
        "device": NAME,
        "ids": "8086:10d3",
        "group": "7",
        "members": NIC,
        "others": "",
        "driver": "vfio-pci",
    }
    assert offer.summary == f'the device "{NAME}" ({NIC})'
    assert offer.share == Share(devices=1)


def test_a_group_is_offered_with_the_names_of_the_others(lab: Lab) -> None:
    lab.group_of(NIC, PEER)
    offer = lab.survey(with_group=True)
    assert "and 1 other device of its isolation group: $(others)" in offer.sentence
    details = dict(offer.details)
    assert details["members"] == f"{NIC} {PEER}"
    assert details["others"] == f"{NAME} ({PEER})"
    assert offer.summary.startswith(f'the device "{NAME}" ({NIC}) with 1 other device: ')
    # Only what was asked for counts.
    assert offer.share == Share(devices=1)


@pytest.mark.parametrize(("others", "more"), [(4, ""), (5, " and 1 more"), (7, " and 3 more")])
def test_four_others_are_named_and_all_are_members(others: int, more: str, lab: Lab) -> None:
    addresses = [f"0000:03:00.{number}" for number in range(others + 1)]
    lab.group_of(*addresses)
    offer = lab.survey(with_group=True)
    details = dict(offer.details)
    assert f"and {others} other devices" in offer.sentence
    assert details["members"].split() == addresses
    assert details["others"].endswith(more or ")")
    assert details["others"].count(NAME) == 4
    assert addresses[4] in details["others"]
    assert addresses[-1] in details["others"] or more


HOSTILE = 'Evil $(vm) "<b>\u202e\x1b[31m\x00 & %s ' + "x" * 300


def test_a_hostile_name_is_words_and_no_more(lab: Lab) -> None:
    """udev's database is root's, but what is in it may come from a device's own text."""
    lab.group_of(NIC, PEER)
    record = f"E:ID_VENDOR_FROM_DATABASE={HOSTILE}\nE:ID_MODEL_FROM_DATABASE=y\n"
    for which in (NIC, PEER):
        (lab.udev / f"+pci:{which}").write_text(record)
    offer = lab.survey(with_group=True)
    details = dict(offer.details)
    for key in ("device", "others"):
        assert not set(details[key]) & set('${}<>&%"\x00\x1b\u202e\n')
        assert details[key].startswith("Evil ")
    assert len(details["device"]) <= 96
    assert not set(offer.summary) & set("$<>&%\x00\x1b\u202e\n")
    assert "$(device)" in offer.sentence
    assert "Evil" not in offer.sentence


def test_the_same_host_makes_the_same_offer_and_a_change_makes_another(lab: Lab) -> None:
    """What was shown is compared with what is so after the prompt."""
    nic, peer = lab.group_of(NIC, PEER)

    def offer() -> Offer:
        return lab.survey(with_group=True)

    offers = [offer()]
    assert offer() == offers[0]
    lab.tree.bind(peer, "e1000e")
    offers.append(offer())
    (nic / "subsystem_device").write_text("0x0001\n")
    offers.append(offer())
    (peer / "driver_override").write_text("e1000e\n")
    offers.append(offer())
    lab.device(THIRD)
    offers.append(offer())
    for number, one in enumerate(offers):
        assert one not in offers[:number]


# What would be done


def test_the_steps_are_in_order_each_with_its_undo(lab: Lab) -> None:
    lab.device(driver="e1000e")
    lab.device(PEER)
    plan = lab.plan(with_group=True)
    (shared,) = plan.shared
    assert shared.id == "vfio-7"
    steps = shared.steps()
    assert [type(step) for step in steps] == [
        OverrideDriver, OverrideDriver, RebindDevice, RebindDevice, GiveGroup,
    ]  # fmt: skip
    assert words(steps) == [
        (
            f"let no driver but vfio-pci take {NIC} (driver_override)",
            f"set driver_override of {NIC} back to nothing, and give it back to e1000e",
        ),
        (
            f"let no driver but vfio-pci take {PEER} (driver_override)",
            f"set driver_override of {PEER} back to nothing",
        ),
        (
            f"take {NIC} from e1000e and bind it to vfio-pci",
            f"take {NIC} from vfio-pci",
        ),
        (
            f"bind {PEER}, which has no driver, to vfio-pci",
            f"take {PEER} from vfio-pci",
        ),
        ("let uid 1000 open /dev/vfio/7", "withdraw that, and wait until it is closed"),
    ]
    assert words(plan.steps) == [
        (
            f"hand {NIC} ({NAME}) to the machine",
            "nothing: it ends with its group's part",
        )
    ]


def test_what_is_granted_is_what_the_contract_says(lab: Lab) -> None:
    lab.device(driver="e1000e")
    lab.device(PEER)
    steps = lab.plan(with_group=True).steps
    assert lab.kind.grant(steps) == {
        "kind": "pci",
        "address": NIC,
        "name": NAME,
        "group": 7,
        "members": (NIC, PEER),
        "node": "/dev/vfio/7",
        "driver": "vfio-pci",
        "former": "e1000e",
        "mac": "",
        "vlan": 0,
    }
    assert lab.kind.share(steps) == Share(devices=1)
    assert lab.kind.watched(steps) == (NIC, PEER)


def test_the_journal_gives_the_steps_back_as_they_were(lab: Lab) -> None:
    """With the same types: what is listed after a restart is what was listed before."""
    lab.device(driver="e1000e")
    lab.device(PEER)
    plan = lab.plan(with_group=True)
    for step in (*plan.shared[0].steps(), *plan.steps):
        assert decode(json.loads(json.dumps(step.encode())), STEPS) == step


def test_a_second_device_of_the_group_in_the_same_call(lab: Lab) -> None:
    """Its group is held by then, has VFIO's driver, and is not made a second time."""
    nic, peer = lab.device(driver="e1000e"), lab.device(PEER, driver="igb")
    lab.survey(also=[PEER])
    lab.survey(PEER, also=[NIC])
    with pytest.raises(DeviceUnsafe, match=NIC):
        lab.survey(PEER)
    first = lab.plan(also=[PEER])
    lab.kind.begun(first.shared[0].steps())
    lab.kind.begun(first.steps)
    lab.goes(nic, peer)
    with pytest.raises(Busy, match="is in use"):
        lab.plan(PEER, also=[NIC])
    lab.has("7")
    second = lab.plan(PEER, also=[NIC])
    assert second.shared[0].id == first.shared[0].id
    grants = [lab.kind.grant(plan.steps) for plan in (first, second)]
    assert [(grant["address"], grant["former"]) for grant in grants] == [
        (NIC, "e1000e"),
        (PEER, "igb"),
    ]
    assert grants[0]["members"] == grants[1]["members"]
    with pytest.raises(Busy, match="the lease has"):
        lab.plan(NIC, also=[PEER])


def test_a_lease_that_has_the_group_asks_for_another_device_of_it(lab: Lab) -> None:
    """By its own name; what went along with the first does not go along again."""
    paths = lab.device(driver="e1000e"), lab.device(PEER, driver="igb"), lab.device(THIRD)
    first = lab.plan(with_group=True)
    steps = first.shared[0].steps()
    lab.kind.begun(steps)
    lab.kind.begun(first.steps)
    lab.goes(*paths)
    for which in (PEER, NIC):
        with pytest.raises(Busy, match="is in use"):
            lab.survey(which, with_group=True)
    lab.has("7")
    offer = lab.survey(PEER)
    assert PEER in dict(offer.details)["address"]
    assert (offer.sentence.count("isolation group"), dict(offer.details)["others"]) == (0, "")
    assert dict(offer.details)["members"] == f"{NIC} {PEER} {THIRD}"
    assert offer.share == Share(devices=1)
    second = lab.plan(PEER)
    assert second.shared[0].id == first.shared[0].id
    assert lab.kind.grant(second.steps)["former"] == "igb"
    lab.kind.begun(second.steps)
    with pytest.raises(Busy, match=f"the lease has {PEER} already"):
        lab.survey(PEER)
    lab.kind.ended(second.steps)
    lab.policy = PciPolicy(deny=frozenset({PEER}))
    with pytest.raises(DeviceUnsafe, match=r"broker\.toml keeps it"):
        lab.survey(PEER)
    lab.policy = PciPolicy()
    lab.goes(paths[1], driver="igb")
    with pytest.raises(StateChanged, match="taken from its VFIO driver"):
        lab.survey(PEER)
    # What is over for the lease is over for its devices.
    lab.kind.ended([*first.steps, *steps])
    lab.owner = OWNER
    lab.goes(*paths, driver="igb")
    lab.survey(PEER, with_group=True)


# The driver that is made for a model

VARIANT = "a_vfio_pci"


def has_variant(lab: Lab, *, loaded: bool) -> None:
    """For the model that every device here is."""
    lab.aliases.write_text(f"alias vfio_pci:v00008086d000010D3sv*sd*bc*sc*i* {VARIANT}\n")
    if loaded:
        (lab.tree.sys / f"module/{VARIANT}/drivers/pci:{VARIANT}").mkdir(parents=True)


def test_a_device_goes_to_the_driver_made_for_it(lab: Lab) -> None:
    """In every step, the grant, the details for polkit's rules, and what must still be true."""
    has_variant(lab, loaded=True)
    lab.device(driver="e1000e")
    plan = lab.plan()
    override, rebind, _ = plan.shared[0].steps()
    assert isinstance(override, OverrideDriver)
    assert isinstance(rebind, RebindDevice)
    assert (override.driver, rebind.driver) == (VARIANT, VARIANT)
    assert override.describe() == f"let no driver but {VARIANT} take {NIC} (driver_override)"
    assert lab.kind.grant(plan.steps)["driver"] == VARIANT
    offer = lab.survey()
    assert dict(offer.details)["driver"] == VARIANT
    assert lab.rows()[NIC]["variant"] == VARIANT
    assert lab.survey(driver=VARIANT) == offer
    assert lab.survey(driver="vfio-pci") != offer
    assert lab.kind.grant(lab.plan(driver="vfio-pci").steps)["driver"] == "vfio-pci"
    assert "can have vfio-pci or" in str(lab.refusal(driver="nvidia"))


def test_what_goes_along_has_its_own_unless_the_general_one_is_asked_for(lab: Lab) -> None:
    has_variant(lab, loaded=True)
    lab.device()
    lab.device(PEER, device=0x1234)

    def drivers(**fields: Any) -> list[str]:
        steps = lab.plan(PEER, with_group=True, **fields).shared[0].steps()
        return [step.driver for step in steps if isinstance(step, RebindDevice)]

    assert drivers() == [VARIANT, "vfio-pci"]
    assert drivers(driver="vfio-pci") == ["vfio-pci", "vfio-pci"]
    assert type(lab.refusal(PEER, with_group=True, driver=VARIANT)) is NotSupported


def test_a_device_of_a_group_that_is_held_has_its_driver(lab: Lab) -> None:
    has_variant(lab, loaded=True)
    paths = lab.group_of(NIC, PEER)
    lab.kind.begun(lab.plan(also=[PEER]).shared[0].steps())
    lab.goes(*paths, driver=VARIANT)
    lab.has("7")
    assert lab.kind.grant(lab.plan(PEER).steps)["driver"] == VARIANT
    lab.survey(PEER, driver=VARIANT)
    with pytest.raises(InvalidRequest, match=f"driver: {PEER} went to {VARIANT}"):
        lab.survey(PEER, driver="vfio-pci")


@pytest.mark.usefixtures("impatient")
def test_a_variant_is_loaded_before_the_question_and_missed_if_it_does_not_come(lab: Lab) -> None:
    has_variant(lab, loaded=False)
    lab.device()
    loaded(lab)
    assert dict(lab.survey().details)["driver"] == VARIANT
    lab.prepare(driver="vfio-pci")
    lab.prepare(managed=False)
    assert uevent(lab) == ""
    lab.prepare()
    assert uevent(lab).endswith(" SESSIONVIRT=variant")
    assert dict(lab.survey().details)["driver"] == "vfio-pci"
    (lab.tree.sys / "bus/pci/devices" / NIC / "uevent").unlink()
    lab.prepare()
    assert uevent(lab) == ""
    assert "modprobe" in str(lab.refusal(driver=VARIANT))


# What is held


def test_what_is_given_is_intact_until_it_changes(lab: Lab) -> None:
    path, other = lab.device(driver="e1000e"), lab.device(PEER)
    steps = lab.plan(with_group=True).steps
    for one in (path, other):
        (one / "driver").unlink(missing_ok=True)
        lab.tree.bind(one, "vfio-pci")
    assert lab.kind.intact(steps, lab.host) == ""
    (other / "driver").unlink()
    assert lab.kind.intact(steps, lab.host) == f"{PEER} was taken from its VFIO driver"
    lab.tree.bind(other, "igb")
    assert PEER in lab.kind.intact(steps, lab.host)
    (path / "device").write_text("0x1234\n")  # another card at its address
    assert lab.kind.intact(steps, lab.host) == f"{NIC} is gone"
    assert lab.kind.is_gone(steps, lab.host)


def test_another_member_that_is_gone_is_not_the_device(lab: Lab) -> None:
    nic, other = lab.group_of(NIC, PEER)
    steps = lab.plan(with_group=True).steps
    lab.tree.bind(nic, "vfio-pci")
    (lab.tree.sys / "bus/pci/devices" / other.name).unlink()
    assert PEER in lab.kind.intact(steps, lab.host)
    assert not lab.kind.is_gone(steps, lab.host)
    (lab.tree.sys / "bus/pci/devices" / NIC).unlink()
    assert lab.kind.is_gone(steps, lab.host)


# Preparing


def loaded(lab: Lab) -> None:
    (lab.tree.sys / "bus/pci/drivers/vfio-pci").mkdir(parents=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vfio_module, "_PATIENCE_SECONDS", 0.05)


def uevent(lab: Lab) -> str:
    path = lab.tree.sys / "bus/pci/devices" / NIC / "uevent"
    return path.read_text() if path.exists() else ""


def test_a_module_that_is_there_is_not_loaded(lab: Lab) -> None:
    lab.device()
    loaded(lab)
    lab.prepare()
    assert uevent(lab) == ""


@pytest.mark.usefixtures("impatient")
def test_a_module_that_does_not_come_is_not_waited_for_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may ask, and everybody waits meanwhile."""
    lab.device()
    with pytest.raises(NotSupported, match="modprobe vfio-pci"):
        lab.prepare()
    event = uevent(lab)
    assert event.startswith("change ")
    assert event.endswith(" SESSIONVIRT=vfio")
    (lab.tree.sys / "bus/pci/devices" / NIC / "uevent").unlink()
    with pytest.raises(NotSupported, match="modprobe vfio-pci"):
        lab.prepare()
    assert uevent(lab) == ""
    monkeypatch.setattr(vfio_module, "_REFUSAL_SECONDS", 0.0)
    with pytest.raises(NotSupported):
        lab.prepare()
    assert uevent(lab) != event
    # Once somebody has loaded it everything is well.
    loaded(lab)
    lab.prepare()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [("", "", NotSupported), ("", "244 vfio", Restarting), ("244 vfio", "244 vfio", None)],
)
def test_a_broker_that_was_there_before_the_module_has_another_follow(
    before: str, after: str, expected: type[BrokerError] | None, lab: Lab
) -> None:
    head = "Character devices:\n  1 mem\n 10 misc\n"
    (lab.tree.proc / "devices").write_text(head + before + "\n")
    kind = lab.broker(replaceable=True)
    request = lab.request()
    lab.device()
    loaded(lab)
    (lab.tree.proc / "devices").write_text(head + after + "\n")
    if expected is None:
        kind.prepare(request, lab.host)
    else:
        with pytest.raises(expected):
            kind.prepare(request, lab.host)


# The group's node


def test_a_node_is_opened_once_and_closed(lab: Lab) -> None:
    lab.vfio.node("7").touch()
    before = len(os.listdir("/proc/self/fd"))
    lab.vfio.keep_out("7")
    lab.vfio.keep_out("7")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    lab.vfio.let_go()
    lab.vfio.let_go()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_node_that_is_not_there_keeps_nobody_out(lab: Lab) -> None:
    lab.vfio.keep_out("7")
    lab.vfio.let_go()


def test_a_node_that_somebody_has_is_busy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> int:
        raise OSError(16, "EBUSY")

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(Busy, match="IOMMU group 7"):
        lab.vfio.keep_out("7")


def test_a_node_that_is_closed_within_a_pass_is_busy_until_its_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its devices would be given back before they are away from VFIO."""
    lab.vfio.node("7").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_: somebody_has_it())
        with pytest.raises(Busy):
            lab.vfio.keep_out("7")
    with pytest.raises(Busy, match="IOMMU group 7"):
        lab.vfio.keep_out("7")
    lab.vfio.let_go()
    lab.vfio.keep_out("7")
    lab.vfio.let_go()


def somebody_has_it() -> int:
    raise OSError(16, "EBUSY")


# As descriptors


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bytes]]:
    """What an iommufd would be told."""
    told: list[tuple[int, bytes]] = []

    def ioctl(_: int, request: int, value: bytes) -> None:
        told.append((request, value))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return told


def open_here() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("missing", ["iommufd", "vfio-dev", "not asked"])
def test_without_iommufd_it_is_as_if_it_had_not_been_asked_for(missing: str, lab: Lab) -> None:
    lab.device(driver="e1000e")
    lab.has_iommufd()
    if missing == "iommufd":
        lab.vfio.iommufd.unlink()
    elif missing == "vfio-dev":
        (lab.tree.proc / "devices").write_text("246 vfio\n")
    asked = missing != "not asked"
    assert lab.survey(fds=asked) == lab.survey()
    plan = lab.plan(fds=asked)
    assert plan.shared[0].steps()[-1] == GiveGroup("7", UID)
    assert lab.kind.grant(plan.steps)["node"] == "/dev/vfio/7"


def test_with_iommufd_nobody_gets_a_node(lab: Lab) -> None:
    lab.device(driver="e1000e")
    lab.has_iommufd()
    offer = lab.survey(fds=True)
    assert offer.share == Share(devices=1, fds=2)
    assert (offer.sentence, offer.details) == (lab.survey().sentence, lab.survey().details)
    assert offer != lab.survey()
    plan = lab.plan(fds=True)
    steps = plan.shared[0].steps()
    assert [type(step) for step in steps] == [OverrideDriver, RebindDevice, KeepGroup]
    assert words([*steps[-1:], *plan.steps[1:]]) == [
        (
            "see that nobody has /dev/vfio/7 or a device of it open",
            "wait until everything of it is closed",
        ),
        (
            f"open {NIC} in /dev/vfio/devices, and /dev/iommu, for the machine",
            "close them, where they were not handed over",
        ),
    ]
    assert lab.kind.grant(plan.steps)["node"] == ""
    assert lab.kind.share(plan.steps) == offer.share
    for step in (*steps, *plan.steps):
        assert decode(json.loads(json.dumps(step.encode())), STEPS) == step
    lab.kind.begun(steps)
    with pytest.raises(Busy, match="is in use"):
        lab.survey(fds=True)
    lab.kind.ended(steps)
    lab.survey()


@pytest.mark.parametrize("first", [True, False])
def test_a_group_goes_in_one_way(first: bool, lab: Lab) -> None:  # noqa: FBT001
    lab.group_of(NIC, PEER)
    lab.has_iommufd()
    lab.kind.begun(lab.plan(fds=first, also=[PEER]).shared[0].steps())
    lab.goes(*(lab.vfio.device(which).resolve() for which in (NIC, PEER)))
    lab.has("7")
    lab.plan(PEER, fds=first, also=[NIC])
    with pytest.raises(InvalidRequest, match="fds: must be the same"):
        lab.plan(PEER, fds=not first, also=[NIC])


def test_descriptors_have_one_owner(lab: Lab, options: list[tuple[int, bytes]]) -> None:
    lab.device()
    lab.has_iommufd(NIC)
    before = open_here()
    step = OpenDevice(NIC)
    step.execute(lab.host)
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in lab.fds[NIC]] == [
        str(lab.vfio.iommufd),
        str(lab.vfio.node("devices") / "vfio0"),
    ]
    assert not any(os.get_inheritable(fd) for fd in lab.fds[NIC])
    # struct iommu_option: size, RLIMIT_MODE, set, no object, by process.
    assert options == [(0x3B87, struct.pack("=IIHHIQ", 24, 0, 0, 0, 0, 1))]
    with pytest.raises(Busy, match="twice"):
        step.execute(lab.host)
    step.undo(lab.host)
    step.undo(lab.host)
    assert (open_here(), lab.fds) == (before, {})


def its_limit_is_refused(_: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(fcntl, "ioctl", ioctl)


def vfio_has_no_such_node(lab: Lab, _: pytest.MonkeyPatch) -> None:
    (lab.vfio.node("devices") / "vfio0").unlink()


def the_name_is_no_name(lab: Lab, _: pytest.MonkeyPatch) -> None:
    (lab.vfio.device(NIC) / "vfio-dev/vfio0").rename(lab.vfio.device(NIC) / "vfio-dev/..vfio0")


def the_name_is_of_another(lab: Lab, _: pytest.MonkeyPatch) -> None:
    (lab.vfio.device(NIC) / "vfio-dev/vfio0/dev").write_text("245:3\n")


@pytest.mark.parametrize(
    "fault",
    [its_limit_is_refused, vfio_has_no_such_node, the_name_is_no_name, the_name_is_of_another],
)
@pytest.mark.usefixtures("options", "impatient")
def test_what_fails_leaves_nothing_open(
    fault: Any, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.device()
    lab.has_iommufd(NIC)
    fault(lab, monkeypatch)
    before = open_here()
    with pytest.raises((HostFailure, PermissionError)):
        OpenDevice(NIC).execute(lab.host)
    OpenDevice(NIC).undo(lab.host)
    assert open_here() == before


@pytest.mark.usefixtures("options")
def test_a_copy_that_is_open_keeps_its_group(lab: Lab) -> None:
    """Whoever has it, and whichever device of the group it is of."""
    lab.group_of(NIC, PEER)
    lab.has_iommufd(NIC, PEER)
    lab.vfio.node("7").touch()
    before = open_here()
    OpenDevice(PEER).execute(lab.host)
    copy = os.dup(lab.fds[PEER][1])
    OpenDevice(PEER).undo(lab.host)
    for attempt in (KeepGroup("7").execute, KeepGroup("7").undo, OpenDevice(PEER).execute):
        with pytest.raises(Busy, match=PEER):
            attempt(lab.host)
    OpenDevice(PEER).undo(lab.host)
    os.close(copy)
    lab.vfio.let_go()
    KeepGroup("7").undo(lab.host)
    lab.vfio.let_go()
    assert open_here() == before


def test_what_this_broker_cannot_open_it_never_passed_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd has not let it: VFIO came later, or the unit is an administrator's."""
    lab.device()
    lab.has_iommufd(NIC)
    lab.vfio.node("7").touch()
    plainly = os.open

    def denied(path: Path, flags: int) -> int:
        if path.name == "vfio0":
            raise PermissionError
        return plainly(path, flags)

    monkeypatch.setattr(os, "open", denied)
    KeepGroup("7").undo(lab.host)
    lab.vfio.let_go()


# ListDevices


def test_every_verdict(lab: Lab) -> None:
    lab.tree.function(BRIDGE, class_code=0x060400, header=1, group=1)
    lab.device("0000:01:00.0", group=None)
    lab.device("0000:02:00.0", group=2)
    lab.group_of("0000:03:00.0", "0000:03:00.1")
    root_disk(lab, lab.device("0000:04:00.0", group=4))
    lab.device("0000:04:00.1", group=4)
    lab.device("0000:05:00.0", group=5)
    lab.device("0000:05:00.1", group=5, driver="vfio-pci")
    lab.device("0000:06:00.0", group=6, driver="vfio-pci")
    lab.device("0000:08:00.0", group=8)
    lab.device("0000:09:00.0", group=9)
    lab.tree.group(9, name="vfio-noiommu")
    lab.policy = PciPolicy(deny=frozenset({"0000:08:00.0"}))
    rows = lab.rows({"0000:05:00.0": "win11", "0000:05:00.1": "-"})
    assert {address: row["verdict"] for address, row in rows.items()} == {
        "0000:00:1c.0": "bridge",
        "0000:01:00.0": "no-iommu",
        "0000:02:00.0": "free",
        "0000:03:00.0": "group",
        "0000:03:00.1": "group",
        "0000:04:00.0": "refused",
        "0000:04:00.1": "refused",
        "0000:05:00.0": "held",
        "0000:05:00.1": "held",
        "0000:06:00.0": "refused",
        "0000:08:00.0": "refused",
        "0000:09:00.0": "refused",
    }
    # Each has its own uses only.
    assert rows["0000:04:00.0"]["uses"] == ("file system / on /dev/sda",)
    assert rows["0000:04:00.1"]["uses"] == ()
    assert rows["0000:05:00.1"]["uses"] == ()
    assert rows["0000:06:00.0"]["uses"] == ("another program has it by vfio-pci",)
    assert rows["0000:08:00.0"]["uses"] == ("broker.toml keeps it for the host",)
    assert [rows[f"0000:05:00.{number}"]["holder"] for number in (0, 1)] == ["win11", "-"]


def test_a_verdict_is_what_a_request_meets(lab: Lab) -> None:
    lab.device("0000:02:00.0", group=2)
    lab.group_of("0000:03:00.0", "0000:03:00.1")
    root_disk(lab, lab.device("0000:04:00.0", group=4))
    lab.device("0000:04:00.1", group=4)
    lab.device("0000:05:00.0", group=5, driver="vfio-pci")
    lab.device("0000:06:00.0", group=None)
    lab.policy = PciPolicy(allow=frozenset({"0000:04:00.1"}))
    for address_, row in lab.rows().items():
        given = True
        try:
            lab.survey(address_, with_group=row["verdict"] != "free")
        except BrokerError:
            given = False
        assert given == (row["verdict"] in ("free", "group")), address_

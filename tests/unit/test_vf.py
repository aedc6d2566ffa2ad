# SPDX-License-Identifier: LGPL-2.1-or-later
"""The MAC address and VLAN of a virtual function: what is refused, set and put back.

On trees like /sys, and a card that can misbehave. That the kernel and a driver then do it is proved
in the test host, and that the messages are well formed in ``tests/kernel/test_netlink.py``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lab.fakesysfs import FakeSysfs
from sessionvirt_broker import vf as vf_module
from sessionvirt_broker.config import BUILTIN
from sessionvirt_broker.errors import (
    Busy,
    HostFailure,
    InvalidRequest,
    NotSupported,
    StateChanged,
)
from sessionvirt_broker.host import Host
from sessionvirt_broker.hostdev import PciKind
from sessionvirt_broker.kind import Owner
from sessionvirt_broker.kinds import STEPS
from sessionvirt_broker.netlink import Card, VirtualFunction
from sessionvirt_broker.pcinames import PciNames
from sessionvirt_broker.steps import carry_out, decode
from sessionvirt_broker.variants import Variants
from sessionvirt_broker.vf import SetFunction
from sessionvirt_broker.vfio import Vfio
from sessionvirt_broker.vfiodrivers import Drivers
from sessionvirt_broker.vfiosteps import AssignDevice, GiveGroup, OverrideDriver, RebindDevice
from sessionvirt_broker.wire import Fields, VmName

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sessionvirt_broker.kind import Offer, Plan, Request
    from sessionvirt_broker.steps import Step

pytestmark = pytest.mark.unit

CARD, FIRST, SECOND = "0000:03:00.0", "0000:03:10.0", "0000:03:10.2"
OWNER = Owner(1000, VmName("win11"))
IFINDEX = 4
CARD_MAC, FIRST_MAC, SECOND_MAC = (f"52:54:00:00:00:0{number}" for number in range(3))
MAC = "52:54:00:00:42:01"
FORMER = VirtualFunction(FIRST_MAC, vlan=7, qos=3, proto=0x8100, spoofchk=0, trust=1)
GIVEN = VirtualFunction(MAC, vlan=42, qos=0, proto=0x8100, spoofchk=1, trust=0)


class Links:
    """The routing socket, and the driver of one card."""

    def __init__(self) -> None:
        self.functions = {0: FORMER, 1: replace(FORMER, mac=SECOND_MAC, trust=-1)}
        #: Which setting is refused with what, how often; and which is taken and not set.
        self.refused: dict[str, list[int]] = {}
        self.ignored: set[str] = set()
        self.set: list[str] = []

    def addresses(self) -> dict[int, list[str]]:
        return {}

    def default_routes(self) -> frozenset[int]:
        return frozenset()

    def card(self, ifindex: int) -> Card | None:
        if ifindex != IFINDEX:
            return Card("52:54:00:00:00:99", {})  # a representor
        return Card(CARD_MAC, dict(self.functions))

    def set_function(self, ifindex: int, number: int, setting: str, value: Any) -> None:
        self._set(ifindex, number, setting, {setting: value})

    def set_function_vlan(self, ifindex: int, number: int, vlan: int, qos: int) -> None:
        self._set(ifindex, number, "vlan", {"vlan": vlan, "qos": qos})

    def _set(self, ifindex: int, number: int, setting: str, values: dict[str, Any]) -> None:
        assert ifindex == IFINDEX
        self.set.append(setting)
        if waiting := self.refused.get(setting):
            code = waiting.pop()
            raise OSError(code, os.strerror(code))
        if setting not in self.ignored:
            self.functions[number] = replace(self.functions[number], **values)


class Lab:
    """A card with two virtual functions, and how a request for the first goes through the kind."""

    def __init__(self, root: Path) -> None:
        self.tree = FakeSysfs(root)
        (root / "dev/vfio").mkdir(parents=True)
        names = PciNames(root / "none", root / "none")
        drivers = Drivers(Variants(root / "modules.alias"))
        self.kind = PciKind(self.tree.sys, self.tree.proc, names, drivers, replaceable=False)
        self.vfio = Vfio(self.tree.sys, root / "dev")
        self.links = Links()
        links: Any = self.links
        lacking: Any = None
        self.host = Host(links, lacking, lacking, None, self.vfio)
        self.card = self.tree.function(CARD, group=5, driver="igb")
        self.first = self.tree.function(FIRST, group=6, driver="igbvf")
        self.second = self.tree.function(SECOND, group=7, driver="igbvf")
        self.tree.virtual_functions(self.card, self.first, self.second)
        self.interface = self.tree.interface("eth0", self.card, IFINDEX)
        self.up()
        for number, path in enumerate((self.first, self.second), 5):
            self.tree.interface(f"eth{number}", path, number)

    def up(self, flags: int = 0x1003) -> None:
        (self.interface / "flags").write_text(f"{flags:#x}\n")

    def no_interface(self) -> None:
        for file in self.interface.iterdir():
            file.unlink()
        self.interface.rmdir()

    def request(self, address: str = FIRST, **fields: Any) -> Request:
        types = {str: "s", bool: "b", int: "u"}
        given = {"address": address, **fields}
        values = {key: (types[type(value)], value) for key, value in given.items()}
        return self.kind.parse(Fields("requests[0]", values), 0, BUILTIN)

    def survey(self, address: str = FIRST, **fields: Any) -> Offer:
        return self.kind.survey(self.request(address, **fields), OWNER, BUILTIN, self.host)

    def plan(self, address: str = FIRST, owner: Owner = OWNER, **fields: Any) -> Plan:
        return self.kind.plan(self.request(address, **fields), owner, BUILTIN, self.host)

    def step(self, address: str = FIRST, **fields: Any) -> SetFunction:
        (shared,) = self.plan(address, **fields).shared
        (step,) = [one for one in shared.steps() if isinstance(one, SetFunction)]
        return step

    def refuses(
        self, kind: type[Exception], word: str, address: str = FIRST, **fields: Any
    ) -> None:
        for ask in (self.survey, self.plan):
            with pytest.raises(kind, match=word) as caught:
                ask(address, **fields)
            assert "\n" not in str(caught.value)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(vf_module, "_LOOK_AGAIN_SECONDS", 0.0)
    return Lab(tmp_path)


# What may be asked for


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("mac", "52:54:00:00:42", "must look like"),
        ("mac", "52:54:00:00:42:01\n", "must look like"),
        ("mac", "01:54:00:00:42:01", "unicast"),
        ("mac", "00:00:00:00:00:00", "unicast"),
        ("mac", "fe:54:00:00:42:01", "host's end"),
        ("mac", "5a:54:00:00:42:01", "derives"),
        ("mac", 3, "type s"),
        ("vlan", 0, "from 1 to 4094"),
        ("vlan", 4095, "from 1 to 4094"),
        ("vlan", "42", "type u"),
    ],
)
def test_what_is_malformed_is_refused_by_its_field(
    field: str, value: Any, why: str, lab: Lab
) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        lab.request(**{field: value})
    assert f"requests[0].{field}" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"mac": MAC}, "the local network (52:54:00:00:42:01)"),
        ({"vlan": 42}, "VLAN 42 of the local network"),
        ({"mac": MAC.upper(), "vlan": 42}, "VLAN 42 of the local network (52:54:00:00:42:01)"),
    ],
)
def test_the_prompt_says_what_is_given_on_the_network(
    fields: dict[str, Any], where: str, lab: Lab
) -> None:
    offer, plain = lab.survey(**fields), lab.survey()
    assert (offer.action, plain.action) == ("pci-network", "pci-assign")
    assert (offer.includes, plain.includes) == ("pci-assign", "")
    assert offer.sentence == (
        'Authentication is required to give "$(device)" ($(address)) to the virtual machine'
        f' "$(vm)", as a host of its own on {where}. The host cannot use it until the machine ends.'
    )
    assert f"({FIRST}), as a host of its own on {where}" in offer.summary
    network = {"mac": MAC if "mac" in fields else "", "vlan": "42" if "vlan" in fields else ""}
    assert dict(offer.details) == dict(plain.details) | network
    assert lab.survey(**fields) == offer
    lab.plan(**fields)  # and it is what is planned
    assert "local network" not in plain.sentence + plain.summary


def test_what_was_shown_is_another_thing_when_the_card_is(lab: Lab) -> None:
    offer = lab.survey(mac=MAC)
    (lab.card / "subsystem_device").write_text("0x0001\n")
    assert lab.survey(mac=MAC) != offer


# Refusals


def test_only_a_virtual_function_has_them(lab: Lab) -> None:
    lab.tree.function("0000:09:00.0", group=9, class_code=0x118000)
    lab.refuses(NotSupported, "0000:09:00.0 is no virtual function", "0000:09:00.0", vlan=42)
    lab.survey("0000:09:00.0")


def test_the_card_must_have_one_interface_here_that_is_up(lab: Lab) -> None:
    lab.tree.interface("eth0r0", lab.card, 8)  # a representor does not count
    lab.survey(mac=MAC)
    lab.up(0x1002)
    lab.refuses(NotSupported, f"interface of {CARD} is down", mac=MAC)
    lab.up()
    again = lab.tree.interface("eth0np1", lab.card, IFINDEX)
    lab.refuses(NotSupported, f"{CARD} of {FIRST} has several", mac=MAC)
    (again / "ifindex").write_text("8\n")
    lab.no_interface()
    lab.refuses(NotSupported, f"{CARD} of {FIRST} has no network interface here", mac=MAC)
    lab.survey()


def test_a_group_of_several_is_not_for_one_address(lab: Lab) -> None:
    lab.tree.function("0000:03:10.4", group=6, class_code=0x118000)
    lab.refuses(NotSupported, "group 6 has 1 more", mac=MAC, with_group=True)
    lab.survey(with_group=True)


def test_what_could_not_be_put_back_or_seen_is_not_set(lab: Lab) -> None:
    lab.links.functions[0] = replace(FORMER, proto=0x88A8)
    lab.refuses(NotSupported, "802.1ad", vlan=42)
    lab.survey(mac=MAC)
    lab.links.functions[0] = replace(FORMER, proto=0x88A8, vlan=0)
    lab.survey(vlan=42)
    lab.links.functions[0] = replace(FORMER, spoofchk=-1)
    lab.refuses(NotSupported, "does not say whether it checks", mac=MAC)
    lab.survey(vlan=42)


def test_an_address_is_ones_on_a_card(lab: Lab) -> None:
    for taken in (CARD_MAC, SECOND_MAC):
        lab.refuses(Busy, f"{taken} is in use on the card {CARD}", mac=taken)
    lab.survey(mac=FIRST_MAC)  # its own
    step = lab.step(SECOND, mac=MAC)
    lab.kind.begun([step])
    lab.refuses(Busy, f"{MAC} is in use", mac=MAC)
    lab.kind.ended([step])
    lab.survey(mac=MAC)


def test_one_function_is_not_given_twice_with_two_addresses(lab: Lab) -> None:
    """The second would be told that it has what it has not: its group's steps are done."""
    lab.kind.begun(lab.plan(mac=MAC).shared[0].steps())
    (lab.first / "driver").unlink()
    lab.tree.bind(lab.first, "vfio-pci")
    for fields in ({"mac": "52:54:00:00:42:02"}, {"vlan": 9}):
        with pytest.raises(Busy, match=f"{FIRST} is in use"):
            lab.plan(owner=replace(OWNER, has=frozenset({"vfio-6"})), **fields)


# What is done


def test_it_is_set_before_its_driver_loses_it_and_put_back_before_it_has_it(lab: Lab) -> None:
    plan = lab.plan(mac=MAC, vlan=42)
    steps = plan.shared[0].steps()
    assert [type(step) for step in steps] == [OverrideDriver, SetFunction, RebindDevice, GiveGroup]
    where = f"{FIRST}, virtual function 0 of {CARD}"
    assert (steps[1].describe(), steps[1].describe_undo()) == (
        f"give the MAC address {MAC} (spoof check) and VLAN 42 to {where}",
        f"give the MAC address {FIRST_MAC} and VLAN 7 to {FIRST} again",
    )
    grant = lab.kind.grant(plan.steps)
    assert (grant["mac"], grant["vlan"]) == (MAC, 42)
    for step in (*steps, *plan.steps):
        assert decode(json.loads(json.dumps(step.encode())), STEPS) == step
    (lab.first / "driver").unlink()
    lab.tree.bind(lab.first, "vfio-pci")
    kept = lab.plan(mac=MAC, managed=False).shared[0].steps()
    assert [type(step) for step in kept] == [SetFunction, GiveGroup]


def test_a_lease_of_an_older_broker_is_read(lab: Lab) -> None:
    (step,) = lab.plan().steps
    raw = json.loads(json.dumps(step.encode()))
    del raw["mac"], raw["vlan"]
    assert decode(raw, STEPS) == step
    assert isinstance(step, AssignDevice)
    assert (step.mac, step.vlan) == ("", 0)
    del raw["name"]
    with pytest.raises(ValueError, match="name"):
        decode(raw, STEPS)


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"mac": MAC, "vlan": 42}, GIVEN),
        ({"mac": MAC}, replace(GIVEN, vlan=7, qos=3)),
        ({"vlan": 42}, replace(FORMER, vlan=42, qos=0)),
    ],
)
def test_what_is_set_is_put_back_as_often_as_it_is_tried(
    fields: dict[str, Any], given: VirtualFunction, lab: Lab
) -> None:
    others = lab.links.functions[1]
    step = lab.step(**fields)
    assert step.execute(lab.host) == step
    assert lab.links.functions == {0: given, 1: others}
    step.undo(lab.host)
    assert lab.links.functions == {0: FORMER, 1: others}
    lab.links.set.clear()
    step.undo(lab.host)
    assert lab.links.set == []


def test_what_its_guest_made_of_it_is_put_back_too(lab: Lab) -> None:
    step = lab.step(mac=MAC, vlan=42)
    step.execute(lab.host)
    lab.links.functions[0] = replace(GIVEN, mac="52:54:00:66:66:66")
    step.undo(lab.host)
    assert lab.links.functions[0] == FORMER


def test_a_crash_in_the_middle_leaves_what_can_be_put_back(lab: Lab) -> None:
    step = lab.step(mac=MAC, vlan=42)
    for half in (FORMER, replace(FORMER, mac=MAC), replace(FORMER, mac=MAC, vlan=42, qos=0)):
        lab.links.functions[0] = half
        step.undo(lab.host)
        assert lab.links.functions[0] == FORMER


@pytest.mark.parametrize("setting", ["mac", "vlan", "spoofchk", "trust"])
@pytest.mark.parametrize("how", ["refused", "ignored"])
def test_a_driver_that_cannot_costs_nothing(how: str, setting: str, lab: Lab) -> None:
    """Nothing was done to the function's own driver, and what was set is put back."""
    if how == "refused":
        lab.links.refused[setting] = [errno.EOPNOTSUPP]
    else:
        lab.links.ignored.add(setting)
    (shared,) = lab.plan(mac=MAC, vlan=42).shared
    done: list[Step] = []
    with pytest.raises(NotSupported, match=f"driver of {CARD}"):
        carry_out(shared.steps(), done, lab.host, lambda: None)
    assert done == []
    assert lab.links.functions[0] == FORMER
    assert (lab.vfio.driver(FIRST), lab.vfio.override(FIRST)) == ("igbvf", "")


def test_what_changed_meanwhile_is_not_overwritten(lab: Lab) -> None:
    step = lab.step(mac=MAC)
    lab.links.functions[0] = replace(FORMER, mac="52:54:00:77:77:77")
    with pytest.raises(StateChanged, match=FIRST):
        step.execute(lab.host)
    assert lab.links.set == []


def test_a_function_that_is_being_reset_is_waited_for(lab: Lab) -> None:
    step = lab.step(mac=MAC)
    lab.links.refused = {"mac": [errno.EBUSY, errno.EAGAIN], "spoofchk": [errno.EAGAIN]}
    step.execute(lab.host)
    assert lab.links.functions[0] == replace(GIVEN, vlan=7, qos=3)


def test_one_that_stays_so_is_tried_again_by_the_clock_of_undoing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = lab.step(mac=MAC)
    monkeypatch.setattr(vf_module, "_PATIENCE_SECONDS", -1.0)
    lab.links.refused["mac"] = [errno.EAGAIN]
    with pytest.raises(Busy, match=f"{FIRST} is being reset"):
        step.execute(lab.host)
    step.execute(lab.host)
    lab.links.refused["mac"] = [errno.EBUSY]
    with pytest.raises(Busy, match=f"{FIRST} is being reset"):
        step.undo(lab.host)
    step.undo(lab.host)
    assert lab.links.functions[0] == FORMER


@pytest.mark.parametrize("how", ["refused", "ignored"])
def test_what_the_driver_does_not_take_back_keeps_nothing_else(
    how: str, lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """As a driver that refuses an address of all zeros, which it had told."""
    lab.links.functions[0] = replace(FORMER, mac="00:00:00:00:00:00")
    step = lab.step(mac=MAC, vlan=42)
    step.execute(lab.host)
    if how == "refused":
        lab.links.refused["mac"] = [errno.EINVAL]
    else:
        lab.links.ignored.add("mac")
    step.undo(lab.host)
    assert lab.links.functions[0] == replace(FORMER, mac=MAC)
    assert caplog.messages == [f"{FIRST}: the MAC address cannot be put back to 00:00:00:00:00:00"]


def test_nothing_is_put_back_while_somebody_has_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = lab.step(mac=MAC)
    step.execute(lab.host)
    with _somebody_has_it(lab, monkeypatch), pytest.raises(Busy):
        step.undo(lab.host)
    assert lab.links.functions[0].mac == MAC
    lab.vfio.let_go()
    step.undo(lab.host)
    lab.vfio.let_go()
    assert lab.links.functions[0] == FORMER


def test_nothing_is_set_while_somebody_has_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that another program has bound to VFIO, and runs a guest with."""
    (lab.first / "driver").unlink()
    lab.tree.bind(lab.first, "vfio-pci")
    step = lab.step(mac=MAC, managed=False)
    with _somebody_has_it(lab, monkeypatch), pytest.raises(Busy, match="group 6"):
        step.execute(lab.host)
    assert lab.links.set == []
    lab.vfio.let_go()
    step.execute(lab.host)
    lab.vfio.let_go()
    assert lab.links.functions[0].mac == MAC


@contextlib.contextmanager
def _somebody_has_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    lab.vfio.node("6").touch()
    plainly = os.open

    def busy(path: Any, *rest: Any, **more: Any) -> int:
        if path == lab.vfio.node("6"):
            raise OSError(errno.EBUSY, "EBUSY")
        return plainly(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", busy)
        yield


def test_what_is_gone_needs_nothing(lab: Lab) -> None:
    step = lab.step(mac=MAC)
    step.execute(lab.host)
    lab.links.set.clear()
    # In another network namespace, or hidden: it may come back.
    lab.no_interface()
    with pytest.raises(HostFailure, match=CARD):
        step.undo(lab.host)
    # Its driver is another: what the former was told is gone.
    (lab.card / "net").rmdir()
    step.undo(lab.host)
    (lab.tree.sys / "bus/pci/devices" / FIRST).unlink()
    step.undo(lab.host)
    assert lab.links.set == []

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is offered as a bridge and is none, as rtnetlink and sysfs would tell it.

The kernel of the kernel tier has few of these kinds; bonds and VLAN devices are also in the host
tier. The stand-ins are for the kernel, at its border.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from sessionvirt_broker.bridges import LanBridge
from sessionvirt_broker.config import BUILTIN
from sessionvirt_broker.errors import (
    BrokerError,
    DeviceUnsafe,
    NotFound,
    NotSupported,
    StateChanged,
)
from sessionvirt_broker.lan import Place, find_place, offer
from sessionvirt_broker.limits import Share
from sessionvirt_broker.netlink import Link
from sessionvirt_broker.steps import decode
from sessionvirt_broker.tapsteps import AttachTap
from sessionvirt_broker.wire import BridgeName

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

BR0 = BridgeName("br0")


class Host:
    """One interface, br0.

    :param kind: the driver's word.
    :param attributes: what sysfs has of it.
    """

    def __init__(self, sysfs: Path, kind: str = "bridge", **attributes: str) -> None:
        self.sysfs = sysfs
        self.link: Link | None = Link(7, BR0, kind, "02:00:00:00:00:01", 9000, 0)
        for name, value in {"addr_assign_type": "3", **attributes}.items():
            path = sysfs / BR0 / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value + "\n")

    def place(self, vlan: int = 0, vlans: tuple[int, ...] = (42,)) -> Place:
        offered = MappingProxyType({BR0: LanBridge(vlans=frozenset(vlans))})
        host = cast("Any", SimpleNamespace(links=SimpleNamespace(by_name=lambda _: self.link)))
        configuration = replace(BUILTIN, bridges=offered)
        return find_place(BR0, vlan, configuration, host, self.sysfs)[0]

    def refusal(self, vlan: int = 0) -> BrokerError:
        with pytest.raises(BrokerError) as error:
            self.place(vlan)
        assert str(error.value).isascii()
        assert len(str(error.value)) < 200
        return error.value


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("openvswitch", "an Open vSwitch bridge"),
        ("bond", "a bond"),
        ("vlan", "a VLAN interface"),
        ("team", "a team"),
        ("macvlan", "a macvlan"),
        ("", "an ordinary interface"),
        ("\x1b[31m", "an interface of another kind"),
    ],
)
def test_what_is_no_bridge_is_called_by_its_name(kind: str, words: str, tmp_path: Path) -> None:
    error = Host(tmp_path, kind).refusal()
    assert type(error) is NotSupported
    assert f"br0 is {words}" in str(error)


def test_a_bridge_that_is_absent_or_has_a_ports_address(tmp_path: Path) -> None:
    host = Host(tmp_path, addr_assign_type="0")
    assert type(host.refusal()) is DeviceUnsafe
    host.link = None
    assert type(host.refusal()) is NotFound


def test_a_place_is_of_the_bridge_that_is_there(tmp_path: Path) -> None:
    assert Host(tmp_path).place() == Place(BR0, 7, 9000, 0)


@pytest.mark.parametrize(
    ("filtering", "default", "vlan", "error"),
    [
        ("0", "1", 0, None),
        ("0", "0", 0, None),
        ("1", "1", 0, NotFound),
        ("1", "42", 0, None),
        ("1", "0", 0, NotSupported),
        ("0", "1", 42, NotSupported),
        ("1", "1", 42, None),
        ("1", "0", 42, None),
        ("1", "1", 43, NotFound),
        ("0", "1", 43, NotFound),
    ],
)
def test_vlans(
    filtering: str, default: str, vlan: int, error: type[BrokerError] | None, tmp_path: Path
) -> None:
    attributes = {"bridge__vlan_filtering": filtering, "bridge__default_pvid": default}
    host = Host(tmp_path, **attributes)
    if error is None:
        assert host.place(vlan).vlan == vlan
    else:
        assert type(host.refusal(vlan)) is error


def test_without_vlans_in_broker_toml_the_default_one_is_meant(tmp_path: Path) -> None:
    host = Host(tmp_path, bridge__vlan_filtering="1", bridge__default_pvid="1")
    assert host.place(vlans=()) == Place(BR0, 7, 9000, 0, "1")


def test_another_default_vlan_is_another_place_and_another_offer(tmp_path: Path) -> None:
    """A prompt may be open for minutes, and who says yes to it has said in which network."""
    shown = []
    for filtering, default in (("0", "1"), ("1", "1"), ("1", "7")):
        host = Host(tmp_path, bridge__vlan_filtering=filtering, bridge__default_pvid=default)
        shown.append(offer(host.place(vlans=()), LanBridge(), "52:54:00:00:00:01", (), Share()))
    assert len({one.facts for one in shown}) == 3


def test_a_tap_goes_to_no_other_bridge_than_the_one_that_was_looked_at() -> None:
    """Between the look and the deed is no time to test in; here the name is another's by then."""
    links = SimpleNamespace(index_of=lambda name: {"svt0": 5, "br0": 8}[name])
    step = AttachTap("svt0", "br0", "fe:0", "52:0", 1500, "svt-x", vlan=42, bridge_ifindex=7)
    with pytest.raises(StateChanged):
        step.execute(cast("Any", SimpleNamespace(links=links)))


def test_the_record_of_a_broker_that_knew_no_vlan_is_good() -> None:
    """An upgrade leaves leases as they are, so their records are read by the next broker."""
    new = AttachTap("svt0", "br0", "fe:0", "52:0", 1500, "svt-x")
    old = {name: value for name, value in new.encode().items() if "vlan" not in name}
    for later in ("bridge_ifindex", "isolated"):
        del old[later]
    assert decode(old, {AttachTap.NAME: AttachTap}) == new
    for name in old:
        with pytest.raises(ValueError, match=r"tap-attach\.|unknown"):
            decode({k: v for k, v in old.items() if k != name}, {AttachTap.NAME: AttachTap})

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``[direct.NAME]`` of broker.toml, what can be shared as rtnetlink and sysfs would tell it, and
the descriptors of a macvtap."""

from __future__ import annotations

import errno
import os
import tomllib
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from sessionvirt_broker.config import BUILTIN, _Reader
from sessionvirt_broker.direct import DirectInterface, DirectMode
from sessionvirt_broker.egress import EGRESS_RULES, REASONS
from sessionvirt_broker.errors import (
    Busy,
    ConfigurationError,
    HostFailure,
    NotFound,
    NotSupported,
    StateChanged,
)
from sessionvirt_broker.kind import Permit
from sessionvirt_broker.lower import Lower, find_lower
from sessionvirt_broker.macvtap import CreateMacvtap, open_queues
from sessionvirt_broker.netlink import Link
from sessionvirt_broker.ruleset import REASONS as OF_A_TAP
from sessionvirt_broker.wire import DeviceName

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.unit

ETH0 = DeviceName("eth0")


def read(body: str, name: str = "eth0") -> DirectInterface:
    text = f"\n[direct.{name}]\n{body}\n"
    found = _Reader(Path("broker.toml"), text).configuration(tomllib.loads(text)).directs
    return found[DeviceName(name)]


def test_without_keys_every_mode_is_offered_and_nobody_permitted_beforehand() -> None:
    assert read("") == DirectInterface(Permit(), frozenset(DirectMode))
    assert BUILTIN.directs == {}


def test_users_groups_and_modes_are_read() -> None:
    found = read('users = [1000]\ngroups = [50]\nmodes = ["private", "vepa"]')
    assert found.permit == Permit(frozenset({1000}), frozenset({50}))
    assert found.modes == {DirectMode.PRIVATE, DirectMode.VEPA}


@pytest.mark.parametrize(
    "body",
    [
        'modes = "bridge"',
        "modes = []",
        'modes = ["passthrough"]',
        'modes = ["Bridge"]',
        "modes = [1]",
        "modes = [[]]",
        "vlans = [42]",
        'users = "alice"',
    ],
)
def test_what_is_wrong_is_named_with_its_line(body: str) -> None:
    with pytest.raises(ConfigurationError, match=r"broker\.toml:3: 'direct\.eth0\."):
        read(body)


@pytest.mark.parametrize("name", ["svn_default", "svt0", '"a/b"', '"-x"', '"sixteen-letters-"'])
def test_a_name_that_is_no_interface_of_the_hosts_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"broker\.toml:\d+: .* is not the name"):
        read("", name)


# What can be shared


class Host:
    """One interface, eth0.

    :param kind: the driver's word.
    :param attributes: what sysfs has of it.
    """

    def __init__(
        self, sysfs: Path, kind: str = "", *, master: int = 0, name: str = "eth0", **more: str
    ) -> None:
        self.sysfs = sysfs
        self.link: Link | None = Link(7, name, kind, "02:00:00:00:00:01", 9000, master)
        for attribute, value in {"type": "1", "flags": "0x1003", **more}.items():
            path = sysfs / "eth0" / attribute
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value + "\n")

    def lower(self, mode: DirectMode = DirectMode.BRIDGE) -> Lower:
        offered = MappingProxyType({ETH0: DirectInterface(modes=frozenset({DirectMode.BRIDGE}))})
        host = cast("Any", SimpleNamespace(links=SimpleNamespace(by_name=lambda _: self.link)))
        configuration = replace(BUILTIN, directs=offered)
        return find_lower(ETH0, mode, configuration, host, self.sysfs)[0]


@pytest.mark.parametrize("kind", ["", "vlan", "bond", "team", "veth"])
def test_what_has_a_wire_can_be_shared(kind: str, tmp_path: Path) -> None:
    assert Host(tmp_path, kind).lower() == Lower(ETH0, 7, 9000, DirectMode.BRIDGE)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda at: Host(at, "bridge"), "is a bridge"),
        (lambda at: Host(at, "macvlan"), "no Ethernet interface"),
        (lambda at: Host(at, "macvtap"), "no Ethernet interface"),
        (lambda at: Host(at, "tun"), "no Ethernet interface"),
        (lambda at: Host(at, "openvswitch"), "no Ethernet interface"),
        (lambda at: Host(at, "wireguard"), "no Ethernet interface"),
        (lambda at: Host(at, type="772"), "no Ethernet interface"),
        (lambda at: Host(at, wireless=""), "is wireless"),
        (lambda at: Host(at, phy80211=""), "is wireless"),
        (lambda at: Host(at, master=3), "is a port"),
        (lambda at: Host(at, flags="0x1002"), "is down"),
        (lambda at: Host(at, flags=""), "is down"),
    ],
)
def test_what_cannot_be_shared_is_said(
    make: Callable[[Path], Host], word: str, tmp_path: Path
) -> None:
    with pytest.raises(NotSupported, match=f"^device: eth0 .*{word}"):
        make(tmp_path).lower()


def test_what_is_not_there_or_not_on_offer(tmp_path: Path) -> None:
    host = Host(tmp_path)
    with pytest.raises(NotFound, match=r"^mode: .* does not offer the mode vepa on eth0"):
        host.lower(DirectMode.VEPA)
    host.link = None
    with pytest.raises(NotFound, match="has no such interface"):
        host.lower()
    with pytest.raises(NotFound, match="only another name of enp1s0"):
        Host(tmp_path, name="enp1s0").lower()


# What the kernel says no to


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ENODEV", StateChanged),
        ("EOPNOTSUPP", NotSupported),
        ("EBUSY", Busy),
        ("EINVAL", Busy),
        ("ENOMEM", OSError),
    ],
)
def test_a_refusal_of_the_kernel_has_its_name(name: str, expected: type[Exception]) -> None:
    def create(*_: object, **__: object) -> None:
        raise OSError(getattr(errno, name), "no")

    links = SimpleNamespace(create_macvtap=create)
    step = CreateMacvtap("svt000000000000", "eth0", 7, "bridge", "52:54:00:00:00:01", 1 << 24)
    with pytest.raises(expected):
        step.execute(cast("Any", SimpleNamespace(links=links)))


# Descriptors


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """sysfs of svt0, whose node is 1:3; a stand-in for /dev is beside it."""
    (tmp_path / "net/svt0/tap77").mkdir(parents=True)
    (tmp_path / "net/svt0/tap77/dev").write_text("1:3\n")
    (tmp_path / "dev").mkdir()
    return tmp_path


def opened(device: Path) -> list[int]:
    return open_queues("svt0", 77, 1, device / "dev", device / "net")


def test_a_node_that_is_not_there_is_not_supported(device: Path) -> None:
    with pytest.raises(NotSupported, match="the module macvtap"):
        opened(device)


def test_a_node_of_another_device_is_not_given(device: Path) -> None:
    """Of another network namespace: /dev/full here."""
    (device / "dev/tap77").symlink_to("/dev/full")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(HostFailure, match="/dev/tap77 is not svt0's"):
        opened(device)
    assert os.listdir("/proc/self/fd") == before


# The rules


def test_the_reasons_are_words_that_a_tap_has_too() -> None:
    assert set(REASONS) <= set(OF_A_TAP)
    for reason in REASONS:
        assert EGRESS_RULES.count(f"goto drop_{reason}\n") >= 1

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A network and who is on it, in words: whose, how much, and nothing that moves a cursor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionvirt.broker_data import (
    BandwidthGrant,
    LeaseInfo,
    NetworkInfo,
    PciGrant,
    Rate,
    TapGrant,
)
from sessionvirt.cli.networkview import lines, named, plain, view
from sessionvirt.cli.output import moment, one_line
from sessionvirt.errors import NotFoundError
from sessionvirt.host.traffic import Traffic, ports, traffic

if TYPE_CHECKING:
    from pathlib import Path

    from sessionvirt.cli.networkview import View

pytestmark = pytest.mark.unit

WIDE: Final = 200
BEFORE: Final = Traffic(1_000, 10, 5_000_000, 4_000)
NOW: Final = Traffic(2_500, 13, 9_000_000, 6_000)


def network(name: str = "default", **values: Any) -> NetworkInfo:
    plain: dict[str, Any] = {
        "type": "network",
        "mode": "nat",
        "bridge": f"svn_{name}",
        "up": True,
        "mtu": 1500,
        "ipv4": ("10.213.80.1/20", "10.9.0.1/24"),
        "ipv6": ("fd00::1/64",),
        "leases": 1,
    }
    return NetworkInfo(name=name, **{**plain, **values})


def tap(ifname: str = "svt01", **values: Any) -> TapGrant:
    plain: dict[str, Any] = {
        "id": "tap0",
        "kind": "tap",
        "fds": (),
        "ifindex": 7,
        "mac": "52:54:00:00:00:01",
        "mtu": 1500,
        "network": "default",
        "bridge": "",
        "ipv4": ("10.213.80.9",),
        "ipv6": ("fd00::9",),
    }
    return TapGrant(ifname=ifname, **{**plain, **values})


def lease(*grants: Any, **values: Any) -> LeaseInfo:
    plain: dict[str, Any] = {
        "lease": "/org/sessionvirt/Broker1/lease/0123",
        "vm": "guest",
        "uid": 1000,
        "state": "held",
        "since": 1_700_000_000,
        "allowed": "yes",
        "drops": {"mac": 3, "arp": 0, "dhcp": 1},
        "process": 0,
    }
    return LeaseInfo(grants=grants, **{**plain, **values})


def seen(*leases: LeaseInfo, of: NetworkInfo | None = None, **values: Any) -> View:
    known: dict[str, Any] = {
        "ports": frozenset({"svt01"}),
        "counted": {"svt01": (NOW, NOW.since(BEFORE, 0.5))},
        "user": {1000: "alice"}.get,
    }
    return view(of or network(), leases, **{**known, **values})


# -- counters --------------------------------------------------------------------------------------


def sysfs(path: Path, name: str, **counters: str) -> str:
    directory = path / name / "statistics"
    directory.mkdir(parents=True)
    for key, value in counters.items():
        (directory / key).write_text(value)
    return str(path)


def test_what_a_guest_sends_its_tap_receives(tmp_path: Path) -> None:
    counters = {"rx_bytes": "1\n", "rx_packets": "2\n", "tx_bytes": "3\n", "tx_packets": "4\n"}
    root = sysfs(tmp_path, "svt01", **counters)
    assert traffic("svt01", sysfs=root) == Traffic(
        in_bytes=3, in_packets=4, out_bytes=1, out_packets=2
    )


@pytest.mark.parametrize("name", ["../svt01", "svt01/..", "", ".", "..", "svt02", "a" * 16, "a\0"])
def test_what_is_no_interface_has_no_counters(tmp_path: Path, name: str) -> None:
    (tmp_path / "net").mkdir()
    counters = dict.fromkeys(("rx_bytes", "rx_packets", "tx_bytes", "tx_packets"), "1")
    for place in (tmp_path / "net", tmp_path):
        sysfs(place, "svt01", **counters)
    (tmp_path / "net/statistics").symlink_to(tmp_path / "svt01/statistics")
    (tmp_path / "net/brif").mkdir()
    root = str(tmp_path / "net")
    assert traffic(name, sysfs=root) is None
    assert ports(name, sysfs=root) is None


def test_counters_that_are_no_numbers(tmp_path: Path) -> None:
    counters = {"rx_bytes": "many", "rx_packets": "2", "tx_bytes": "3", "tx_packets": "4"}
    assert traffic("svt01", sysfs=sysfs(tmp_path, "svt01", **counters)) is None


def test_a_rate_is_of_two_counts_of_one_interface() -> None:
    assert NOW.since(BEFORE, 0.5) == Traffic(3_000, 6, 8_000_000, 4_000)
    assert BEFORE.since(NOW, 0.5) is None
    assert NOW.since(BEFORE, 0) is None


def test_the_ports_of_a_bridge(tmp_path: Path) -> None:
    for name in ("svt01", "eth0"):
        (tmp_path / "br0/brif" / name).mkdir(parents=True)
    assert ports("br0", sysfs=str(tmp_path)) == frozenset({"svt01", "eth0"})
    assert ports("br1", sysfs=str(tmp_path)) is None


# -- who is there ----------------------------------------------------------------------------------


def test_others_are_a_number_that_the_kernel_shows() -> None:
    there = frozenset({"svt01", "svt02", "svt03", "eth0"})
    assert seen(lease(tap()), ports=there).others == 2
    assert seen(ports=frozenset({"eth0"})).others == 0
    assert seen(ports=None).others is None
    assert seen(ports=None, of=network(up=False)).others == 0


def test_who_is_on_it_and_not_elsewhere() -> None:
    pci = PciGrant("pci0", "pci", (), "0000:03:00.0", "NIC", 1, (), "", "", "")
    leases = (
        lease(pci, tap("svt01"), tap("svt02", network="lab"), vm="one"),
        lease(tap("svt03", network="", bridge="default"), vm="two"),
        lease(tap("svt04"), vm="three", state="releasing"),
        lease(tap("svt05"), vm="four", state="a newer broker's"),
    )
    here = seen(*leases).interfaces
    assert [(each.lease.vm, each.tap.ifname) for each in here] == [
        ("one", "svt01"),
        ("four", "svt05"),
    ]
    bridge = network(type="bridge", mode="lan", bridge="default")
    assert [each.tap.ifname for each in seen(*leases, of=bridge).interfaces] == ["svt03"]


def test_who_shares_an_interface_of_the_host() -> None:
    wire = network("eth0", type="direct", mode="bridge,vepa", bridge="eth0", ipv4=(), ipv6=())
    leases = (
        lease(tap("svt01", network="", device="eth0", mode="vepa"), vm="one"),
        lease(tap("svt02", network="", bridge="eth0"), vm="two"),
        lease(tap("svt03", network="eth0"), vm="three"),
    )
    shown = seen(*leases, of=wire)
    assert [each.tap.ifname for each in shown.interfaces] == ["svt01"]
    head = lines(shown, WIDE)[:3]
    assert head[0].endswith("eth0: interface to the local network, bridge,vepa, up")
    assert head[1:] == ["  interface  eth0, MTU 1500", "  addresses  none of its own"]


def test_the_shape_for_programs() -> None:
    one = tap(dns="guest.default.internal")
    shown = plain(seen(lease(one), ports=frozenset({"svt01", "svt02"})))
    assert json.loads(json.dumps(shown)) == {
        "name": "default",
        "type": "network",
        "mode": "nat",
        "bridge": "svn_default",
        "up": True,
        "mtu": 1500,
        "ipv4": ["10.213.80.1/20", "10.9.0.1/24"],
        "ipv6": ["fd00::1/64"],
        "leases": 1,
        "others": 1,
        "interfaces": [
            {
                "vm": "guest",
                "uid": 1000,
                "user": "alice",
                "lease": "/org/sessionvirt/Broker1/lease/0123",
                "since": 1_700_000_000,
                "interface": "svt01",
                "mac": "52:54:00:00:00:01",
                "mtu": 1500,
                "ipv4": ["10.213.80.9"],
                "ipv6": ["fd00::9"],
                "dns": "guest.default.internal",
                "totals": {
                    "in_bytes": 2_500, "in_packets": 13, "out_bytes": 9_000_000,
                    "out_packets": 6_000,
                },
                "rates": {
                    "in_bytes": 3_000, "in_packets": 6, "out_bytes": 8_000_000,
                    "out_packets": 4_000,
                },
                "drops": {"mac": 3, "arp": 0, "dhcp": 1},
                "limit": None,
            }
        ],
    }  # fmt: skip
    unknown = json.dumps(plain(seen(lease(tap()), counted={})))
    assert '"totals": null, "rates": null' in unknown


def test_a_name_that_is_not_there_is_told_those_that_are() -> None:
    networks = [network(), network("br0", type="bridge"), network("a\nb\x1b[2J")]
    assert named(networks, "br0") == (networks[1],)
    with pytest.raises(NotFoundError) as caught:
        named(networks, "b\nr")
    assert "'b\\\\nr'" in caught.value.cause
    assert caught.value.evidence == "there are: default, br0, a\\nb\\x1b[2J"
    with pytest.raises(NotFoundError, match="there are none"):
        named([], "default")


# -- words -----------------------------------------------------------------------------------------


def test_a_wide_window_has_a_table() -> None:
    shown = lines(seen(lease(tap()), ports=frozenset({"svt01", "svt02"})), WIDE)
    assert shown[:4] == [
        "default: managed network, nat, up",
        "  bridge     svn_default, MTU 1500",
        "  addresses  10.213.80.1/20, 10.9.0.1/24, fd00::1/64",
        "  machines   1 interface, listed below; 1 interface of other users",
    ]
    head, row, identity = shown[4:]
    assert head.split() == ["VM", "USER", "SINCE", "IN", "OUT", "DROPPED"]
    assert row.endswith("3.0 kB/s 6 p/s  8.0 MB/s 4.0 kp/s  mac 3, dhcp 1")
    assert row.startswith("  guest  alice  2023-11-1")
    assert identity == "    svt01 52:54:00:00:00:01 10.213.80.9 fd00::9"
    assert head.index("DROPPED") == row.index("mac 3")


@pytest.mark.parametrize("width", [20, 40, 72])
def test_a_narrow_window_has_paragraphs_that_fit(width: int) -> None:
    shown = lines(seen(lease(tap(), vm="a machine with a name")), width)
    assert max(map(len, shown)) <= width
    text = " ".join(" ".join(shown).split())
    for words in ("a machine with a name (alice)", "out 8.0 MB/s", "mac 3, dhcp 1", "fd00::9"):
        assert words in text
    assert not any(line.lstrip().startswith("VM") for line in shown)


def test_what_is_not_known_is_not_made_up() -> None:
    down = network(type="bridge", mode="lan", bridge="br0", up=False, mtu=0, ipv4=(), ipv6=())
    assert lines(seen(of=down, ports=None), WIDE) == [
        "default: bridge of the local network, lan, down",
        "  bridge     there is none",
        "  addresses  none of its own",
        "  machines   none",
    ]
    (_, row, _) = lines(seen(lease(tap(), drops={"mac": 0}), counted={}), WIDE)[4:]
    assert row.split()[-3:] == ["-", "-", "0"]
    others = seen(ports=frozenset({"svt01", "svt02"}))
    assert lines(others, WIDE)[3].endswith("none of yours; 2 interfaces of other users")


HOSTILE: Final = st.text(
    st.sampled_from("ab \t\n\r\x1b[2J\x07\x85\x9b\u2028\u202e\u2066é\U0001f4a9\\"), max_size=12
)


@given(HOSTILE, st.integers(10, 200), st.integers(0, 2**64 - 1))
def test_nothing_that_the_bus_says_reaches_the_terminal(text: str, width: int, since: int) -> None:
    bad = network(text, type=text, mode=text, bridge=text, ipv4=(text,), ipv6=(text, text))
    grant = tap(text, mac=text, network=text, bridge=text, ipv4=(text,), ipv6=(text,))
    shown = seen(
        lease(grant, vm=text, drops={text: 1}, since=since),
        of=bad,
        user=lambda _uid: text,
    )
    found = lines(shown, width)
    assert len(shown.interfaces) == 1
    for line in found:
        assert line.splitlines() in ([line], [])
        assert one_line(line) == line
        assert "\x1b" not in line


@pytest.mark.parametrize("seconds", [0, 1_700_000_000, 2**63, 2**64 - 1])
def test_a_moment_that_is_none_is_a_number(seconds: int) -> None:
    assert moment(seconds)[:4].isdigit()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 B/s"),
        (999, "999 B/s"),
        (1_000, "1.0 kB/s"),
        (9_949, "9.9 kB/s"),
        (9_950, "10 kB/s"),
        (999_499, "999 kB/s"),
        (999_500, "1.0 MB/s"),
        (10**18, "1000000 TB/s"),
    ],
)
def test_a_rate_has_a_prefix(number: int, words: str) -> None:
    counted = {"svt01": (NOW, Traffic(number, 0, 0, 0))}
    assert f"  {words} 0 p/s" in lines(seen(lease(tap()), counted=counted), WIDE)[5]


def test_the_limit_in_force_is_with_its_interface() -> None:
    former, other = (
        BandwidthGrant(f"bandwidth{n}", "bandwidth", on, Rate(n), None)
        for n, on in ((1, "tap0"), (5, "tap4"))
    )
    newest = BandwidthGrant("bandwidth2", "bandwidth", "tap0", Rate(2000), Rate(500, 700))
    shown = seen(lease(tap(), former, newest, other))
    text = " ".join(" ".join(lines(shown, WIDE)).split())
    assert "limit: in 2 MB/s (16 Mbit/s); out 500 kB/s (4 Mbit/s), peak 700 kB/s" in text
    (interface,) = json.loads(json.dumps(plain(shown)))["interfaces"]
    assert interface["limit"] == {
        "inbound": {"average": 2000, "peak": 0, "burst": 0},
        "outbound": {"average": 500, "peak": 700, "burst": 0},
    }
    (interface,) = plain(seen(lease(tap(), other)))["interfaces"]  # type: ignore[misc]
    assert interface["limit"] is None


def test_drops_are_the_interfaces_own_where_the_broker_tells() -> None:
    own, none = tap(drops={"arp": 7, "ipv4": 0}), tap("svt02", id="tap1", drops={})
    shown = seen(lease(own, none))
    text = lines(shown, WIDE)
    assert [line.rpartition("  ")[2] for line in text if line.startswith("  guest")] == [
        "arp 7",
        "0",
    ]
    found: Any = plain(shown)["interfaces"]
    assert [one["drops"] for one in found] == [{"arp": 7, "ipv4": 0}, {}]

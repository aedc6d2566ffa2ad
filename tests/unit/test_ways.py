# SPDX-License-Identifier: LGPL-2.1-or-later
"""By which uplink a published port is asked and answers, and what doctor says of that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessionvirt.broker_data import LeaseInfo, PublishGrant, TapGrant
from sessionvirt.cli import waychecks
from sessionvirt.cli.waychecks import answer_command, way_checks
from sessionvirt.host.policyroutes import PolicyRule
from sessionvirt.host.ways import Uplink, uplinks

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[2] / "docs/firewall.rst"
ROUTES = """\
Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
eth0 00000000 0102A8C0 0003 0 0 100 00000000 0 0 0
eth0 0002A8C0 00000000 0001 0 0 100 00FFFFFF 0 0 0
ppp0 00000000 00000000 0001 0 0 600 00000000 0 0 0
ppp0 00000000 00000000 0001 0 0 700 00000000 0 0 0
* 00000000 00000000 0200 0 0 900 00000000 0 0 0
tun0 00000000 00000000 0001 0 0 0 00000080 0 0 0
"""
ZERO = "0" * 32
NEAR = "fe800000000000000000000000000001"
ROUTES6 = f"""\
{ZERO} 00 {ZERO} 00 {NEAR} 00000400 00000001 00000000 00450003     eth0
{ZERO} 00 {ZERO} 00 {ZERO} 00000400 00000001 00000000 00000001     ppp0
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo
"""


def test_uplinks_are_what_has_a_default_route(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(ROUTES)
    (tmp_path / "ipv6_route").write_text(ROUTES6)
    proc = str(tmp_path)
    assert uplinks(4, proc=proc) == [Uplink("eth0", 4, "192.168.2.1"), Uplink("ppp0", 4, "")]
    assert uplinks(6, proc=proc) == [Uplink("eth0", 6, "fe80::1"), Uplink("ppp0", 6, "")]


def lease(vm: str = "web", network: str = "lab", **fields: str) -> LeaseInfo:
    guest = ("10.0.0.2", "fd::2") if fields.get("version") == "both" else ("10.0.0.2",)
    tap = TapGrant("tap0", "tap", (), "svt0", 9, "52:54:00:00:00:01", 1500, network, "", guest, ())
    address = fields.get("address", "")
    port = PublishGrant("publish1", "publish", "tap0", "tcp", address, 8080, 80, 1, guest)
    return LeaseInfo("/l/x", vm, 1000, "held", 0, "yes", (tap, port), {}, 0)


ETH0, WLAN0 = Uplink("eth0", 4, "192.168.2.1"), Uplink("wlan0", 4, "192.168.3.1")
ETH6, WLAN6 = Uplink("eth0", 6, "fe80::2"), Uplink("wlan0", 6, "fe80::3")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A host's routing: its best uplink, all of them, and its marks with where they lead.

    With a VPN there is a rule for all that has not the first of these marks.
    """

    def be(
        best: str, *every: Uplink, bridge: str = "svn_lab", vpn: bool = False, **marks: str
    ) -> None:
        numbers = {int(key.removeprefix("mark")): where for key, where in marks.items()}
        rules = [
            PolicyRule(9, number, "", "", marked=True, inverted=vpn and not place, mark=number)
            for place, number in enumerate(numbers)
        ]

        def leaves_by(address: str, by: str, mark: int = 0) -> str:
            return numbers.get(mark, best) if by == bridge else ""

        fakes = {
            "uplinks": lambda version: [one for one in every if one.version == version],
            "leaves_by": leaves_by,
            "policy_rules": lambda version: rules,
            "interface_of": {"192.0.2.1": "eth0", "192.0.2.2": "wlan0"}.get,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(waychecks, name, fake)

    return be


@pytest.mark.parametrize(
    ("best", "every", "marks", "address"),
    [
        ("eth0", (ETH0,), {}, ""),  # one uplink
        ("", (ETH0, WLAN0), {}, ""),  # the kernel does not tell
        ("eth0", (ETH0, WLAN0), {}, "192.0.2.1"),
        ("eth0", (ETH0, WLAN0), {}, "127.0.0.1"),
        ("eth0", (ETH0, WLAN0), {"mark7": "wlan0"}, ""),
    ],
)
def test_where_every_answer_leaves_as_its_question_came_nothing_is_said(
    best: str,
    every: tuple[Uplink, ...],
    marks: dict[str, str],
    address: str,
    host: Callable[..., None],
) -> None:
    host(best, *every, **marks)
    assert way_checks([lease(address=address)]) == []


def test_the_uplink_and_the_machines_are_named_once(host: Callable[..., None]) -> None:
    host("eth0", ETH0, WLAN0, ETH6, WLAN6, mark200="eth0")
    machines = [lease("web"), lease("mail", address="192.0.2.2"), lease("web", version="both")]
    (check,) = way_checks(machines)
    assert (check.name, check.level.value) == ("published-ports", "warning")
    assert check.found == (
        "web, mail: a connection to a published port that comes in by wlan0, from beyond the "
        "network there, is answered by eth0"
    )
    command, _, opens = check.advice.partition("   (")
    assert command == answer_command([WLAN0, WLAN6], 201)  # 200 is somebody's
    assert "ip -6 route add default via fe80::3 dev wlan0 table 201" in command
    assert opens.endswith("mark and table 201 must be nobody else's)")


def test_each_uplink_has_a_number_of_its_own(host: Callable[..., None]) -> None:
    """With a VPN no uplink answers for itself, but its own packets leave by the best."""
    host("wg0", ETH0, WLAN0, vpn=True, mark51820="eth0")
    eth0, wlan0 = way_checks([lease()])
    assert eth0.advice.startswith(answer_command([ETH0], 200))
    assert wlan0.advice.startswith(answer_command([WLAN0], 201))
    host("wg0", ETH0, WLAN0, vpn=True, mark51820="eth0", mark200="eth0")
    (wlan0,) = way_checks([lease()])
    assert " comes in by wlan0, " in wlan0.found


def test_a_private_network_is_on_its_users_bridge(host: Callable[..., None]) -> None:
    host("eth0", ETH0, WLAN0, bridge="svn_u1000")
    assert way_checks([lease()]) == []
    assert len(way_checks([lease(network="private")])) == 1


def test_an_uplink_without_a_gateway_has_none_in_the_command() -> None:
    command = answer_command([Uplink("ppp0", 4, "")], 200)
    assert command.startswith("ip route add default dev ppp0 table 200 && ")


@pytest.mark.parametrize("name", ["a;sh<b", "$(sh<b)", "`sh`", "a'b", '"}', "eth*", "-6", "é"])
def test_no_command_has_a_name_that_a_shell_or_nft_reads(
    name: str, host: Callable[..., None]
) -> None:
    host("eth0", ETH0, Uplink(name, 4, "192.0.2.9"))
    (check,) = way_checks([lease()])
    assert name in check.found
    assert (name in check.advice, " && " in check.advice) == (False, False)


def test_the_page_has_the_same_command() -> None:
    """Which the kernel tier carries out."""
    found = re.search(r"^    ip route add default .*?200'$", PAGE.read_text(), re.M | re.S)
    assert found is not None
    lines = re.split(r"\n +(?=ip |nft )", found[0].strip())
    assert " && ".join(" ".join(line.split()) for line in lines) == answer_command([WLAN0], 200)

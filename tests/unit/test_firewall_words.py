# SPDX-License-Identifier: LGPL-2.1-or-later
"""What stops a machine's packets, in words; and what everybody can see of the host's firewalls."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from sessionvirt.broker_data import Obstacle
from sessionvirt.cli.checks import Level
from sessionvirt.cli.firewallchecks import host_checks, mend, obstacle_checks, owner
from sessionvirt.host import firewalls
from sessionvirt.host.firewalls import Presence
from sessionvirt.host.policyroutes import PolicyRule, catching, parse, policy_rules

if TYPE_CHECKING:
    from pathlib import Path

    from sessionvirt.broker_data import Diagnosis

pytestmark = pytest.mark.unit

ALONE = Presence(docker=False, ufw=False, firewalld=False)
DOCKER = Presence(docker=True, ufw=False, firewalld=False)
BOTH = Presence(docker=True, ufw=True, firewalld=False)


def obstacle(
    traffic: str = "out",
    place: str = "ip filter FORWARD",
    handle: int = 0,
    *,
    bridge: str = "svn_default",
    hook: str = "forward",
    certainty: str = "certain",
) -> Obstacle:
    family, table, chain = place.split()
    return Obstacle(
        "/lease", "web", bridge, traffic, 4, family, table, chain, handle, hook, 0, "drop",
        certainty,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("place", "there", "whose"),
    [
        ("ip filter FORWARD", ALONE, "an administrator's"),
        ("ip filter FORWARD", DOCKER, "Docker's"),
        ("ip filter FORWARD", BOTH, "ufw's"),
        ("ip filter INPUT", DOCKER, "an administrator's"),
        ("ip filter DOCKER", ALONE, "Docker's"),
        ("ip docker-bridges filter-FORWARD", ALONE, "Docker's"),
        ("ip6 filter ufw6-before-forward", ALONE, "ufw's"),
        ("inet firewalld filter_FORWARD", ALONE, "firewalld's"),
        ("ip libvirt_network guest_input", ALONE, "libvirt's"),
        ("ip filter LIBVIRT_FWI", ALONE, "libvirt's"),
        ("inet mullvad forward", ALONE, "a VPN's"),
        ("ip filter ts-forward", ALONE, "a VPN's"),
        ("inet filter forward", DOCKER, "an administrator's"),
    ],
)
def test_whose_a_rule_is(place: str, there: Presence, whose: str) -> None:
    assert owner(obstacle(place=place), there) == whose


def test_a_policy_that_stops_both_ways_is_one_line_with_one_command() -> None:
    (check,) = obstacle_checks([obstacle(), obstacle("in")], DOCKER)
    assert (check.name, check.level) == ("firewall-rules", Level.PROBLEM)
    assert check.found == (
        "web on svn_default: the policy of chain FORWARD of table ip filter (hook forward), "
        "Docker's, drops what it sends outside and the answers to what it sends outside"
    )
    assert check.advice == (
        "iptables -I DOCKER-USER -i svn_default -j ACCEPT && iptables -I DOCKER-USER -o svn_default"
        " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT   (machines on svn_default may send"
        " to anybody by this host, and get the answers)"
    )


def test_what_is_likely_is_a_warning_and_what_is_possible_is_only_told() -> None:
    likely, possible = obstacle(certainty="likely"), obstacle(handle=7, certainty="possible")
    first, second = obstacle_checks([likely, possible], BOTH)
    assert first.level is Level.WARNING
    assert "most likely drops" in first.found
    assert first.advice.startswith("ufw route allow in on svn_default ")
    assert second.level is Level.OK
    assert "rule 7 in chain FORWARD of table ip filter" in second.found
    (nothing,) = obstacle_checks([], ALONE)
    assert (nothing.level, nothing.advice) == (Level.OK, "")


@pytest.mark.parametrize(
    ("found", "there", "command"),
    [
        (obstacle("dhcp", "ip filter INPUT", hook="input"), BOTH, "ufw allow in on svn_default"),
        (obstacle("out", "inet firewalld f"), ALONE,
         "firewall-cmd --zone=sessionvirt --change-interface=svn_default"),
        (obstacle("out", bridge="br0"), DOCKER,
         "ip link set dev br0 type bridge nf_call_iptables 0 nf_call_ip6tables 0"),
        (obstacle("out", "inet filter f", 9), ALONE,
         "nft 'insert rule inet filter f iifname \"svn_default\" accept'"),
        (obstacle("in", "inet filter f", 9), ALONE,
         ("nft 'insert rule inet filter f oifname \"svn_default\" ct state established,related"
         " accept'")),
        (obstacle("dns", "inet filter f", hook="input"), ALONE,
         "nft 'insert rule inet filter f iifname \"svn_default\" udp dport { 53, 67 } accept'"),
        (obstacle("dns", "inet filter f", hook="output"), ALONE,
         "nft 'insert rule inet filter f oifname \"svn_default\" accept'"),
    ],
)  # fmt: skip
def test_the_command_is_as_its_program_wants_it(
    found: Obstacle, there: Presence, command: str
) -> None:
    assert mend(found, {found.traffic}, there).command == command


def test_programs_are_known_by_what_they_leave(tmp_path: Path) -> None:
    assert firewalls.presence(str(tmp_path)) == ALONE
    for name, text in (
        ("etc/ufw/ufw.conf", "ENABLED=yes\n"),
        ("run/docker.sock", ""),
        ("proc/12/comm", "firewalld\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert firewalls.presence(str(tmp_path)) == Presence(docker=True, ufw=True, firewalld=True)
    (tmp_path / "etc/ufw/ufw.conf").write_text("ENABLED=no\n")
    assert not firewalls.presence(str(tmp_path)).ufw


ROUTES = """\
Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
eth0 00000000 0102A8C0 0003 0 0 100 00000000 0 0 0
eth0 0002A8C0 00000000 0001 0 0 100 00FFFFFF 0 0 0
wlan0 00000000 0103A8C0 0003 0 0 600 00000000 0 0 0
"""


def test_strict_filtering_matters_with_several_uplinks(tmp_path: Path) -> None:
    for name, text in (
        ("proc/net/route", ROUTES),
        ("proc/sys/net/ipv4/conf/all/rp_filter", "0\n"),
        ("proc/sys/net/ipv4/conf/eth0/rp_filter", "1\n"),
        ("proc/sys/net/ipv4/conf/wlan0/rp_filter", "2\n"),
        ("proc/sys/net/ipv4/conf/eth0/forwarding", "0\n"),
        ("proc/sys/net/ipv4/conf/wlan0/forwarding", "1\n"),
        ("proc/sys/net/bridge/bridge-nf-call-iptables", "1\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    root = str(tmp_path)
    assert firewalls.uplinks(root) == ("eth0", "wlan0")
    assert firewalls.strict_uplinks(root) == ("eth0",)
    assert firewalls.not_forwarding(("eth0", "wlan0", "none"), root) == ("eth0",)
    assert firewalls.bridge_calls(root) == ("bridge-nf-call-iptables",)
    (tmp_path / "proc/sys/net/ipv4/conf/all/rp_filter").write_text("2\n")
    assert firewalls.strict_uplinks(root) == ()
    (tmp_path / "proc/net/route").write_text(ROUTES.rpartition("wlan0")[0])
    assert firewalls.strict_uplinks(root) == ()


def test_an_interfaces_name_is_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes nearly any, and root runs what doctor says."""
    monkeypatch.setattr(firewalls, "strict_uplinks", lambda: ("a;reboot", "eth0.5"))
    facts = cast("Diagnosis", SimpleNamespace(legacy_tables=()))
    (said,) = host_checks(facts, (), ALONE)
    assert said.advice.startswith(
        "sysctl 'net.ipv4.conf.a;reboot.rp_filter=2'; sysctl net.ipv4.conf.eth0/5.rp_filter=2   ("
    )


def rule(priority: int, table: int, *attributes: tuple[int, bytes], source: int = 0) -> bytes:
    body = struct.pack("=BBBBBBBBI", 2, 0, source, 0, min(table, 252), 0, 0, 1, 0)
    every = [(6, struct.pack("=I", priority)), (15, struct.pack("=I", table)), *attributes]
    for number, value in every:
        body += struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), 32, 0, 1, 0) + body


def test_rules_that_lead_elsewhere_are_found() -> None:
    data = (
        rule(0, 255)
        + rule(32764, 254, (14, struct.pack("=I", 0)))
        + rule(100, 51820, (10, struct.pack("=I", 51820)))
        + rule(200, 52, (2, b"\x0a\xd5\x50\x00"), source=20)
        + rule(300, 53, (3, b"eth1\0"))
        + rule(32766, 254)
    )
    found = parse(data)
    assert found == [
        PolicyRule(100, 51820, "", "", marked=True, inverted=False, mark=51820),
        PolicyRule(200, 52, "10.213.80.0/20", "", marked=False, inverted=False),
        PolicyRule(300, 53, "", "eth1", marked=False, inverted=False),
    ]
    assert catching(found, "10.213.80.7", "svn_default") == found[:2]
    assert catching(found, "192.0.2.7", "eth1") == [found[0], found[2]]
    assert parse(data[:-3])[:2] == found[:2]
    assert parse(b"\1\0\0\0" + bytes(12)) == []
    assert all(isinstance(one, PolicyRule) for one in policy_rules(4))

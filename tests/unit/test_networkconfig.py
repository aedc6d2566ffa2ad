# SPDX-License-Identifier: LGPL-2.1-or-later
"""``[network.NAME]`` of broker.toml: what is taken, what is refused and where, and that nothing of
it can be more than one value in dnsmasq's file.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionvirt_broker.config import _Reader
from sessionvirt_broker.dnsmasq import NetworkFiles
from sessionvirt_broker.dnsmasqfile import configuration
from sessionvirt_broker.errors import Busy, ConfigurationError
from sessionvirt_broker.kinds import STEPS
from sessionvirt_broker.networkconfig import Network, network_of
from sessionvirt_broker.private import PrivatePolicy, private_network
from sessionvirt_broker.steps import decode

if TYPE_CHECKING:
    from sessionvirt_broker.networkconfig import Prefix
    from sessionvirt_broker.wire import NetworkName

pytestmark = pytest.mark.unit

GOOD = """\
[network.lab]
mode = "route"
ipv4 = ["10.1.0.1/24", "10.2.0.1/24"]
ipv6 = ["fd00:1::1/64", "2001:db8:7::1/64"]
mtu = 9000
domain = "lab.example"
autostart = true
[network.lab.dhcp_options]
42 = "10.1.0.1,10.1.0.2"
3 = ""
[network.lab.host.web]
mac = "52:54:00:AA:bb:cc"
ipv4 = "10.2.0.9"
ipv6 = "fd00:1::9"
[network.lab.host.bare]
mac = "5a:00:00:00:00:01"
[network.lab.dns]
printer = "192.168.1.9"
"_sip.lab.example" = ["10.1.0.8", "fd00:1::8"]
"""


def read(text: str) -> dict[NetworkName, Network]:
    reader = _Reader(Path("broker.toml"), text)
    return dict(reader.configuration(tomllib.loads(text)).networks)


def as_file(network: Network, *, ipv6_out: bool = True) -> list[str]:
    return configuration(Path("/run/x"), network, ipv6_out=ipv6_out).splitlines()


def test_everything_arrives_at_dnsmasq() -> None:
    (network,) = read(GOOD).values()
    lines = as_file(network)
    for wanted in (
        "domain=lab.example",
        "local=/lab.example/",
        "host-record=web.lab.example,web,10.2.0.9",
        "host-record=web.lab.example,web,fd00:1::9",
        "host-record=printer.lab.example,printer,192.168.1.9",
        "host-record=_sip.lab.example,10.1.0.8",
        "dhcp-option=42,10.1.0.1,10.1.0.2",
        "dhcp-option=3",
        "dhcp-option=option:mtu,9000",
        "dhcp-range=set:r0,10.1.0.0,static,255.255.255.0,1h",
        "dhcp-range=set:r1,10.2.0.0,static,255.255.255.0,1h",
        "dhcp-range=2001:db8:7::,static,64,1h",
        "ra-param=svn_lab,60,1800",
    ):
        assert wanted in lines
    assert "ra-param=svn_lab,60,0" in as_file(network, ipv6_out=False)


def test_a_network_is_the_same_again_from_the_journal() -> None:
    (network,) = read(GOOD).values()
    step = NetworkFiles.of(network, ipv6_out=True)
    again = decode(step.encode() | {"options": list(step.options)} | plain(step), STEPS)
    assert again == step
    assert isinstance(again, NetworkFiles)
    assert again.network() == network


def plain(step: NetworkFiles) -> dict[str, object]:
    """As JSON gives it back: tuples are lists."""
    encoded = step.encode().items()
    return {key: list(value) if isinstance(value, tuple) else value for key, value in encoded}


def test_a_record_of_the_last_edition_is_read() -> None:
    former = {
        "step": "network-files",
        "bridge": "svn_default",
        "ipv4": "10.213.80.1/20",
        "ipv6": "",
        "mtu": 1500,
    }
    step = decode(former, STEPS)
    assert isinstance(step, NetworkFiles)
    assert (step.ipv4, step.ipv6, step.mode) == (("10.213.80.1/20",), (), "nat")
    assert [str(one) for one in step.network().ipv4] == ["10.213.80.1/20"]
    with pytest.raises(ValueError, match="mtu"):
        decode({key: value for key, value in former.items() if key != "mtu"}, STEPS)


@pytest.mark.parametrize(
    ("lines", "line", "reason"),
    [
        ("", 1, "needs ipv4 or ipv6"),
        ("ipv4 = []", 1, "needs ipv4 or ipv6"),
        ('mode = "bridge"', 2, 'one of "nat", "route", "isolated", "open"'),
        ("ipv4 = 4", 2, "a string, or a list"),
        ('ipv4 = ["10.1.0.1"]', 2, "prefix length"),
        ('ipv4 = "10.1.0.0/24"', 2, "gateway's own"),
        ('ipv4 = "10.1.0.1/30"', 2, "from 12 to 29"),
        ('ipv4 = "127.0.0.1/24"', 2, "loopback"),
        ('ipv4 = "240.0.0.1/24"', 2, r"240\.0\.0\.0/4"),
        ('ipv4 = "0.1.0.1/24"', 2, r"0\.0\.0\.0/8"),
        ('ipv4 = ["10.1.0.1/24", "10.1.0.129/25"]', 2, "overlaps another range of this"),
        ('ipv6 = "fd00::1/56"', 2, "prefix length 64"),
        ('ipv6 = "fe80::1/64"', 2, "unique local"),
        ('ipv6 = "2001:db8::1/64"', 2, 'mode = "route"'),
        ('ipv4 = "10.1.0.1/24"\nnat6 = true', 3, "with an ipv6 range"),
        ('ipv6 = "fd00::1/64"\nmode = "route"\nnat6 = true', 4, 'mode "nat"'),
        ('ipv6 = "fd00::1/64"\nnat6 = 1', 3, "true or false"),
        ('ipv4 = "10.1.0.1/24"\ndomain = "a b"', 3, "domain"),
        ('ipv4 = "10.1.0.1/24"\ndomain = "A"', 3, "domain"),
        ('ipv4 = "10.1.0.1/24"\ndomain = "a..b"', 3, "domain"),
        ('ipv4 = "10.1.0.1/24"\nautostart = "yes"', 3, "true or false"),
        ('ipv4 = "10.1.0.1/24"\nforward = "nat"', 3, "not known"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.51 = "1"', 3, "administrator's to set"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.256 = "1"', 3, "administrator's to set"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.router = "1"', 3, "administrator's to set"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.66 = "a b"', 3, "at most 200"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.66 = "a\\ndhcp-script=x"', 3, "at most 200"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.66 = 7', 3, "at most 200"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.3 = "foo"', 3, "must be IPv4 addresses"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.42 = "10.1.0.1,"', 3, "must be IPv4 addresses"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.6 = "fe80::1"', 3, "must be IPv4 addresses"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.33 = "10.2.0.0"', 3, "pairs"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.19 = "yes"', 3, "from 0 to 255"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.22 = "65536"', 3, "from 0 to 65535"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.2 = "4294967296"', 3, "from 0 to 4294967295"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.121 = "10.2.0.0/33,10.1.0.1"', 3, "routes"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.224 = "1,2"', 3, "one number"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.224 = "10.0.0.300"', 3, "one number"),
        ('ipv4 = "10.1.0.1/24"\ndhcp_options.43 = "1"', 3, "hexadecimal"),
        ('ipv4 = "10.1.0.1/24"\ndns.a = "x"', 3, "an address"),
        ('ipv4 = "10.1.0.1/24"\ndns.a = "fe80::1%eth0"', 3, "an address"),
        ('ipv4 = "10.1.0.1/24"\n[network.lab.dns]\n"a,b" = "10.1.0.2"', 4, "a name of"),
    ],
)
def test_what_is_refused_and_where(lines: str, line: int, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as refusal:
        read(f"[network.lab]\n{lines}\n")
    assert f"broker.toml:{line}: " in str(refusal.value)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ('[network.lab.host.a]\nipv4 = "10.1.0.2"', "mac"),
        ('[network.lab.host.a]\nmac = "53:54:00:00:00:01"', "guest's MAC"),
        ('[network.lab.host.a]\nmac = "fe:54:00:00:00:01"', "guest's MAC"),
        ('[network.lab.host.a]\nmac = "52:54:00:00:00:01"\nname = "a"', "not known"),
        ('[network.lab.host.a]\nmac = "52:54:00:00:00:01"\nipv4 = "10.2.0.2"', "in no range"),
        ('[network.lab.host.a]\nmac = "52:54:00:00:00:01"\nipv4 = "10.1.0.1"', "the gateway's"),
        ('[network.lab.host.a]\nmac = "52:54:00:00:00:01"\nipv4 = "10.1.0.255"', "first or last"),
        ('[network.lab.host.a]\nmac = "52:54:00:00:00:01"\nipv6 = "fd00::"', "first or last"),
        ('[network.lab.host.A]\nmac = "52:54:00:00:00:01"', "lower-case"),
        (
            """[network.lab.host.a]\nmac = "52:54:00:00:00:01"
               [network.lab.host.b]\nmac = "52:54:00:00:00:01" """,
            "another host's",
        ),
        (
            '[network.lab.host.a]\nmac = "52:54:00:00:00:01"\n[network.lab.dns]\na = "10.1.0.9"',
            "host of this network",
        ),
    ],
)
def test_static_hosts_that_are_refused(host: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        read(f'[network.lab]\nipv4 = "10.1.0.1/24"\nipv6 = "fd00::1/64"\n{host}\n')


def test_so_many_networks_are_possible_and_no_more() -> None:
    tables = [f'[network.n{n}]\nipv4 = "10.{n // 128}.{n % 128}.1/24"\n' for n in range(257)]
    assert len(read("".join(tables[:256]))) == 256
    with pytest.raises(ConfigurationError, match=r"toml:513: .*257 networks, and at most 256"):
        read("".join(tables))


@pytest.mark.parametrize("name", ["private", "u0", "u1000", "toolonganame", "A"])
def test_names_that_are_not_an_administrators(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"broker\.toml:1: "):
        read(f'[network.{name}]\nipv4 = "10.1.0.1/24"\n')


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ('ipv4 = "10.1.0.1/16"', 'ipv4 = ["10.7.0.1/24", "10.1.2.1/24"]'),
        ('ipv6 = "fd00::1/64"', 'ipv6 = ["fd00:1::1/64", "fd00::2/64"]'),
    ],
)
def test_networks_that_overlap_are_named(one: str, two: str) -> None:
    with pytest.raises(ConfigurationError, match=r"overlaps \S+ of one") as refusal:
        read(f"[network.one]\n{one}\n[network.two]\n{two}\n")
    assert "broker.toml:4: 'network.two.ipv" in str(refusal.value)


def test_a_bridge_tells_its_network() -> None:
    assert network_of("svn_lab") == "lab"
    assert network_of("svn_u4294967295") == "private"
    assert len("svn_u4294967295") == 15  # IFNAMSIZ - 1


@pytest.mark.parametrize(
    ("lines", "line", "reason"),
    [
        ("enabled = 0", 2, "true or false"),
        ('ipv4 = "10.214.0.1/16"', 2, "a prefix"),
        ("ipv4 = 10", 2, "a prefix"),
        ('ipv4 = "10.214.0.0/24"', 2, "from 8 to 16"),
        ('ipv4 = "192.0.0.0/8"', 2, "192.168.0.0/16"),
        ('ipv4 = "127.0.0.0/8"', 2, "192.168.0.0/16"),
        ("pool = 1", 2, "not known"),
    ],
)
def test_private_networks_that_are_refused(lines: str, line: int, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as refusal:
        read(f"[private]\n{lines}\n")
    assert f"broker.toml:{line}: " in str(refusal.value)


def test_private_networks_are_apart_and_pass_over_what_is_taken() -> None:
    policy = PrivatePolicy()
    up: list[Prefix] = [ipaddress.ip_network("10.214.0.0/18"), ipaddress.ip_network("fd00::/8")]
    for uid in (0, 1000, 4294967295, *range(2000, 2000 + 189)):
        network = private_network(policy, uid, "machine", up)
        (four,), (six,) = network.ipv4, network.ipv6
        assert four.network.subnet_of(policy.pool)
        assert four.ip - 1 == four.network.network_address
        assert six.network.subnet_of(ipaddress.IPv6Network("fd00::/8"))
        assert not any(four.network.overlaps(one) for one in up if one.version == 4)
        assert network.bridge == f"svn_u{uid}"
        assert network_of(network.bridge) == network.name == "private"
        up.append(four.network)
    with pytest.raises(Busy, match="no room"):
        private_network(policy, 1, "machine", up)
    alone = private_network(policy, 1000, "machine", [])
    assert private_network(policy, 1000, "machine", []) == alone
    assert private_network(policy, 1000, "other", []).ipv6 != alone.ipv6


words = st.text(alphabet='abz09-_.:/@+,#"\\ \n\r=%é', max_size=12)


@given(words, words, words, words, st.integers(-1, 300))
def test_no_text_is_more_than_one_value(
    domain: str, label: str, name: str, text: str, option: int
) -> None:
    table: dict[str, object] = {
        "network": {
            "lab": {
                "ipv4": "10.1.0.1/24",
                "domain": domain,
                "dhcp_options": {str(option): text},
                "host": {label: {"mac": "52:54:00:00:00:01", "ipv4": "10.1.0.2"}},
                "dns": {name: "10.1.0.3"},
            }
        }
    }
    try:
        (network,) = _Reader(Path("x"), "").configuration(table).networks.values()
    except ConfigurationError:
        return
    plain_line = re.compile(r"[a-z0-9-]+(?:=[A-Za-z0-9._:/@+,-]*)?")
    lines = as_file(network)
    assert [line for line in lines if not plain_line.fullmatch(line)] == []
    known = {"domain", "local", "host-record", "dhcp-option"}
    usual = as_file(Network(network.name, network.ipv4))
    assert {line.partition("=")[0] for line in set(lines) - set(usual)} <= known

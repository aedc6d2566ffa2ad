# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's network XML to broker.toml and back: nothing is lost in silence or breaks TOML."""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionvirt.broker_data import NetworkInfo
from sessionvirt.cli import networkfiles
from sessionvirt.errors import BrokerUnavailableError, DefinitionError, NotFoundError, UsageError
from sessionvirt.model.network import (
    MOST_ENTRIES,
    MOST_RANGES,
    Host,
    Mode,
    Network,
    bridge_toml,
    label_of,
    mapped_name,
    option_problem,
    to_toml,
)
from sessionvirt.model.networkadvice import DIFFERENT, INSTEAD, UNDERSTOOD
from sessionvirt.model.networkxml import parse_network
from sessionvirt_broker.config import _Reader
from sessionvirt_broker.wire import is_interface_name, is_network_name

pytestmark = pytest.mark.unit

IP4: Final = "<ip address='192.168.122.1' netmask='255.255.255.0'><dhcp/></ip>"
IP6: Final = "<ip family='ipv6' address='fd00:1:2:3::1' prefix='64'><dhcp/></ip>"


def document(inside: str, *, name: str = "lab", attributes: str = "") -> str:
    return f"<network {attributes}>\n<name>{name}</name>\n{inside}\n</network>"


def imported(text: str) -> dict[str, Any]:
    """What TOML makes of the whole text that is printed for a document; the broker takes it."""
    said = printed(text)
    found = tomllib.loads(said)
    _Reader(Path("broker.toml"), said).configuration(found)
    return found


def printed(text: str) -> str:
    return networkfiles._text(parse_network(text, file="net.xml"), "net.xml")


def table(text: str) -> dict[str, Any]:
    """The table of the network, which is the only one."""
    ((kind, networks),) = imported(text).items()
    ((_, body),) = networks.items()
    assert kind == "network"
    assert isinstance(body, dict)
    return body


def remarks(text: str, *, left_out: bool) -> dict[str, str]:
    found = parse_network(text).remarks
    return {one.path: one.text for one in found if one.left_out is left_out}


# -- what libvirt's users have ---------------------------------------------------------------------


def test_the_network_that_libvirt_brings() -> None:
    text = """<network>
      <name>default</name>
      <uuid>0f3d6b9e-4a0f-4c53-9d3b-6f1f4a2b7c11</uuid>
      <forward mode='nat'/>
      <bridge name='virbr0' stp='on' delay='0'/>
      <mac address='52:54:00:d5:1a:07'/>
      <ip address='192.168.122.1' netmask='255.255.255.0'>
        <dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp>
      </ip>
    </network>"""
    assert imported(text) == {"network": {"default": {"mode": "nat", "ipv4": "192.168.122.1/24"}}}
    assert set(remarks(text, left_out=True)) == {
        "/network/uuid", "/network/mac", "/network/bridge/@stp", "/network/bridge/@delay",
    }  # fmt: skip
    assert remarks(text, left_out=False) == {
        "/network/bridge/@name": "the bridge is called svn_default",
        "/network/ip/dhcp/range": "guests get addresses of the whole range of the network",
    }
    # The broker takes the text as it is; who else is in its file is not said of this one.
    (network,) = (
        _Reader(Path("broker.toml"), printed(text)).configuration(imported(text)).networks.values()
    )
    assert (network.name, network.bridge, network.mode) == ("default", "svn_default", "nat")
    assert "unless it is written out" not in printed(text)


def test_a_routed_network_that_is_bound_to_an_interface() -> None:
    text = document(
        "<forward dev='eth1' mode='route'><interface dev='eth1'/></forward>"
        "<ip family='ipv4' address='203.0.113.1' prefix='26'/>"
        "<ip family='ipv6' address='2001:db8:ca2:2::1' prefix='64'/>"
        "<route family='ipv6' address='2001:db8:ca2:3::' prefix='64' gateway='2001:db8:ca2:2::2'/>"
    )
    assert table(text) == {
        "mode": "route",
        "ipv4": "203.0.113.1/26",
        "ipv6": "2001:db8:ca2:2::1/64",
    }
    assert set(remarks(text, left_out=True)) == {
        "/network/forward/@dev", "/network/forward/interface", "/network/route",
    }  # fmt: skip
    assert "by DHCP" in remarks(text, left_out=False)["/network/ip"]


def test_an_isolated_network_has_no_forward() -> None:
    assert table(document(IP4)) == {"mode": "isolated", "ipv4": "192.168.122.1/24"}
    assert table(document(f"<forward mode='open'/>{IP4}"))["mode"] == "open"
    assert table(document(f"<forward/>{IP4}"))["mode"] == "nat"


def test_ipv6_behind_nat_and_without() -> None:
    with_nat = document(f"<forward mode='nat'><nat ipv6='yes'/></forward>{IP4}{IP6}")
    body = {"mode": "nat", "ipv4": "192.168.122.1/24", "ipv6": "fd00:1:2:3::1/64"}
    assert table(with_nat) == {**body, "nat6": True}
    assert remarks(with_nat, left_out=False) == {}
    without = document(f"<forward mode='nat'/>{IP4}{IP6}")
    assert table(without) == body
    assert remarks(without, left_out=False)["/network/forward"] == DIFFERENT["nat/ipv6"]
    nothing = document(f"<forward mode='nat'><nat ipv6='yes'/></forward>{IP4}")
    assert "nat6" not in table(nothing)
    assert "/network/forward/nat/@ipv6" in remarks(nothing, left_out=True)


def test_several_ranges() -> None:
    text = document(IP4 + "<ip address='10.0.0.1' prefix='16'><dhcp/></ip>" + IP6)
    assert table(text)["ipv4"] == ["192.168.122.1/24", "10.0.0.1/16"]


def test_static_hosts_with_both_families_and_one_name() -> None:
    text = document(
        "<domain name='lab.example'/>"
        "<ip address='10.1.0.1' prefix='24'><dhcp>"
        "<host mac='52:54:00:AA:00:01' name='Web.lab.example' ip='10.1.0.10'/>"
        "<host mac='52:54:00:aa:00:02' ip='10.1.0.11'/>"
        "<host name='nameless' ip='10.1.0.12'/>"
        "</dhcp></ip>"
        "<ip family='ipv6' address='fd00::1' prefix='64'><dhcp>"
        "<host id='0:4:7e' name='web' ip='fd00::10'/>"
        "<host id='0:4:7f' name='other' ip='fd00::11'/>"
        "</dhcp></ip>"
    )
    body = table(text)
    assert body["domain"] == "lab.example"
    assert body["host"] == {
        "web": {"mac": "52:54:00:aa:00:01", "ipv4": "10.1.0.10", "ipv6": "fd00::10"},
        "host-525400aa0002": {"mac": "52:54:00:aa:00:02", "ipv4": "10.1.0.11"},
    }
    told = printed(text)
    for word in ("nameless: without mac=", "other: without mac=", "Web.lab.example is called web"):
        assert word in told


def test_names_in_dns() -> None:
    text = document(
        f"{IP4}<dns forwardPlainNames='no'><forwarder domain='example.com' addr='192.0.2.53'/>"
        "<txt name='a' value='b'/><srv service='x' protocol='tcp'/>"
        "<host ip='192.168.122.9'><hostname>Gate</hostname><hostname>www.example.com</hostname>"
        "</host><host ip='fd00::9'><hostname>gate</hostname></host>"
        "<host ip='192.168.122.8'><hostname>_x._tcp</hostname><hostname>two words</hostname></host>"
        "</dns>"
    )
    assert table(text)["dns"] == {
        "gate": ["192.168.122.9", "fd00::9"],
        "www.example.com": "192.168.122.9",
        "_x._tcp": "192.168.122.8",
    }
    assert set(remarks(text, left_out=True)) == {
        "/network/dns/@forwardPlainNames", "/network/dns/forwarder", "/network/dns/txt",
        "/network/dns/srv", "/network/dns/host/hostname",
    }  # fmt: skip


def test_options_of_dhcp_that_have_a_number() -> None:
    lines = (
        "dhcp-option=42,192.0.2.1", "dhcp-option=42,192.0.2.2", "dhcp-option=option:ntp-server,1",
        "dhcp-option=51,60", "dhcp-option=6,a#b", "cname=a,b", "dhcp-option=252",
    )  # fmt: skip
    inside = "".join(f"<d:option value='{line}'/>" for line in lines)
    namespace = "xmlns:d='http://libvirt.org/schemas/network/dnsmasq/1.0'"
    text = document(f"{IP4}<d:options>{inside}</d:options>", attributes=namespace)
    assert table(text)["dhcp_options"] == {"42": "192.0.2.1", "252": ""}
    left = [one.text for one in parse_network(text).remarks if one.left_out]
    assert [line.partition(": ")[0] for line in left] == list(lines[1:6])


def test_a_bridge_of_the_local_network() -> None:
    text = document("<forward mode='bridge'/><bridge name='br0.1'/><vlan><tag id='4'/></vlan>")
    assert imported(text) == {"bridge": {"br0.1": {}}}
    assert "<source bridge='br0.1'/>" in remarks(text, left_out=False)["/network/forward/@mode"]
    assert "/network/vlan" in remarks(text, left_out=True)


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa", "passthrough"])
def test_an_interface_of_the_host(mode: str) -> None:
    text = document(f"<forward mode='{mode}'><interface dev='eth0'/></forward><mtu size='9000'/>")
    assert imported(text) == {}
    left = remarks(text, left_out=True)
    assert f"mode='{mode}'" in left["/network/forward/@mode"]
    assert "/network/mtu" in left
    assert "There is nothing to install" in printed(text)


def test_virtual_functions_are_devices() -> None:
    text = document("<forward mode='hostdev' managed='yes'><pf dev='eth3'/></forward>")
    assert imported(text) == {}
    assert "sessionvirt devices" in remarks(text, left_out=True)["/network/forward/@mode"]


# -- what is left out, or refused ------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in INSTEAD if path.startswith("network")])
def test_what_has_no_counterpart_is_named_with_what_to_do(path: str) -> None:
    """Each path of the table, in the place that it names."""
    *steps, last = path.split("/")[1:]
    attribute = last.startswith("@")
    tags = steps if attribute else [*steps, last]
    text, tail = "", ""
    for depth, tag in enumerate(tags):
        more = f" {last[1:]}='x'" if attribute and depth == len(tags) - 1 else ""
        if tag == "ip":
            more += " address='10.1.0.1' prefix='24'"
        elif tag == "host" and "dhcp" in tags:
            more += " mac='52:54:00:00:00:01' ip='10.1.0.2'"
        text, tail = f"{text}<{tag}{more}>", f"</{tag}>{tail}"
    rest = "" if "ip" in tags else IP4
    top = f"{last[1:]}='x'" if attribute and not tags else ""
    namespace = "xmlns:dnsmasq='http://libvirt.org/schemas/network/dnsmasq/1.0'"
    if path == "network/dnsmasq:options":
        text, tail = "<dnsmasq:options><dnsmasq:option value='x=y'/>", "</dnsmasq:options>"
    found = remarks(document(text + tail + rest, attributes=f"{namespace} {top}"), left_out=True)
    assert list(found) == [f"/{path}"]
    assert INSTEAD[path] in found[f"/{path}"]


def test_every_table_of_advice_is_of_something_that_is_not_understood() -> None:
    for path in INSTEAD:
        element, _, attribute = path.partition("/@")
        if path.startswith("network") and path != "network/dnsmasq:options":
            assert not (attribute and attribute in UNDERSTOOD[element].attributes)
            assert attribute or element not in UNDERSTOOD


def test_what_nobody_has_heard_of_is_named_too() -> None:
    text = document(
        f"{IP4}<strange new='x'><inside/></strange><bridge name='a'/><bridge name='b'/>"
    )
    assert remarks(text, left_out=True) == {
        "/network/strange": "there is nothing like it here",
        "/network/bridge": "there is one before it",
    }


@pytest.mark.parametrize(
    ("ip", "reason"),
    [
        ("<ip address='10.0.0.1'/>", "from 12 to 29"),
        ("<ip address='10.0.0.0' prefix='24'/>", "first or the last"),
        ("<ip address='127.0.0.1' prefix='24'/>", "special kind"),
        ("<ip address='192.168.122.99' prefix='28'/>", "it overlaps 192.168.122.1/24"),
        ("<ip family='ipv6' address='fd00::1' prefix='48'/>", "has to be 64"),
        ("<ip family='ipv6' address='fe80::1' prefix='64'/>", "unique local"),
        ("<ip family='ipv6' address='2001:db8::1'/>", 'mode = "route"'),
    ],
)
def test_a_range_that_the_broker_would_not_take_is_left_out(ip: str, reason: str) -> None:
    """It would close the whole file for everybody. Alone it leaves no network to make."""
    text = document(f"<forward mode='nat'/>{IP4}{ip}")
    assert table(text) == {"mode": "nat", "ipv4": "192.168.122.1/24"}
    assert reason in remarks(text, left_out=True)["/network/ip"]
    if "overlaps" not in reason:
        with pytest.raises(DefinitionError, match="no address"):
            parse_network(document(f"<forward mode='nat'/>{ip}"))


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("<host mac='52:54:00:00:00:02' name='b' ip='10.9.9.9'/>", "in no range"),
        ("<host mac='52:54:00:00:00:02' name='b' ip='192.168.122.255'/>", "first or the last"),
        ("<host mac='52:54:00:00:00:02' name='b' ip='192.168.122.1'/>", "gateway's"),
        ("<host mac='52:54:00:00:00:02' name='b' ip='192.168.122.2'/>", "another host's"),
        ("<host mac='52:54:00:00:00:02' name='a' ip='192.168.122.3'/>", "there is another a"),
        ("<host mac='52:54:00:00:00:01' name='b' ip='192.168.122.3'/>", "another host has 52:"),
        ("<host mac='fe:54:00:00:00:02' name='b' ip='192.168.122.3'/>", "begin with fe:"),
    ],
)
def test_a_host_that_the_broker_would_not_take_is_left_out(host: str, reason: str) -> None:
    first = "<host mac='52:54:00:00:00:01' name='a' ip='192.168.122.2'/>"
    text = document(IP4.replace("<dhcp/>", f"<dhcp>{first}{host}</dhcp>"))
    assert table(text)["host"] == {"a": {"mac": "52:54:00:00:00:01", "ipv4": "192.168.122.2"}}
    assert reason in remarks(text, left_out=True)["/network/ip/dhcp/host"]


def test_only_so_many() -> None:
    ranges = "".join(f"<ip address='10.{n}.0.1' prefix='24'><dhcp/></ip>" for n in range(20))
    names = "".join(f"<hostname>n{n}</hostname>" for n in range(MOST_ENTRIES + 1))
    body = table(document(f"{ranges}<dns><host ip='10.0.0.9'>{names}</host></dns>"))
    assert len(body["ipv4"]) == MOST_RANGES
    assert len(body["dns"]) == MOST_ENTRIES


def test_remarks_without_end_are_cut() -> None:
    text = printed(document(IP4 + "<strange/>" * 1000))
    assert text.count("/network/strange") == 200
    assert "- and 800 more" in text


@pytest.mark.parametrize(
    ("text", "cause", "evidence"),
    [
        ("<domain/>", "not a <network>", "net.xml:1"),
        ("<network>\n<ip", "not well-formed", "net.xml:2"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><network/>", "document type", "net.xml:1"),
        (f"<network>{IP4}</network>", "is missing", "/network/name"),
        (document(""), "no address", "net.xml:1"),
        (document("<forward mode='wire'/>"), "'wire' is no mode", "net.xml:3"),
        (document("<ip address='x'/>"), "wrong address", "net.xml:3"),
        (document("<ip address='10.1.0.1' netmask='0.0.0.255'/>"), "no netmask", "net.xml:3"),
        (document("<ip address='10.1.0.1' prefix='33'/>"), "wrong address", "net.xml:3"),
        (document("<ip family='ipv6' address='10.1.0.1'/>"), "not of the family", "net.xml:3"),
        (document(f"{IP4}<mtu size='big'/>"), "no number of bytes", "/network/mtu/@size"),
        (document("<forward mode='bridge'/><bridge name='svn_x'/>"), "no bridge", "net.xml:3"),
        (
            document(IP4.replace("<dhcp/>", "<dhcp><host mac='x' ip='192.168.122.2'/></dhcp>")),
            "not a MAC address",
            "/network/ip/dhcp/host",
        ),
        (document(f"{IP4}<dns><host ip='x'/></dns>"), "does not appear", "/network/dns/host/@ip"),
    ],
)
def test_a_malformed_document_is_refused_by_line(text: str, cause: str, evidence: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse_network(text, file="net.xml")
    assert cause in caught.value.cause
    assert evidence in caught.value.evidence
    assert caught.value.advice


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("lab", "lab"),
        ("My Lab!", "my_lab"),
        ("vagrant-libvirt", "vagrant_lib"),
        ("0net", "n_0net"),
        ("private", "n_private"),
        ("u1000", "n_u1000"),
        ("réseau", "r_seau"),
        ("\u212aelvin", "elvin"),
        ("---", "n"),
    ],
)
def test_a_name_is_mapped_and_said(name: str, ours: str) -> None:
    text = document(IP4, name=name)
    assert list(imported(text)["network"]) == [ours]
    assert ("/network/name" in remarks(text, left_out=False)) is (name != ours)


@given(st.text())
def test_a_mapped_name_is_one_that_the_broker_takes(name: str) -> None:
    ours = mapped_name(name)
    assert is_network_name(ours)
    assert mapped_name(ours) == ours
    label = label_of(name)
    assert label == "" or label_of(label) == label


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True))
def test_a_label_that_is_one_already_stays(label: str) -> None:
    assert label_of(f"{label}.example") == label


@given(st.text("abcXYZ019_.-", min_size=1, max_size=15).filter(is_interface_name))
def test_a_permitted_bridge_has_its_own_name(name: str) -> None:
    assert tomllib.loads(bridge_toml(name)) == {"bridge": {name: {}}}


def test_the_host_asks_for_names_where_libvirts_does() -> None:
    registered = table(document(f"{IP4}<domain name='lab.example' register='yes'/>"))
    assert "names_on_host" not in registered
    for said in ("", "register='no'"):
        body = table(document(f"{IP4}<domain name='lab.example' {said}/>"))
        assert body["names_on_host"] is False
    assert "names_on_host" not in table(document(IP4))


# -- TOML ------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.builds(
        Network,
        name=TEXTS,
        mode=st.sampled_from(Mode),
        ipv4=st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
        nat6=st.booleans(),
        domain=TEXTS,
        names_on_host=st.booleans(),
        mtu=st.integers(0, 65521),
        options=st.dictionaries(st.integers(0, 255), TEXTS).map(lambda one: tuple(one.items())),
        hosts=st.lists(
            st.builds(Host, TEXTS, TEXTS.filter(bool), TEXTS, TEXTS),
            unique_by=lambda host: host.label,
            max_size=3,
        ).map(tuple),
        records=st.dictionaries(TEXTS, st.lists(TEXTS, min_size=1, max_size=2).map(tuple)).map(
            lambda one: tuple(one.items())
        ),
    )
)
def test_any_text_comes_back_from_toml_as_it_was(network: Network) -> None:
    ((name, body),) = tomllib.loads(to_toml(network))["network"].items()
    assert (name, body.pop("mode")) == (network.name, network.mode)
    ranges = list(network.ipv4)
    assert body.pop("ipv4") == (ranges[0] if len(ranges) == 1 else ranges)
    assert body.pop("nat6", False) is network.nat6
    assert (body.pop("domain", ""), body.pop("mtu", 0)) == (network.domain, network.mtu)
    assert body.pop("names_on_host", True) is network.names_on_host
    options = {str(number): text for number, text in network.options}
    assert body.pop("dhcp_options", {}) == options
    hosts = body.pop("host", {})
    assert {label: {"mac": "", "ipv4": "", "ipv6": ""} | said for label, said in hosts.items()} == {
        one.label: {"mac": one.mac, "ipv4": one.ipv4, "ipv6": one.ipv6} for one in network.hosts
    }
    names = {name: list(each) for name, each in network.records}
    assert {
        name: each if isinstance(each, list) else [each]
        for name, each in body.pop("dns", {}).items()
    } == names
    assert body == {}


#: What XML can carry, and what ends a comment, a string or a table.
HOSTILE = st.lists(
    st.sampled_from([*"a0-_.:/,#[]=\"'\\ \t\n\x85\u2028\u202e", "[pci]", '"""', "é", "\U0001f4a9"]),
    max_size=40,
).map("".join)


def escaped(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), ("'", "&apos;"), ("\n", "&#10;")):
        text = text.replace(character, entity)
    return text


@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
@settings(deadline=None)
def test_no_text_of_a_document_becomes_a_table(one: str, two: str, three: str, four: str) -> None:
    a, b, c, d = map(escaped, (one, two, three, four))
    text = (
        f"<network new='{a}' xmlns:q='urn:{b}'><name>n{a}</name><domain name='{b}'/>"
        f"<q:strange/>{IP4}<dns><host ip='10.0.0.1'><hostname>{c}</hostname></host></dns>"
        "<o:options xmlns:o='http://libvirt.org/schemas/network/dnsmasq/1.0'>"
        f"<o:option value='dhcp-option=42,{d}'/><o:option value='{d}'/></o:options></network>"
    )
    body = table(text)
    assert set(body) <= {"mode", "ipv4", "domain", "names_on_host", "dhcp_options", "dns"}
    assert body["ipv4"] == "192.168.122.1/24"
    assert body.get("domain", two.lower()) == two.lower()
    assert body.get("dns", {}).keys() <= {three.strip().lower()}
    assert all(line.startswith("#") for line in printed(text).partition("\n\n")[0].splitlines())


ADDRESSES4 = st.integers(1, 253).map(lambda number: f"10.1.{number}")


@given(
    mode=st.sampled_from(Mode),
    ranges4=st.lists(st.integers(0, 255), unique=True, min_size=1, max_size=3),
    ranges6=st.lists(st.integers(0, 255), unique=True, max_size=3),
    nat6=st.booleans(),
    hosts=st.dictionaries(
        st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True),
        st.integers(2, 250),
        max_size=5,
    ),
    mtu=st.none() | st.integers(1280, 65521),
    options=st.dictionaries(
        st.integers(0, 255), st.from_regex(r"[A-Za-z0-9._:/@+,-]{1,20}", fullmatch=True), max_size=4
    ),
)
@settings(deadline=None)
def test_what_was_in_the_xml_is_in_the_toml(
    *,
    mode: Mode,
    ranges4: list[int],
    ranges6: list[int],
    nat6: bool,
    hosts: dict[str, int],
    mtu: int | None,
    options: dict[int, str],
) -> None:
    options = {key: text for key, text in options.items() if not option_problem(key, text)}
    numbers = {number: label for label, number in hosts.items()}
    forward = "" if mode is Mode.ISOLATED else f"<forward mode='{mode}'>"
    if forward:
        forward += "<nat ipv6='yes'/></forward>" if nat6 and mode is Mode.NAT else "</forward>"
    static = "".join(
        f"<host mac='52:54:00:00:00:{number:02x}' name='{label}' ip='10.1.{ranges4[0]}.{number}'/>"
        for number, label in numbers.items()
    )
    inside = "".join(
        f"<ip address='10.1.{n}.1' prefix='24'><dhcp>{static * (n == ranges4[0])}</dhcp></ip>"
        for n in ranges4
    )
    inside += "".join(f"<ip family='ipv6' address='fd00:0:0:{n:x}::1'/>" for n in ranges6)
    inside += f"<mtu size='{mtu}'/>" if mtu else ""
    inside += "<d:options>" + "".join(
        f"<d:option value='dhcp-option={key},{text}'/>" for key, text in options.items()
    )
    namespace = "xmlns:d='http://libvirt.org/schemas/network/dnsmasq/1.0'"
    body = table(document(f"{forward}{inside}</d:options>", attributes=namespace))

    def listed(key: str) -> list[str]:
        said = body.get(key, [])
        return said if isinstance(said, list) else [said]

    assert body["mode"] == mode
    assert listed("ipv4") == [f"10.1.{n}.1/24" for n in ranges4]
    wanted = [f"fd00:0:0:{n:x}::1/64" for n in ranges6]
    assert [ipaddress.ip_interface(one) for one in listed("ipv6")] == [
        ipaddress.ip_interface(one) for one in wanted
    ]
    assert body.get("nat6", False) is (nat6 and mode is Mode.NAT and bool(ranges6))
    assert body.get("mtu") == mtu
    assert body.get("dhcp_options", {}) == {str(key): text for key, text in options.items()}
    assert body.get("host", {}) == {
        label: {"mac": f"52:54:00:00:00:{number:02x}", "ipv4": f"10.1.{ranges4[0]}.{number}"}
        for number, label in numbers.items()
    }


# -- files -----------------------------------------------------------------------------------------


def test_a_file_is_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / "net\n[pci].xml"
    path.write_text(document(IP4))
    assert tomllib.loads(networkfiles.import_file(str(path))).keys() == {"network"}
    with pytest.raises(NotFoundError, match="nothing cannot be read"):
        networkfiles.import_file(str(tmp_path / "nothing"))
    path.write_bytes(b"<network>" + bytes(2 << 20))
    with pytest.raises(DefinitionError, match="more than the"):
        networkfiles.import_file(str(path))


# -- going out -------------------------------------------------------------------------------------


def info(name: str = "lab", **values: Any) -> NetworkInfo:
    plain: dict[str, Any] = {
        "type": "network",
        "mode": "nat",
        "bridge": f"svn_{name}",
        "up": True,
        "mtu": 1500,
        "ipv4": (),
        "ipv6": (),
        "leases": 0,
    }
    return NetworkInfo(name=name, **{**plain, **values})


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("mtu", [1500, 9000])
def test_what_goes_out_comes_in_again(mode: Mode, mtu: int) -> None:
    ipv4, ipv6 = ("10.1.0.1/24", "10.2.0.9/20"), ("fd00::1/64", "fd00:0:0:1::1/64")
    network = info(mode=mode.value, mtu=mtu, ipv4=ipv4, ipv6=ipv6)
    text = networkfiles.export_network([network])
    assert "broker.toml" in text
    again = parse_network(text).network
    assert again == Network("lab", mode, ipv4, ipv6, mtu=0 if mtu == 1500 else mtu)
    assert text.count("<dhcp>") == 2


def test_a_bridge_goes_out_and_comes_in_again() -> None:
    bridge = info("br0", type="bridge", mode="lan", bridge="br0", mtu=9000)
    assert parse_network(networkfiles.export_network([bridge])).bridge == "br0"


@pytest.mark.parametrize(
    ("address", "start", "end"),
    [
        ("10.1.0.1/24", "10.1.0.2", "10.1.0.254"),
        ("10.1.0.254/24", "10.1.0.1", "10.1.0.253"),
        ("10.1.0.2/30", "10.1.0.1", "10.1.0.1"),
        ("10.1.0.100/24", "10.1.0.101", "10.1.0.254"),
        ("10.13.0.1/12", "10.13.0.2", "10.13.255.254"),
        ("fd00::1/64", "fd00::2", "fd00::fffe"),
        ("fd00::ffff:1/64", "fd00::ffff:2", "fd00::ffff:fffe"),
    ],
)
def test_the_range_of_dhcp_is_one_that_libvirt_takes(address: str, start: str, end: str) -> None:
    text = networkfiles.export_network([info(ipv4=(address,))])
    assert f"<range start='{start}' end='{end}'/>" in text


def test_what_the_bus_says_is_not_believed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BrokerUnavailableError):
        networkfiles.export_network([info(ipv4=("10.1.0.1/24'/><x a='",))])
    with pytest.raises(UsageError, match="is an interface of the host"):
        networkfiles.export_network([info("eth0", type="direct", mode="bridge,vepa")])
    with pytest.raises(UsageError, match="cannot be exported"):
        networkfiles.export_network([info(mode="n\x1b[2J")])
    text = networkfiles.export_network([info("a'><b/>"), info("a'><b/>", type="bridge")])
    assert "is a network and a bridge" in capsys.readouterr().err
    assert parse_network(text.replace("</network>", f"{IP4}</network>")).name == "a'><b/>"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ports of the host that lead to a guest: in a word, in XML, and in what is asked of the broker."""

from __future__ import annotations

import pytest

from sessionvirt.broker_data import LeaseInfo, PublishGrant, TapGrant
from sessionvirt.broker_requests import PublishRequest, TapRequest
from sessionvirt.driver.lease import broker_requests
from sessionvirt.driver.network import _passt_ports
from sessionvirt.driver.publishing import choose_tap, words
from sessionvirt.errors import DefinitionError, NotFoundError, UsageError
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.portforward import PortForward, PortProtocol, Ports, read_ports

pytestmark = pytest.mark.unit

TCP, UDP = PortProtocol.TCP, PortProtocol.UDP


@pytest.mark.parametrize(
    ("word", "ports"),
    [
        ("8080:80", Ports(TCP, None, 8080, 80)),
        ("127.0.0.1:2222:22/tcp", Ports(TCP, "127.0.0.1", 2222, 22)),
        ("5000-5009:6000-6009/udp", Ports(UDP, None, 5000, 6000, 10)),
        ("[2001:DB8::1]:443:8443", Ports(TCP, "2001:db8::1", 443, 8443)),
        ("[::]:65535:1", Ports(TCP, "::", 65535, 1)),
    ],
)
def test_a_word_names_ports(word: str, ports: Ports) -> None:
    assert read_ports(word) == ports
    assert read_ports(str(ports)) == ports
    ((row,),) = [tuple(PortForward.of(ports).rows())]
    assert row == ports


@pytest.mark.parametrize(
    "word",
    [
        *("", "80", ":80", "8080:", "0:80", "80:0", "08080:80", "65536:80", "80:65536"),
        *("8080:80/sctp", "2001:db8::1:8080:80", "host:8080:80", "300.0.0.1:1:1", "1.2:1:1"),
        *("5000-5009:6000-6008", "5000-5009:6000", "5009-5000:6000-5991", "65530-65535:65531"),
        *("8080:80\n", "\uff18\uff10:80", "[fe80::1%eth0]:8080:80", "8080:80 ", "[1:2]:8080:80"),
    ],
)
def test_what_names_none_is_refused(word: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_ports(word)
    assert refused.value.advice or "is no address" in str(refused.value)


def domain(type_: str, source: str, *forwards: str) -> bytes:
    nic = f"<interface type='{type_}'>{source}{''.join(forwards)}</interface>"
    text = f"<domain type='qemu'><name>d</name><memory>65536</memory><devices>{nic}</devices>"
    return f"{text}</domain>".encode()


NETWORK = ("network", "<source network='default'/>")
FORWARD = (
    "<portForward proto='udp' address='::1'><range start='5000' end='5006' to='6000'/>{}"
    "</portForward>"
)


def test_what_is_excluded_parts_a_range() -> None:
    without = "<range start='5000' exclude='yes'/><range start='5003' end='5004' exclude='yes'/>"
    parsed = parse_domain(domain(*NETWORK, FORWARD.format(without))).value
    (forward,) = parsed.interfaces[0].port_forwards
    assert list(forward.rows()) == [
        Ports(UDP, "::1", 5001, 6001, 2),
        Ports(UDP, "::1", 5005, 6005, 2),
    ]


@pytest.mark.parametrize(
    ("type_", "source", "forward"),
    [
        ("bridge", "<source bridge='br0'/>", FORWARD.format("")),
        ("user", "", "<portForward proto='tcp'><range start='80'/></portForward>"),
        (*NETWORK, "<portForward proto='tcp'/>"),
        (*NETWORK, "<portForward proto='tcp'><range start='9' end='8'/></portForward>"),
        (*NETWORK, "<portForward proto='tcp'><range start='8' end='9' to='65535'/></portForward>"),
        (*NETWORK, "<portForward proto='tcp' address='x'><range start='8'/></portForward>"),
        (*NETWORK, "<portForward proto='sctp'><range start='8'/></portForward>"),
    ],
)
def test_xml_that_cannot_be_is_refused(type_: str, source: str, forward: str) -> None:
    with pytest.raises(DefinitionError):
        parse_domain(domain(type_, source, forward))


def test_one_call_asks_for_the_tap_and_for_its_ports() -> None:
    text = domain(*NETWORK, FORWARD.format("")).replace(
        b"<interface", b"<interface type='bridge'><source bridge='br0'/></interface><interface", 1
    )
    first, second, published = broker_requests(parse_domain(text).value)
    assert isinstance(first, TapRequest)
    assert isinstance(second, TapRequest)
    assert published == PublishRequest("tap1", "udp", 5000, 6000, 7, "::1")


def test_passt_is_told() -> None:
    ports = [Ports(TCP, "127.0.0.1", 8080, 80), Ports(UDP, None, 5000, 6000, 3)]
    assert list(_passt_ports(ports)) == [
        *("--tcp-ports", "127.0.0.1/8080-8080:80-80", "--udp-ports", "5000-5002:6000-6002")
    ]


def tap(number: int, network: str) -> TapGrant:
    mac = f"52:54:00:00:00:0{number}"
    return TapGrant(f"tap{number}", "tap", (), f"svt{number}", 9, mac, 1500, network, "", (), ())


def test_which_interface_is_meant() -> None:
    taps = (tap(0, ""), tap(2, "default"))
    lease = LeaseInfo("/l/x", "vm", 1000, "held", 0, "yes", taps, {}, 0)
    assert choose_tap(lease, None) is taps[1]
    for which in ("1", "tap2", "52:54:00:00:00:02"):
        assert choose_tap(lease, which) is taps[1]
    assert choose_tap(lease, "0") is taps[0]
    with pytest.raises(NotFoundError, match="has no interface 2"):
        choose_tap(lease, "2")


def test_what_is_published_in_words() -> None:
    one = PublishGrant("publish1", "publish", "tap0", "tcp", "", 8080, 80, 1, ("10.0.0.2", "fd::2"))
    assert words(one) == "*:8080 -> 10.0.0.2,[fd::2]:80/tcp"
    two = PublishGrant("publish2", "publish", "tap0", "udp", "::1", 50, 60, 3, ("fd::2",))
    assert words(two) == "[::1]:50-52 -> [fd::2]:60-62/udp"

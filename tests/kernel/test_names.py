# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names and addresses of a network, by the real dnsmasq: guests, static hosts, options, ranges."""

from __future__ import annotations

import ipaddress
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.client import RefusalError, network_tap
from lab.guesttraffic import dhcp4, dhcp6, packed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client
    from lab.tap import Tap

pytestmark = pytest.mark.kernel

GATEWAY, GATEWAY6 = "10.64.0.1", "fd64::1"
STATIC = "52:54:00:00:00:09"
LAB = f"""
[network.lab]
mode = "isolated"
ipv4 = ["{GATEWAY}/24", "10.65.0.1/29"]
ipv6 = ["{GATEWAY6}/64", "fd65::1/64"]
[network.lab.dhcp_options]
42 = "10.64.0.1,10.64.0.2"
[network.lab.host.db]
mac = "{STATIC}"
ipv4 = "10.65.0.3"
ipv6 = "fd65::33"
[network.lab.dns]
printer = "192.168.1.9"
"""
NXDOMAIN, REFUSED = 3, 5
#: The lab's own copy.
RESOLV_CONF = Path("/etc/resolv.conf")
A, PTR, AAAA = 1, 12, 28


def encoded(name: str) -> bytes:
    labels = name.split(".")
    return b"".join(bytes([len(one)]) + one.encode() for one in labels) + b"\0"


def ask(tap: Tap, name: str, kind: int = A, tries: int = 20) -> tuple[int, list[bytes]]:
    """The status of the network's DNS, and the data of each answer."""
    question = struct.pack("!HHHHHH", 0x5356, 0x0100, 1, 0, 0, 0)
    question += encoded(name) + struct.pack("!HH", kind, 1)
    mac = tap.ask_arp(GATEWAY)
    for _ in range(tries):  # dnsmasq may still be starting
        tap.send(tap.udp4(mac, GATEWAY, (5353, 53), question))
        try:
            answer = tap.until(lambda p: p.ports == (53, 5353), timeout=0.5)[-1].payload
            break
        except TimeoutError:
            continue
    else:
        raise TimeoutError("dnsmasq never answered")
    _, flags, _, count = struct.unpack_from("!HHHH", answer)
    found, at = [], len(question)
    for _ in range(count):
        at += 2 if answer[at] & 0xC0 else len(encoded(name))
        _, _, _, length = struct.unpack_from("!HHIH", answer, at)
        found.append(answer[at + 10 : at + 10 + length])
        at += 10 + length
    return flags & 15, found


def address(tap: Tap, name: str, kind: int = A) -> list[str]:
    return sorted(str(ipaddress.ip_address(data)) for data in ask(tap, name, kind)[1])


def offered(tap: Tap) -> tuple[str, dict[int, bytes]]:
    """What DHCP gives."""
    message = frames.dhcp4(frames.DISCOVER, tap.mac, {55: bytes([1, 3, 6, 15, 26, 42, 121])})
    segment = frames.udp("0.0.0.0", "255.255.255.255", (68, 67), message)
    packet = frames.ipv4("0.0.0.0", "255.255.255.255", frames.UDP, segment)
    frame = frames.ethernet(frames.BROADCAST, tap.mac, frames.IPV4, packet)
    for _ in range(20):
        tap.send(frame)
        try:
            answer = tap.until(lambda p: p.ports == (67, 68), timeout=0.5)[-1]
        except TimeoutError:
            continue
        return frames.read_dhcp4(answer.payload)
    raise TimeoutError("dnsmasq never answered")


def test_a_guest_is_found_by_its_name(broker: Broker, alices: Client, bobs: Client) -> None:
    broker.configure(LAB)
    with alices.acquire(network_tap("lab"), vm="Web Server") as lease:
        tap = lease.tap
        tap.attentive = True
        for name in ("web-server", "web-server.lab.internal"):
            assert address(tap, name) == [tap.ipv4]
            assert address(tap, name, AAAA) == sorted(tap.facts["ipv6"])
        assert tap.facts["dns"] == "web-server.lab.internal"
        for one in (tap.ipv4, *tap.facts["ipv6"]):
            status, (data,) = ask(tap, ipaddress.ip_address(one).reverse_pointer, PTR)
            assert status == 0
            assert data == encoded("web-server.lab.internal")
        with bobs.acquire(network_tap("lab"), vm="web.SERVER") as other:
            # The first has the name, and the second none.
            assert other.tap.facts["dns"] == ""
            assert address(tap, "web-server") == [tap.ipv4]
            status, names = ask(tap, ipaddress.ip_address(other.tap.ipv4).reverse_pointer, PTR)
            assert (status, names) == (NXDOMAIN, [])
        # To be asked for a name tells nobody that somebody else has it.
        assert "secret" not in str(bobs.plan(network_tap("lab"), vm="secret"))
        with bobs.acquire(network_tap("lab"), vm="late") as other:
            assert address(tap, "late") == [other.tap.ipv4]
        assert ask(tap, "late.lab.internal") == (NXDOMAIN, [])


def test_static_hosts_records_and_options(broker: Broker, alices: Client) -> None:
    broker.configure(LAB)
    with (
        alices.acquire(network_tap("lab"), vm="db") as lease,
        alices.acquire(network_tap("lab", mac=STATIC), vm="x") as static,
    ):
        tap, db = lease.tap, static.tap
        assert db.ipv4 == "10.65.0.3"
        assert db.facts["ipv6"][1] == "fd65::33"
        assert db.facts["dns"] == "db.lab.internal"
        assert address(tap, "db") == ["10.65.0.3"]
        assert address(tap, "db.lab.internal", AAAA) == ["fd65::33"]
        assert address(tap, "printer") == ["192.168.1.9"]
        assert ask(tap, "x.lab.internal")[0] == NXDOMAIN  # it has its own name
        given, options = offered(db)
        assert given == "10.65.0.3"
        assert options[42] == bytes([10, 64, 0, 1, 10, 64, 0, 2])
        assert options[15].rstrip(b"\0") == b"lab.internal"
        assert 3 not in options  # isolated: no way out
        # The other range is on the same wire: 10.64.0.0/24 by nobody.
        assert options[121] == bytes([24, 10, 64, 0, 0, 0, 0, 0])
        assert host.elements("inet", "networks4") == []


@pytest.fixture
def resolver() -> Iterator[socket.socket]:
    """The host's resolver: what it is asked for can be read."""
    former = RESOLV_CONF.read_text() if RESOLV_CONF.exists() else None
    with host.listener("127.0.0.2", 53, socket.SOCK_DGRAM) as service:
        RESOLV_CONF.write_text("nameserver 127.0.0.2\n")
        yield service
    if former is None:
        RESOLV_CONF.unlink()
    else:
        RESOLV_CONF.write_text(former)


def test_an_isolated_network_passes_no_question_on(
    broker: Broker, alices: Client, resolver: socket.socket
) -> None:
    broker.configure(LAB)
    with alices.acquire(network_tap("lab")) as lease:
        assert ask(lease.tap, "example.org")[0] == REFUSED
    with pytest.raises(BlockingIOError):
        resolver.recv(512)
    broker.configure(LAB.replace("isolated", "nat"))
    with alices.acquire(network_tap("lab")) as lease:
        with pytest.raises(TimeoutError):
            ask(lease.tap, "example.org", tries=2)
        assert encoded("example.org") in resolver.recv(512)
        # Names of the network stay there in every mode.
        assert ask(lease.tap, "none.lab.internal")[0] == NXDOMAIN


@pytest.mark.parametrize(
    "vm", ["wpad", "LOCALHOST", "printer", "_", "a\\;b,c#", "x,10.64.0.1", "\N{SNOWMAN}"]
)
def test_no_name_of_a_callers_reaches_dnsmasq_but_as_a_label(
    vm: str, broker: Broker, alices: Client
) -> None:
    broker.configure(LAB)
    with alices.acquire(network_tap("lab"), vm=vm) as lease:
        files = broker_files()
        assert address(lease.tap, "printer") == ["192.168.1.9"]
        assert ask(lease.tap, "wpad.lab.internal")[0] == NXDOMAIN
        text = "".join(files)
        assert not set(text) - set("abcdefghijklmnopqrstuvwxyz0123456789-.,:[] \n")


def test_a_guest_gives_itself_no_name(broker: Broker, alices: Client) -> None:
    """What it says in DHCP is no way round what its machine may be called."""
    broker.configure(f'[network.lab]\nipv4 = "{GATEWAY}/24"\nipv6 = "{GATEWAY6}/64"\n')
    with alices.acquire(network_tap("lab"), vm="honest") as lease:
        tap = lease.tap
        tap.attentive = True
        for name in ("wpad", "stranger"):
            given, options = dhcp4(tap, frames.DISCOVER, option12=name.encode())
            asked = {"option50": packed(given), "option54": options[54], "option12": name.encode()}
            assert dhcp4(tap, frames.REQUEST, **asked)[0] == tap.ipv4
        fqdn = (39, b"\x01" + encoded("stranger6"))
        _, options = dhcp6(tap, frames.SOLICIT, fqdn)
        assert dhcp6(tap, frames.REQUEST6, (2, options[2]), fqdn)[0] == frames.REPLY
        for name in ("wpad", "stranger", "stranger6"):
            for whole in (name, f"{name}.lab.internal"):
                assert address(tap, whole) == address(tap, whole, AAAA) == []
        assert address(tap, "honest") == [tap.ipv4]


def broker_files() -> list[str]:
    from lab.broker import RUNTIME

    directory = RUNTIME / "networks/svn_lab"
    return [one.read_text() for kind in ("hosts", "names") for one in (directory / kind).iterdir()]


def test_a_network_of_ipv6_alone(broker: Broker, alices: Client) -> None:
    broker.configure('[network.six]\nipv6 = "fd66::1/64"\n')
    with alices.acquire(network_tap("six")) as lease:
        tap = lease.tap
        assert tap.facts["ipv4"] == []
        # Asked until dnsmasq answers.
        association = (3, struct.pack("!III", 1, 0, 0))
        asked = frames.dhcp6(
            frames.SOLICIT, [(1, frames.duid(tap.mac)), association, (8, bytes(2))]
        )
        segment = frames.udp(tap.link_local, "ff02::1:2", (546, 547), asked)
        mac = frames.multicast_mac("ff02::1:2")
        for _ in range(20):
            tap.send(tap.to6(mac, tap.link_local, "ff02::1:2", frames.UDP, segment))
            try:
                answer = answer6(tap)
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("dnsmasq never answered")
        kind, options = frames.read_dhcp6(answer)
        assert kind == frames.ADVERTISE
        inner = frames.dhcp6_options(options[3][12:])
        assert str(ipaddress.IPv6Address(inner[5][:16])) == tap.ipv6
    assert host.ours() == []


def answer6(tap: Tap) -> bytes:
    """What DHCPv6 says; who asks for the guest's link-local address has an answer."""
    found = tap.until(
        lambda p: p.ports == (547, 546) or (p.protocol == frames.ICMP6 and p.kind == 135),
        timeout=0.5,
    )[-1]
    if found.ports == (547, 546):
        return found.payload
    wanted = str(ipaddress.IPv6Address(found.payload[4:20]))
    if wanted in (tap.link_local, tap.ipv6):
        said = frames.neighbour_advertisement(wanted, found.source, wanted, tap.mac)
        tap.send(tap.to6(found.source_mac, wanted, found.source, frames.ICMP6, said))
    return answer6(tap)


def test_a_static_address_is_one_guests(broker: Broker, alices: Client, bobs: Client) -> None:
    broker.configure(LAB)
    with alices.acquire(network_tap("lab", mac=STATIC)):
        with pytest.raises(RefusalError, match="in use on this network") as refusal:
            bobs.acquire(network_tap("lab", mac=STATIC))
        assert refusal.value.name == "Busy"
        broker.restart()
        with pytest.raises(RefusalError, match="in use on this network"):
            bobs.acquire(network_tap("lab", mac=STATIC))

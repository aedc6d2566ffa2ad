# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a machine's name becomes in DNS, and which addresses a network gives."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionvirt_broker.addresses import AddressBook, Addresses
from sessionvirt_broker.errors import Busy
from sessionvirt_broker.guestnames import NameBook, guest_label
from sessionvirt_broker.networkconfig import Network, StaticHost
from sessionvirt_broker.wire import Mac, NetworkName

pytestmark = pytest.mark.unit

MAC, OTHER = Mac("52:54:00:00:00:01"), Mac("52:54:00:00:00:02")
GUEST = "52:54:00:00:00:09"


def network(
    *ranges: str, hosts: tuple[StaticHost, ...] = (), records: tuple[str, ...] = ()
) -> Network:
    return Network(
        NetworkName("lab"),
        tuple(ipaddress.IPv4Interface(one) for one in ranges if ":" not in one),
        tuple(ipaddress.IPv6Interface(one) for one in ranges if ":" in one),
        domain="lab.internal",
        hosts=hosts,
        records=tuple((name, ipaddress.ip_address("10.0.0.9")) for name in records),
    )


@pytest.mark.parametrize(
    ("vm", "label"),
    [
        ("web", "web"),
        ("Web Server (2)", "web-server-2"),
        ("xn--bcher-kva", "xn-bcher-kva"),
        ("-a-", "a"),
        ("\N{KELVIN SIGN}vm", "vm"),
        ("\N{CYRILLIC SMALL LETTER A}", ""),
        ("..", ""),
        ("127", ""),
        ("a,b\n#c", "a-b-c"),
        ("x" * 64, "x" * 63),
        ("x" * 62 + ".y", "x" * 62),
        ("_dmarc", "dmarc"),
    ],
)
def test_labels(vm: str, label: str) -> None:
    assert guest_label(vm) == label


@given(st.text(max_size=80))
def test_a_label_is_a_label_or_nothing(vm: str) -> None:
    label = guest_label(vm)
    assert label == "" or re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", label)
    assert guest_label(label) == label


def test_some_names_are_nobodys() -> None:
    lab = network(
        "10.0.0.1/24", hosts=(StaticHost("web", MAC),), records=("db", "mail.lab.internal")
    )
    book = NameBook()
    for vm in ("WPAD", "isatap", "localhost", "Gateway", "web", "db", "mail"):
        assert book.peek(lab, vm) == "", vm
    assert book.peek(lab, "www") == "www"


def test_the_first_has_the_name() -> None:
    lab, book = network("10.0.0.1/24"), NameBook()
    book.hold(book.peek(lab, "a.b"), MAC)
    assert book.peek(lab, "A B") == ""
    book.give_back("a-b", OTHER)  # not who has it
    assert book.peek(lab, "A B") == ""
    book.give_back("a-b", MAC)
    assert book.peek(lab, "A B") == "a-b"


def all_given(lab: Network) -> list[Addresses]:
    """What guests get until there is nothing left."""
    book, found = AddressBook(), []
    for number in range(100):
        mac = f"52:54:00:00:01:{number:02x}"
        try:
            found.append(book.peek(lab, mac))
        except Busy:
            return found
        book.hold(lab, mac, found[-1])
    raise AssertionError("the network has no end")


def test_several_ranges_are_one_pool() -> None:
    found = all_given(network("10.0.0.1/29", "10.9.0.9/29", "fd00::1/64", "fd00:1::b/64"))
    assert {one.ipv4 for one in found} == {f"10.0.0.{n}" for n in range(2, 7)} | {
        f"10.9.0.{n}" for n in (10, 12, 13, 14)
    }  # 11: its number is the second gateway's in IPv6, b
    assert len({address for one in found for address in one.ipv6}) == 2 * len(found)
    assert all(one.ipv6[1] == one.ipv6[0].replace("fd00::", "fd00:1::") for one in found)


def test_a_network_of_ipv6_alone_has_no_ipv4() -> None:
    given_ = AddressBook().peek(network("fd00::1/64"), GUEST)
    assert given_.ipv4 == ""
    (address,) = given_.ipv6
    assert ipaddress.ip_address(address) in ipaddress.ip_network("fd00::/64")


def test_a_static_host_has_its_addresses_and_nobody_else_does() -> None:
    four, six = ipaddress.IPv4Address("10.0.0.5"), ipaddress.IPv6Address("fd00::3")
    lab = network("10.0.0.1/29", "fd00::1/64", hosts=(StaticHost("web", MAC, four, six),))
    taken = {address for one in all_given(lab) for address in (one.ipv4, *one.ipv6)}
    assert not taken & {"10.0.0.5", "fd00::5", "10.0.0.3", "fd00::3"}
    assert len(taken) == 2 * 3  # of five: 2, 4, 6
    book = AddressBook()
    assert book.peek(lab, MAC) == Addresses("10.0.0.5", ("fd00::3",))
    book.hold(lab, MAC, book.peek(lab, MAC))
    with pytest.raises(Busy, match="in use"):
        book.peek(lab, MAC)
    book.give_back(MAC)
    assert book.peek(lab, MAC).ipv4 == "10.0.0.5"


def test_what_was_not_given_to_a_static_host_is_of_the_same_number() -> None:
    web = StaticHost("web", MAC, ipaddress.IPv4Address("10.0.0.5"))
    lab = network("10.0.0.1/29", "fd00::1/64", hosts=(web,))
    assert AddressBook().peek(lab, MAC) == Addresses("10.0.0.5", ("fd00::5",))
    lab = network("10.0.0.1/29", "fd00::5/64", hosts=(web,))  # but the gateway's
    assert AddressBook().peek(lab, MAC).ipv6 != ("fd00::5",)
    named = network("10.0.0.1/29", hosts=(StaticHost("web", MAC),))
    assert AddressBook().peek(named, MAC) == AddressBook().peek(network("10.0.0.1/29"), MAC)

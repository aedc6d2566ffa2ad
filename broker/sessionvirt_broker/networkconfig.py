# SPDX-License-Identifier: LGPL-2.1-or-later
"""``[network.NAME]`` of broker.toml: the managed networks, as the administrator wants them.

Everything is checked here, so that nothing has to be escaped later: dnsmasq's files know no
escaping, and what reaches them is an address, a number, a name of lower-case letters, digits,
``-``, ``_`` and ``.``, or an option's text of a like alphabet.

Pure but for the error's line: whether the host can, and whether a prefix is in use there, is asked
when a guest comes (``network.py``).
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from .dhcpoptions import option_fault
from .wire import BridgeName, Mac, NetworkName, is_network_name, unicast_mac

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .errors import ConfigurationError
    from .tomlsource import Key, Source

AddressT = TypeVar("AddressT", ipaddress.IPv4Interface, ipaddress.IPv6Interface)
AddressOfT = TypeVar("AddressOfT", ipaddress.IPv4Address, ipaddress.IPv6Address)
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

BRIDGE_PREFIX = "svn_"
#: The network that everybody has for himself, ``private.py``; its bridge is this and the uid.
PRIVATE = NetworkName("private")
PRIVATE_BRIDGE = BRIDGE_PREFIX + "u"
_OF_A_USER = re.compile(r"u[0-9]+")
#: Below 4 usable addresses a network has no room for a guest; above this the hash set has no aim.
_PREFIX_LENGTHS = range(12, 30)
_UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")
#: RFC 4291: what is global unicast today.
_GLOBAL = ipaddress.IPv6Network("2000::/3")
#: Every list of networks has all of them, and each is compared with all before it.
_MOST_NETWORKS = 256
_MOST_RANGES = 16
_MOST_ENTRIES = 1024
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
#: A record's name may have an underscore, as services' have; a host's may not.
_RECORD_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NAME_BYTES = 200
#: dnsmasq(8): commas part values; nothing here begins a comment, a quote or a line.
_OPTION_TEXT = re.compile(r"[A-Za-z0-9._:/@+,-]{0,200}")
#: What DHCP itself is made of (RFC 2132, 9), what a guest's own name is, and what has a key of its
#: own: netmask, host name, domain, MTU.
_OPTIONS_OF_OURS = frozenset({0, 1, 12, 15, 26, *range(50, 62), 81, 82, 255})


class Mode(enum.StrEnum):
    """How a network meets the world."""

    NAT = "nat"
    ROUTE = "route"
    ISOLATED = "isolated"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class StaticHost:
    """A guest whose addresses the administrator chose, known by its MAC.

    :param ipv4: None: one is chosen, as for everybody; likewise ``ipv6``.
    """

    label: str
    mac: Mac
    ipv4: ipaddress.IPv4Address | None = None
    ipv6: ipaddress.IPv6Address | None = None

    def addresses(self) -> Iterator[Address]:
        """Those that were chosen."""
        yield from (one for one in (self.ipv4, self.ipv6) if one is not None)


@dataclass(frozen=True, slots=True)
class Network:
    """One managed network. The addresses are the gateway's own, with the prefix length.

    :param ipv4: ranges; together they are one pool, of which a guest gets one address.
    :param ipv6: ranges; a guest gets one address of each.
    :param nat6: IPv6 leaves by NAT.
    :param domain: what follows a guest's name; empty: nothing does.
    :param options: of DHCPv4, by number.
    :param records: names and addresses that the network's DNS knows besides.
    :param names_on_host: systemd-resolved asks that DNS for names below ``domain``.
    """

    name: NetworkName
    ipv4: tuple[ipaddress.IPv4Interface, ...]
    ipv6: tuple[ipaddress.IPv6Interface, ...] = ()
    mtu: int = 1500
    mode: Mode = Mode.NAT
    nat6: bool = False
    domain: str = ""
    options: tuple[tuple[int, str], ...] = ()
    hosts: tuple[StaticHost, ...] = ()
    records: tuple[tuple[str, Address], ...] = ()
    #: Not of what a guest is shown.
    autostart: bool = field(default=False, compare=False)
    names_on_host: bool = field(default=True, compare=False)
    #: Only a private network's is not made of its name.
    own_bridge: str = ""

    @property
    def bridge(self) -> BridgeName:
        """Its bridge: the prefix is what the firewall knows it by, so it is not configurable."""
        return BridgeName(self.own_bridge or BRIDGE_PREFIX + self.name)

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """Every range."""
        return (*(one.network for one in self.ipv4), *(one.network for one in self.ipv6))

    @property
    def gateways(self) -> tuple[Address, ...]:
        """Its own address in each range."""
        return (*(one.ip for one in self.ipv4), *(one.ip for one in self.ipv6))

    @property
    def wants_ipv6_out(self) -> bool:
        """Whether IPv6 must go beyond this host for it to be what was asked for."""
        return bool(self.ipv6) and (self.nat6 or self.mode is Mode.ROUTE)

    def host_of(self, mac: str) -> StaticHost | None:
        """The static host with this address."""
        return next((host for host in self.hosts if host.mac == mac), None)


def network_of(bridge: str) -> NetworkName:
    """The name that a bridge of ours was asked for by."""
    name = bridge.removeprefix(BRIDGE_PREFIX)
    return PRIVATE if _OF_A_USER.fullmatch(name) else NetworkName(name)


def default_domain(name: str) -> str:
    """Below ``internal``, which is for private use (ICANN, 2024), and no other network's."""
    return f"{name.replace('_', '-').strip('-')}.internal"


def is_label(text: str) -> bool:
    """Whether it can be a host's name in DNS, in the one spelling that is used here."""
    return _LABEL.fullmatch(text) is not None


def read_networks(source: Source, table: dict[str, object]) -> dict[NetworkName, Network]:
    """All of them.

    :raise ConfigurationError: names file, line and reason.
    """
    networks: dict[NetworkName, Network] = {}
    tables = source.tables(table, ("network",))
    if len(tables) > _MOST_NETWORKS:
        raise source.wrong(
            ("network", list(tables)[_MOST_NETWORKS]),
            f"there are {len(tables)} networks, and at most {_MOST_NETWORKS} are possible",
        )
    for name, body in tables.items():
        network = _Reader(source, name, body).network()
        _apart(source, network, networks)
        networks[network.name] = network
    return networks


def _apart(source: Source, network: Network, others: Mapping[NetworkName, Network]) -> None:
    own = network.prefixes
    for number, one in enumerate(own):
        at = ("network", network.name, f"ipv{one.version}")
        if any(one.overlaps(other) for other in own[:number] if other.version == one.version):
            raise source.wrong(at, f"{one} overlaps another range of this network")
        for other in others.values():
            for theirs in other.prefixes:
                if theirs.version == one.version and one.overlaps(theirs):
                    raise source.wrong(at, f"{one} overlaps {theirs} of {other.name}")


class _Reader:
    """One table."""

    def __init__(self, source: Source, name: str, body: dict[str, object]) -> None:
        self._source = source
        self._name = name
        self._body = body
        self._at: Key = ("network", name)

    def network(self) -> Network:
        source, at, body = self._source, self._at, self._body
        if not is_network_name(self._name):
            raise source.wrong(at, "a name has 1 to 11 of a-z, 0-9 and _, a letter first")
        if self._name == PRIVATE or _OF_A_USER.fullmatch(self._name):
            raise source.wrong(at, f"{self._name} is for the users' private networks")
        source.only(
            body,
            at,
            *("mode", "ipv4", "ipv6", "nat6", "mtu", "domain", "dhcp_options", "host", "dns"),
            *("autostart", "names_on_host"),
        )
        mode = self._mode()
        ipv4 = self._ranges("ipv4", ipaddress.IPv4Interface)
        ipv6 = self._ranges("ipv6", ipaddress.IPv6Interface)
        if not ipv4 and not ipv6:
            raise source.wrong(at, "needs ipv4 or ipv6: the gateway's address, like 10.1.0.1/24")
        for one in ipv4:
            self._check4(one)
        for six in ipv6:
            self._check6(six, mode)
        hosts = self._hosts(ipv4, ipv6)
        return Network(
            NetworkName(self._name),
            ipv4,
            ipv6,
            mtu=self._mtu(),
            mode=mode,
            nat6=self._nat6(mode, ipv6),
            domain=self._domain(),
            options=self._options(),
            hosts=hosts,
            records=self._records(hosts),
            autostart=source.flag(body, at, "autostart"),
            names_on_host=source.flag(body, at, "names_on_host", default=True),
        )

    def _wrong(self, key: str, reason: str) -> ConfigurationError:
        return self._source.wrong((*self._at, key), reason)

    def _mode(self) -> Mode:
        try:
            return Mode(str(self._body.get("mode", Mode.NAT)))
        except ValueError as error:
            words = ", ".join(f'"{one}"' for one in Mode)
            raise self._wrong("mode", f"must be one of {words}") from error

    def _mtu(self) -> int:
        mtu = self._body.get("mtu", 1500)
        if type(mtu) is not int or not 1280 <= mtu <= 65521:
            raise self._wrong("mtu", "must be from 1280 to 65521 bytes")
        return mtu

    def _nat6(self, mode: Mode, ipv6: tuple[ipaddress.IPv6Interface, ...]) -> bool:
        wanted = self._source.flag(self._body, self._at, "nat6")
        if wanted and (mode is not Mode.NAT or not ipv6):
            raise self._wrong("nat6", 'is for the mode "nat" with an ipv6 range')
        return wanted

    def _domain(self) -> str:
        domain = self._body.get("domain", default_domain(self._name))
        if not isinstance(domain, str) or not (domain == "" or _is_name(domain, _LABEL)):
            raise self._wrong("domain", "must be a domain of lower-case letters, digits and -")
        return domain

    # Section: addresses

    def _ranges(self, key: str, make: Callable[[str], AddressT]) -> tuple[AddressT, ...]:
        value = self._body.get(key, [])
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or len(texts) > _MOST_RANGES:
            raise self._wrong(key, f"must be a string, or a list of at most {_MOST_RANGES}")
        return tuple(self._interface(key, text, make) for text in texts)

    def _interface(self, key: str, text: object, make: Callable[[str], AddressT]) -> AddressT:
        try:
            if not isinstance(text, str) or "/" not in text or "%" in text:
                raise ValueError(text)
            interface = make(text)
        except ValueError as error:
            raise self._wrong(key, "must be an address with a prefix length") from error
        network = interface.network
        if interface.ip in (network.network_address, network.broadcast_address):
            raise self._wrong(key, "must be the gateway's own address in the network")
        return interface

    def _check4(self, one: ipaddress.IPv4Interface) -> None:
        if one.network.prefixlen not in _PREFIX_LENGTHS:
            raise self._wrong("ipv4", "must have a prefix length from 12 to 29")
        ip = one.ip
        if ip.is_loopback or ip.is_multicast or ip.is_link_local:
            raise self._wrong("ipv4", "must not be loopback, link-local or multicast")
        if ip.is_reserved or ip in ipaddress.IPv4Network("0.0.0.0/8"):
            raise self._wrong("ipv4", "must not be of 0.0.0.0/8 or 240.0.0.0/4")

    def _check6(self, one: ipaddress.IPv6Interface, mode: Mode) -> None:
        if one.network.prefixlen != 64:
            raise self._wrong("ipv6", "must have the prefix length 64")
        if one.ip in _UNIQUE_LOCAL:
            return
        if one.ip not in _GLOBAL:
            raise self._wrong("ipv6", "must be unique local (fc00::/7) or global (2000::/3)")
        if mode is Mode.NAT:
            raise self._wrong(
                "ipv6",
                'a global prefix is routed: it needs mode = "route";'
                " NAT is for unique local addresses (fc00::/7)",
            )

    # Section: hosts, names and options

    def _hosts(
        self,
        ipv4: tuple[ipaddress.IPv4Interface, ...],
        ipv6: tuple[ipaddress.IPv6Interface, ...],
    ) -> tuple[StaticHost, ...]:
        hosts: list[StaticHost] = []
        taken: set[Address | str] = {*(one.ip for one in ipv4), *(one.ip for one in ipv6)}
        for label, body in self._source.tables(self._body, (*self._at, "host")).items():
            at = (*self._at, "host", label)
            if not is_label(label):
                raise self._source.wrong(at, "must be a name of lower-case letters, digits and -")
            self._source.only(body, at, "mac", "ipv4", "ipv6")
            mac = body.get("mac")
            address = unicast_mac(mac) if isinstance(mac, str) else None
            if address is None:
                raise self._source.wrong(
                    (*at, "mac"), "must be a guest's MAC address, like 52:54:00:12:34:56"
                )
            host = StaticHost(
                label,
                address,
                self._reserved(at, "ipv4", body, ipv4, ipaddress.IPv4Address),
                self._reserved(at, "ipv6", body, ipv6, ipaddress.IPv6Address),
            )
            for one in (host.mac, *host.addresses()):
                if one in taken:
                    raise self._source.wrong(at, f"{one} is the gateway's or another host's")
                taken.add(one)
            hosts.append(host)
        self._few(hosts, "host")
        return tuple(hosts)

    def _reserved(
        self,
        at: Key,
        key: str,
        body: dict[str, object],
        ranges: tuple[ipaddress.IPv4Interface, ...] | tuple[ipaddress.IPv6Interface, ...],
        make: Callable[[str], AddressOfT],
    ) -> AddressOfT | None:
        text = body.get(key)
        if text is None:
            return None
        try:
            if not isinstance(text, str) or "%" in text:
                raise ValueError(text)
            address = make(text)
        except ValueError as error:
            raise self._source.wrong((*at, key), "must be an address") from error
        inside = [one.network for one in ranges if address in one.network]
        if not inside:
            raise self._source.wrong((*at, key), f"{address} is in no range of this network")
        ends = (inside[0].network_address, inside[0].broadcast_address)
        if address == ends[0] or (address.version == 4 and address == ends[1]):
            raise self._source.wrong((*at, key), f"{address} is the first or last of its range")
        return address

    def _records(self, hosts: tuple[StaticHost, ...]) -> tuple[tuple[str, Address], ...]:
        table = self._source.tables(self._body, (*self._at, "dns"), leaf=True)["dns"]
        at = (*self._at, "dns")
        found: list[tuple[str, Address]] = []
        for name, value in table.items():
            if not _is_name(name, _RECORD_LABEL):
                raise self._source.wrong(
                    (*at, name), "must be a name of lower-case letters, digits, - and _"
                )
            if any(host.label == name for host in hosts):
                raise self._source.wrong((*at, name), "is a host of this network already")
            for text in value if isinstance(value, list) else [value]:
                try:
                    if not isinstance(text, str) or "%" in text:
                        raise ValueError(text)
                    found.append((name, ipaddress.ip_address(text)))
                except ValueError as error:
                    raise self._source.wrong(
                        (*at, name), "must be an address or several"
                    ) from error
        self._few(found, "dns")
        return tuple(found)

    def _options(self) -> tuple[tuple[int, str], ...]:
        key = "dhcp_options"
        table = self._source.tables(self._body, (*self._at, key), leaf=True)[key]
        found = []
        for word, text in table.items():
            at = (*self._at, key, word)
            number = int(word) if re.fullmatch(r"[1-9][0-9]{0,2}", word) else 0
            if number in _OPTIONS_OF_OURS or number > 255:
                raise self._source.wrong(
                    at, "must be the number of an option that is the administrator's to set"
                )
            if not isinstance(text, str) or not _OPTION_TEXT.fullmatch(text):
                raise self._source.wrong(
                    at, "must be at most 200 of letters, digits and . _ : / @ + , -"
                )
            if reason := option_fault(number, text):
                raise self._source.wrong(at, reason)
            found.append((number, text))
        return tuple(found)

    def _few(self, found: list[StaticHost] | list[tuple[str, Address]], key: str) -> None:
        if len(found) > _MOST_ENTRIES:
            raise self._wrong(key, f"must have at most {_MOST_ENTRIES} entries")


def _is_name(text: str, label: re.Pattern[str]) -> bool:
    labels = text.split(".")
    return len(text) <= _NAME_BYTES and all(label.fullmatch(one) for one in labels)

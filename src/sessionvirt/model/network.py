# SPDX-License-Identifier: LGPL-2.1-or-later
"""A managed network as ``[network.NAME]`` of broker.toml has it, and that text.

What the broker takes is written down here once more, for the user's side shares no code with it:
so that what is printed is taken, for one wrong table closes the whole file. ``broker.toml(5)`` is
the description of both.

Pure. Any text may be put in: what TOML would read as something else is escaped.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from .dhcpoptions import option_fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "MOST_ENTRIES",
    "MOST_RANGES",
    "Address",
    "Host",
    "Mode",
    "Network",
    "Range",
    "bridge_problem",
    "bridge_toml",
    "is_domain",
    "is_record_name",
    "label_of",
    "mapped_name",
    "option_problem",
    "printable",
    "range_problem",
    "to_toml",
]

Range = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Ranges of one family.
MOST_RANGES: Final = 16
#: Static hosts of a network; and names in DNS.
MOST_ENTRIES: Final = 1024
_PREFIX_LENGTHS: Final = range(12, 30)
_UNIQUE_LOCAL: Final = ipaddress.IPv6Network("fc00::/7")
_GLOBAL: Final = ipaddress.IPv6Network("2000::/3")
_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")

_MOST_NAME: Final = 11
#: The users' own private networks have these names.
_TAKEN_NAME: Final = re.compile(r"private|u[0-9]+")
_BRIDGE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_RECORD_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_MOST_DNS_NAME: Final = 200
_OPTION_TEXT: Final = re.compile(r"[A-Za-z0-9._:/@+,-]{0,200}")
#: What DHCP itself is made of (RFC 2132, 9), and netmask, host name, domain and MTU.
_OWN_OPTIONS: Final = frozenset({0, 1, 12, 15, 26, *range(50, 62), 81, 82, 255})

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


class Mode(StrEnum):
    """How a network meets the world."""

    NAT = "nat"
    ROUTE = "route"
    ISOLATED = "isolated"
    OPEN = "open"


@dataclass(frozen=True)
class Host:
    """A guest that has the same addresses always.

    :param label: its name in DNS.
    """

    label: str
    mac: str
    ipv4: str = ""
    ipv6: str = ""


@dataclass(frozen=True)
class Network:
    """One table. Addresses are the host's own, with the prefix length.

    :param mtu: bytes; 0: not said. So with an empty ``domain``.
    :param names_on_host: the host itself asks the network for names below ``domain``.
    :param options: of DHCP, by number.
    :param records: addresses by name, beside the guests'.
    """

    name: str
    mode: Mode = Mode.NAT
    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()
    nat6: bool = False
    domain: str = ""
    names_on_host: bool = True
    mtu: int = 0
    options: tuple[tuple[int, str], ...] = ()
    hosts: tuple[Host, ...] = ()
    records: tuple[tuple[str, tuple[str, ...]], ...] = ()


# -- what the broker takes -------------------------------------------------------------------------


def mapped_name(name: str) -> str:
    """Make a name of a network of any text: 1 to 11 of a-z, 0-9 and _, a letter first."""
    plain = "".join(c if c.isascii() else "_" for c in name).lower()
    plain = re.sub(r"[^a-z0-9_]", "_", plain).strip("_") if plain else ""
    if not plain[:1].isalpha() or _TAKEN_NAME.fullmatch(plain[:_MOST_NAME]):
        plain = f"n_{plain}"
    return plain[:_MOST_NAME].rstrip("_")


def label_of(name: str) -> str:
    """Make a host's name in DNS of any text; empty: there is nothing to make it of."""
    plain = "".join(c if c.isascii() else "-" for c in name.partition(".")[0]).lower()
    return re.sub(r"[^a-z0-9-]+", "-", plain).strip("-")[:63].rstrip("-")


def is_domain(text: str) -> bool:
    """Whether it can be a domain."""
    return _is_dns_name(text, _LABEL)


def is_record_name(text: str) -> bool:
    """Whether it can be a name in DNS; labels may have underscores."""
    return _is_dns_name(text, _RECORD_LABEL)


def _is_dns_name(text: str, label: re.Pattern[str]) -> bool:
    parts = text.split(".")
    return len(text) <= _MOST_DNS_NAME and all(label.fullmatch(part) for part in parts)


def bridge_problem(name: str) -> str:
    """Say why a name is none of a bridge of the local network; empty: it can be one."""
    if not _BRIDGE.fullmatch(name):
        return "it has 1 to 15 letters, digits and _ . -, not . or - first"
    return "the broker's own bridges are called like that" if name.startswith("svn_") else ""


def range_problem(range_: Range, mode: Mode) -> str:
    """Say why a network cannot have a range; empty: it can."""
    network, ip = range_.network, range_.ip
    if ip in (network.network_address, network.broadcast_address):
        return "the address is the first or the last of its range"
    if isinstance(ip, ipaddress.IPv4Address):
        if network.prefixlen not in _PREFIX_LENGTHS:
            return "the prefix length has to be from 12 to 29"
        special = ip.is_loopback or ip.is_multicast or ip.is_link_local or ip.is_reserved
        return "the address is of a special kind" if special or ip in _THIS_NETWORK else ""
    if network.prefixlen != 64:
        return "the prefix length has to be 64"
    if ip in _UNIQUE_LOCAL:
        return ""
    if ip not in _GLOBAL:
        return "the address has to be unique local (fc00::/7) or global (2000::/3)"
    if mode is Mode.NAT:
        return 'a global range is routed: make a network of its own for it, with mode = "route"'
    return ""


def option_problem(number: int, text: str) -> str:
    """Say why an option of DHCP cannot be set; empty: it can."""
    if number in _OWN_OPTIONS or not 0 <= number <= 255:
        return "this number is not for you to set"
    if not _OPTION_TEXT.fullmatch(text):
        return "the value may have letters, digits and . _ : / @ + , - only, 200 at most"
    if fault := option_fault(number, text):
        return f"the value {fault}"
    return ""


# -- the text --------------------------------------------------------------------------------------


def to_toml(network: Network) -> str:
    """Return the tables of a network, with a newline at the end."""
    return "\n".join(_lines(network)) + "\n"


def bridge_toml(name: str) -> str:
    """Return the table that permits a bridge, with a newline at the end."""
    return f"[bridge.{_key(name)}]\n"


def _lines(network: Network) -> Iterator[str]:
    name = _key(network.name)
    yield f"[network.{name}]"
    yield f"mode = {_quoted(network.mode)}"
    for key, ranges in (("ipv4", network.ipv4), ("ipv6", network.ipv6)):
        if ranges:
            yield f"{key} = {_one_or_more(ranges)}"
    if network.nat6:
        yield "nat6 = true"
    if network.domain:
        yield f"domain = {_quoted(network.domain)}"
    if not network.names_on_host:
        yield "names_on_host = false"
    if network.mtu:
        yield f"mtu = {network.mtu}"
    options = {str(number): (text,) for number, text in network.options}
    yield from _table(f"network.{name}.dhcp_options", options)
    for host in network.hosts:
        values = {"mac": host.mac, "ipv4": host.ipv4, "ipv6": host.ipv6}
        said = {key: (value,) for key, value in values.items() if value}
        yield from _table(f"network.{name}.host.{_key(host.label)}", said)
    yield from _table(f"network.{name}.dns", dict(network.records))


def _table(head: str, values: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    if values:
        yield ""
        yield f"[{head}]"
    for key, texts in values.items():
        yield f"{_key(key)} = {_one_or_more(texts)}"


def _one_or_more(texts: tuple[str, ...]) -> str:
    quoted = [_quoted(text) for text in texts]
    return quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"


def _key(text: str) -> str:
    return text if _BARE_KEY.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    """A basic string of TOML 1.0: no control character but as an escape."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    escaped = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", escaped)
    return f'"{escaped}"'


def printable(text: str, most: int = 80) -> str:
    """Return the text as a comment may have it: one line of print, of bounded length."""
    short = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``<filterref>``: libvirt's stock filters, as the few words that the broker knows.

What each is for is libvirt's (src/nwfilter/xml/): chains of rules, where what nothing forbids
passes. Most of what they forbid no guest of ours can do anyway, for an interface sends from its own
addresses only, and is no DHCP server and no router, whoever asks for what. So a filter here adds
words, or nothing, and never takes any of that away: :func:`remarks` says which.

Where the two differ, this is the stricter one, but for what no network works without: ARP,
neighbour discovery, MLD and DHCP pass a filter that would forbid them by the way
(``no-ipv6-multicast``, ``no-mac-broadcast``, ``clean-traffic-gateway``).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sessionvirt.xmlmap import Element, attr, children, mapped
from sessionvirt.xmlvalues import Pattern

from .addresses import parse_mac
from .filter import GuestFilter

if TYPE_CHECKING:
    from .interface import Interface

__all__ = ["STOCK", "FilterParameter", "FilterRef", "check_filterref", "guest_filter", "remarks"]

_NAME: Final = Pattern(r"[A-Za-z0-9_.-]{1,64}", "letters, digits and _ . -, at most 64")


@mapped
class FilterParameter(Element):
    """``<parameter>``; several with one name are a list."""

    name: str = attr(
        "@name", Pattern(r"[A-Za-z_][A-Za-z0-9_]{0,63}", "letters, digits and _"), required=True
    )
    value: str = attr(
        "@value", Pattern(r"[A-Za-z0-9_.:/-]{1,64}", "letters, digits and _ . : / -"), required=True
    )


@mapped
class FilterRef(Element):
    """``<filterref>``."""

    filter: str = attr("@filter", _NAME, required=True)
    parameters: tuple[FilterParameter, ...] = children("parameter", FilterParameter)

    def values(self, name: str) -> tuple[str, ...]:
        """Those of a parameter."""
        return tuple(one.value for one in self.parameters if one.name == name)


_NOTHING: Final = GuestFilter()


@dataclass(frozen=True)
class _Stock:
    """One of libvirt's filters.

    :param words: what it forbids.
    :param binds: the parameter with the only addresses that the guest may send from.
    :param binds6: likewise of IPv6, where IPV6 is given; on a bridge, where nobody else says which
        are the guest's, there is no IPv6 without it.
    :param gateway: it may talk to the parameter GATEWAY_MAC only.
    :param remark: what of it is so anyway, or is not as its name says.
    """

    words: GuestFilter = _NOTHING
    binds: str = ""
    binds6: bool = False
    gateway: bool = False
    remark: str = ""


_PERMITS: Final = "it permits only, and by itself forbids nothing"
_ALWAYS: Final = "that is so on every interface"
_ANNOUNCES: Final = (
    "the announcement that QEMU sends after a migration is dropped on every interface, whatever "
    "this permits"
)
_SERVER: Final = (
    "it permits the answers of a DHCP server, which pass anyway, and keeps no other server's away; "
    "a guest is itself no DHCP server on any interface"
)
_GATEWAY: Final = (
    f"{_ANNOUNCES}; on a bridge there is IPv6 from the addresses of its parameter IPV6 only"
)
_ALL: Final = GuestFilter(deny=("arp", "ipv4", "ipv6", "rarp", "other"))
_BINDS: Final = "no guest sends from another's address on a managed network"

#: By name; all that libvirt installs.
STOCK: Final[dict[str, _Stock]] = {
    "allow-arp": _Stock(remark=_PERMITS),
    "allow-dhcp": _Stock(remark=_PERMITS),
    "allow-dhcp-server": _Stock(remark=_SERVER),
    "allow-dhcpv6": _Stock(remark=_PERMITS),
    "allow-dhcpv6-server": _Stock(remark=_SERVER),
    "allow-incoming-ipv4": _Stock(remark=_PERMITS),
    "allow-incoming-ipv6": _Stock(remark=_PERMITS),
    "allow-ipv4": _Stock(remark=_PERMITS),
    "allow-ipv6": _Stock(remark=_PERMITS),
    "clean-traffic": _Stock(
        GuestFilter(deny=("ipv6", "rarp", "other")), binds="IP", remark=_ANNOUNCES
    ),
    "clean-traffic-gateway": _Stock(
        GuestFilter(deny=("rarp",)), binds="IP", binds6=True, gateway=True, remark=_GATEWAY
    ),
    "no-arp-ip-spoofing": _Stock(binds="IP", remark=_BINDS),
    "no-arp-mac-spoofing": _Stock(remark=_ALWAYS),
    "no-arp-spoofing": _Stock(binds="IP", remark=_BINDS),
    "no-ip-multicast": _Stock(GuestFilter(no_multicast4=True)),
    "no-ip-spoofing": _Stock(binds="IP", remark=_BINDS),
    "no-ipv6-multicast": _Stock(
        GuestFilter(no_multicast6=True), remark="neighbour discovery, MLD and DHCPv6 pass"
    ),
    "no-ipv6-spoofing": _Stock(binds="IPV6", remark=_BINDS),
    "no-mac-broadcast": _Stock(GuestFilter(no_broadcast=True), remark="DHCP passes"),
    "no-mac-spoofing": _Stock(
        remark=f"{_ALWAYS}, and so it is with IP addresses where it has some"
    ),
    "no-other-l2-traffic": _Stock(_ALL, remark="by itself it lets nothing pass at all"),
    "no-other-rarp-traffic": _Stock(GuestFilter(deny=("rarp",))),
    "qemu-announce-self": _Stock(GuestFilter(deny=("rarp",)), remark=_ANNOUNCES),
    "qemu-announce-self-rarp": _Stock(remark=_ANNOUNCES),
}

#: Parameters of these filters, and of libvirt itself. The last two have no effect here.
_KNOWN: Final = ("IP", "IPV6", "GATEWAY_MAC", "DHCPSERVER", "CTRL_IP_LEARNING")


def check_filterref(nic: Interface) -> None:
    """Refuse a filter that is none, or cannot be on this interface.

    :raise DefinitionError: names the element, and what to write instead.
    """
    ref = nic.filterref
    if ref is None:
        return
    reasons = {
        "user": "a user-mode network has no place for a filter",
        "direct": "the frames of a macvtap device pass no bridge, where filters are",
        "hostdev": "the frames of a host's device do not pass the host",
    }
    if nic.type.value in reasons:
        ref.where.refuse(
            f"does not go with type='{nic.type}': {reasons[nic.type.value]}",
            "Write type='network' or type='bridge', or leave it out.",
        )
    if ref.filter not in STOCK:
        ref.at("@filter").refuse(
            f"there is no filter '{ref.filter}'",
            "There are libvirt's own: " + ", ".join(STOCK) + ". For lists of your own there are "
            "--deny-outbound, --allow-outbound, --deny-inbound and --allow-inbound.",
        )
    for parameter in ref.parameters:
        if parameter.name not in _KNOWN:
            parameter.at("@name").refuse(
                "is the interface's own"
                if parameter.name == "MAC"
                else f"no filter has a parameter '{parameter.name}'",
                "Leave it out; there are IP, IPV6, GATEWAY_MAC and DHCPSERVER.",
            )
        _check_value(parameter)
    _check_given(nic, ref)


def _check_value(parameter: FilterParameter) -> None:
    readers = {
        "IP": ipaddress.IPv4Address,
        "IPV6": ipaddress.IPv6Address,
        "GATEWAY_MAC": parse_mac,
    }
    try:
        readers.get(parameter.name, str)(parameter.value)
    except ValueError as error:
        parameter.at("@value").refuse(
            f"is none that {parameter.name} can have: {error}", "Write one address."
        )


def _check_given(nic: Interface, ref: FilterRef) -> None:
    """What it cannot do without; libvirt would learn an address from what the guest sends."""
    stock = STOCK[ref.filter]
    if stock.binds and nic.bridge is not None and not ref.values(stock.binds):
        ref.where.refuse(
            f"'{ref.filter}' needs the guest's address, which is not learned from what it sends",
            f"Write <parameter name='{stock.binds}' value='...'/>; on a managed network "
            "there is no need to.",
        )
    if stock.gateway and not ref.values("GATEWAY_MAC"):
        ref.where.refuse(
            f"'{ref.filter}' needs the gateway's MAC address",
            "Write <parameter name='GATEWAY_MAC' value='...'/>.",
        )


def guest_filter(nic: Interface) -> GuestFilter:
    """What an interface's ``<filterref>`` forbids; one that was checked."""
    ref = nic.filterref
    if ref is None:
        return GuestFilter()
    stock = STOCK[ref.filter]
    bound = ref.values(stock.binds) if stock.binds else ()
    words = stock.words
    if stock.binds6:
        # libvirt's lets any IPv6 through to the gateway's MAC address, and no neighbour discovery
        # but with that. That passes here, so what it may say of whom is to be known.
        bound6 = ref.values("IPV6")
        if nic.bridge is not None and not bound6:
            words = replace(words, deny=("ipv6", *words.deny))
        bound = (*bound, *bound6)
    return replace(
        words,
        addresses=tuple(str(ipaddress.ip_address(one)) for one in bound),
        only_mac=tuple(str(parse_mac(one)) for one in ref.values("GATEWAY_MAC") if stock.gateway),
    )


def remarks(nic: Interface) -> tuple[str, ...]:
    """What an interface's filter does that its name does not say."""
    ref = nic.filterref
    if ref is None:
        return ()
    stock = STOCK[ref.filter]
    used = {stock.binds, "IPV6" if stock.binds6 else "", "GATEWAY_MAC" if stock.gateway else ""}
    idle = sorted({one.name for one in ref.parameters} - used)
    found = [stock.remark] if stock.remark else []
    found += [f"its parameter {name} has no effect" for name in idle]
    return tuple(f"{ref.filter}: {one}" for one in found)

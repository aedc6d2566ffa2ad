# SPDX-License-Identifier: LGPL-2.1-or-later
"""dnsmasq's configuration of one network, and the lines that make a guest known to it.

Pure text of what was checked before (``networkconfig.py``, ``addresses.py``, ``guestnames.py``):
dnsmasq's files know no escaping, so nothing comes here that would need any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .addresses import number_count
from .networkconfig import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .networkconfig import Network

#: Seconds between router advertisements, and how long one is good (RFC 4861, 6.2.1).
_ADVERTISED_EVERY, _ROUTER_LIFETIME = 60, 1800
_ROUTER, _CLASSLESS_ROUTES = 3, 121


def configuration(directory: Path, network: Network, *, ipv6_out: bool) -> str:
    """The file; see dnsmasq(8) for each line.

    :param ipv6_out: whether the gateway is a way out for IPv6.
    """
    lines = [
        f"interface={network.bridge}",
        "except-interface=lo",
        "bind-dynamic",
        "no-hosts",
        "domain-needed",
        "bogus-priv",
        "pid-file=",
        "leasefile-ro",
        "dhcp-authoritative",
        "dhcp-ignore-names",  # a guest is called what it was given, not what it says
        "no-ping",
        f"dhcp-lease-max={number_count(network)}",
        f"dhcp-hostsdir={directory / 'hosts'}",
        f"hostsdir={directory / 'names'}",
        *_dns(network),
        *_dhcp4(network),
        *_dhcp6(network, ipv6_out=ipv6_out),
    ]
    return "\n".join(lines) + "\n"


def _dns(network: Network) -> Iterator[str]:
    if network.domain:
        # Names of the network are asked for nowhere else.
        yield f"domain={network.domain}"
        yield f"local=/{network.domain}/"
    if network.mode is Mode.ISOLATED:
        # A question that is passed on is a way out.
        yield "no-resolv"
    for host in network.hosts:
        for address in host.addresses():
            yield f"host-record={_names(network.domain, host.label, ',')},{address}"
    for name, address in network.records:
        yield f"host-record={_names(network.domain, name, ',')},{address}"


def _dhcp4(network: Network) -> Iterator[str]:
    if not network.ipv4:
        return
    chosen = {number for number, _ in network.options}
    for number, one in enumerate(network.ipv4):
        prefix = one.network
        yield f"dhcp-range=set:r{number},{prefix.network_address},static,{prefix.netmask},1h"
        others = [other.network for other in network.ipv4 if other is not one]
        if others and not {_ROUTER, _CLASSLESS_ROUTES} & chosen:
            # The other ranges are on the same wire: through the gateway nobody reaches anybody. Who
            # takes 121 leaves 3 aside (RFC 3442), so the default route is in it, too.
            routes = [f"{other},0.0.0.0" for other in others]
            if network.mode is not Mode.ISOLATED:
                routes.insert(0, f"0.0.0.0/0,{one.ip}")
            yield f"dhcp-option=tag:r{number},{_CLASSLESS_ROUTES},{','.join(routes)}"
    yield f"dhcp-option=option:mtu,{network.mtu}"
    if network.mode is Mode.ISOLATED and _ROUTER not in chosen:
        yield f"dhcp-option={_ROUTER}"
    for number, text in network.options:
        yield f"dhcp-option={number},{text}".rstrip(",")


def _dhcp6(network: Network, *, ipv6_out: bool) -> Iterator[str]:
    for one in network.ipv6:
        yield f"dhcp-range={one.network.network_address},static,64,1h"
    if network.ipv6:
        # Addresses by DHCPv6; lifetime 0: and no default route that leads nowhere.
        lifetime = _ROUTER_LIFETIME if ipv6_out else 0
        yield "enable-ra"
        yield f"ra-param={network.bridge},{_ADVERTISED_EVERY},{lifetime}"


def host_line(mac: str, ipv4: str, ipv6: tuple[str, ...]) -> str:
    """For ``dhcp-hostsdir``."""
    return ",".join(filter(None, (mac, ipv4, *(f"[{one}]" for one in ipv6)))) + "\n"


def name_lines(domain: str, name: str, ipv4: str, ipv6: tuple[str, ...]) -> str:
    """For ``hostsdir``; the first name is what an address is called."""
    names = _names(domain, name, " ")
    return "".join(f"{address} {names}\n" for address in filter(None, (ipv4, *ipv6)))


def _names(domain: str, name: str, separator: str) -> str:
    """The name with the domain, and as it is."""
    is_whole = not domain or name.endswith(f".{domain}")
    return name if is_whole else f"{name}.{domain}{separator}{name}"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of libvirt's network XML is understood, and what is said of the rest.

Tables by path without a leading slash: elements, and ``.../@attribute``. Who adds a path to
:data:`UNDERSTOOD` reads it in :mod:`.networkxml`; the rest is left out, and named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["DIFFERENT", "INSTEAD", "NOTHING", "UNDERSTOOD", "Known"]


@dataclass(frozen=True)
class Known:
    """An element that is understood.

    :param attributes: those that are read.
    :param many: several of it may stand beside each other.
    """

    attributes: frozenset[str]
    many: bool = False


def _one(*attributes: str) -> Known:
    return Known(frozenset(attributes))


def _many(*attributes: str) -> Known:
    return Known(frozenset(attributes), many=True)


#: Elements that are read, or have inside them what is.
UNDERSTOOD: Final[dict[str, Known]] = {
    "network": _one(),
    "network/name": _one(),
    "network/forward": _one("mode"),
    "network/forward/nat": _one("ipv6"),
    "network/bridge": _one("name"),
    "network/mtu": _one("size"),
    "network/domain": _one("name", "register"),
    "network/ip": _many("address", "family", "netmask", "prefix"),
    "network/ip/dhcp": _one(),
    "network/ip/dhcp/range": _many("start", "end"),
    "network/ip/dhcp/host": _many("mac", "name", "ip"),
    "network/dns": _one(),
    "network/dns/host": _many("ip"),
    "network/dns/host/hostname": _many(),
    "network/dnsmasq:options": _one(),
    "network/dnsmasq:options/dnsmasq:option": _many("value"),
}

#: What is read and means something else here.
DIFFERENT: Final = {
    "network/ip/dhcp/range": "guests get addresses of the whole range of the network",
    "mode/bridge": "a guest names the bridge itself, <interface type='bridge'> with <source "
    "bridge='BRIDGE'/>; polkit is asked where broker.toml does not permit it to a user",
    "nat/ipv6": "libvirt routes IPv6 here; without nat6 = true it does not leave this host",
}

_PORT: Final = "every guest's frames are filtered here: other users' guests are not reached"
_LEASE: Final = "a guest has its address until it ends"
_BY_ROUTES: Final = "a network does not choose it: routes decide by which interface packets leave"
_BOOT: Final = "options 66 and 67 say the same: [network.NAME.dhcp_options]"

#: What to do about what is left out.
INSTEAD: Final = {
    "mode/other": "it is the host's own matter: the broker makes nothing of this network",
    "mode/direct": "a guest names the host's interface itself: <interface type='direct'> with "
    "<source dev='...' mode='MODE'/>",
    "mode/hostdev": "a guest names the device itself: <hostdev>; see 'sessionvirt devices'",
    "network/@connections": "it is a number of libvirt's own",
    "network/@ipv6": "guests may use the addresses that the network gives them",
    "network/@trustGuestRxFilters": "a guest uses the MAC address that it was given",
    "network/uuid": "a network has its name only",
    "network/title": "write it as a comment",
    "network/description": "write it as a comment",
    "network/metadata": "write it as a comment",
    "network/mac": "the bridge has an address that the broker chooses",
    "network/bridge/@stp": "no bridge is below another here: it is off",
    "network/bridge/@delay": "it is none: a guest is reached at once",
    "network/bridge/@zone": "the broker's own rules decide; see 'sessionvirt doctor' for others'",
    "network/bridge/@macTableManager": "a guest's frames come from the MAC address it was given",
    "network/forward/@dev": _BY_ROUTES,
    "network/forward/@managed": "it is for hostdev",
    "network/forward/nat/address": "the source is that of the interface by which packets leave",
    "network/forward/nat/port": "the kernel chooses ports of its own range",
    "network/forward/interface": _BY_ROUTES,
    "network/forward/pf": "name a virtual function in the guest's definition: <hostdev>",
    "network/forward/address": "name the device in the guest's definition: <hostdev>",
    "network/forward/driver": "see 'sessionvirt devices' for the drivers of VFIO",
    "network/bandwidth": "bandwidth is not limited here; tc(8) can, at the bridge",
    "network/vlan": "the guest asks for it: <vlan> in its <interface>, on a LAN bridge",
    "network/port": _PORT,
    "network/portgroup": "there are no groups of ports: write what it says into the guest's "
    "<interface>, or make a network for it",
    "network/virtualport": "there are no virtual ports (Open vSwitch, 802.1Qbg, 802.1Qbh); a Linux "
    "bridge is permitted by [bridge.NAME]",
    "network/route": "set routes by the host's own means",
    "network/ip/@localPtr": "addresses of the network are looked up locally always",
    "network/ip/tftp": "no files are served here",
    "network/ip/dhcp/bootp": _BOOT,
    "network/ip/dhcp/range/lease": _LEASE,
    "network/ip/dhcp/host/lease": _LEASE,
    "network/ip/dhcp/host/@id": "a host is known by its MAC address, also for DHCPv6",
    "network/domain/@localOnly": "names of the domain are never asked for elsewhere",
    "network/dns/@enable": "there is DNS on every network",
    "network/dns/@forwardPlainNames": "names without a dot are not asked for elsewhere",
    "network/dns/forwarder": "names are asked for where the host asks: its /etc/resolv.conf",
    "network/dns/txt": "of DNS there are only addresses: [network.NAME.dns]",
    "network/dns/srv": "of DNS there are only addresses: [network.NAME.dns]",
    "network/dnsmasq:options": "dnsmasq is the broker's to configure; DHCP's options that have "
    "a number are [network.NAME.dhcp_options]",
}

#: What is said of what no table has.
NOTHING: Final = "there is nothing like it here"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bridge of the LAN: whether a guest may be put on it as it is now, and in which VLAN.

It is the administrator's. Nothing here makes, changes or removes one, and it is known by its
ifindex: another one of the same name is another one.

Who names a bridge that broker.toml does not offer learns nothing, not even whether it is there. Of
one that it offers nothing is to be hidden, so the error says what is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import DeviceUnsafe, NotFound, NotSupported
from .kind import Offer

if TYPE_CHECKING:
    from pathlib import Path

    from .bridges import LanBridge
    from .config import Configuration
    from .host import Host
    from .limits import Share
    from .netlink import Link
    from .wire import BridgeName

#: NET_ADDR_SET in include/uapi/linux/netdevice.h: the address was set, not taken from a port.
_NET_ADDR_SET = "3"
#: What people take for a bridge, by the driver's word (struct rtnl_link_ops, kind).
_NO_BRIDGES = {
    "": "an ordinary interface",
    "bond": "a bond",
    "macvlan": "a macvlan interface",
    "macvtap": "a macvtap interface",
    "openvswitch": "an Open vSwitch bridge",
    "team": "a team of interfaces",
    "tun": "a TUN or TAP device",
    "veth": "one end of a veth pair",
    "vlan": "a VLAN interface",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a guest is put.

    :param vlan: 0: the bridge's default one, or none where it does not filter.
    :param default: that default one; empty: a VLAN was asked for, or the bridge does not filter.
    """

    bridge: BridgeName
    ifindex: int
    mtu: int
    vlan: int
    default: str = ""


def find_place(
    name: BridgeName, vlan: int, configuration: Configuration, host: Host, sys_class_net: Path
) -> tuple[Place, LanBridge]:
    """A bridge as it is now, and what broker.toml says of it.

    :raise NotFound, NotSupported, DeviceUnsafe: no guest can be put there.
    """
    offered = configuration.bridges.get(name)
    if offered is None:
        raise NotFound(f"bridge: {name} is not a bridge that broker.toml offers")
    link = host.links.by_name(name)
    if link is None:
        raise NotFound(f"bridge: broker.toml offers {name}, and this host has no such interface")
    if link.name != name:
        # The kernel finds interfaces by their alternative names, too, and sysfs does not.
        raise NotFound(
            f"bridge: {name} is only another name of {link.name}; broker.toml must offer that one"
        )
    if link.kind != "bridge":
        raise NotSupported(
            f"bridge: {name} is {_NO_BRIDGES.get(link.kind, 'an interface of another kind')};"
            " a guest can only be put on a bridge of the kernel's own (type bridge)"
        )
    attributes = sys_class_net / name
    if _read(attributes / "addr_assign_type") != _NET_ADDR_SET:
        raise DeviceUnsafe(
            f"bridge: {name} has no MAC address of its own, so a guest could take it over;"
            " an administrator must set one"
        )
    default = _check_vlan(link, vlan, offered, attributes / "bridge")
    return Place(name, link.ifindex, link.mtu, vlan, default), offered


def offer(
    place: Place,
    offered: LanBridge,
    address: str,
    details: tuple[tuple[str, str], ...],
    share: Share,
) -> Offer:
    """A place for a guest with this MAC address.

    :param details: of the guest.
    """
    bridge, vlan = f'the bridge "{place.bridge}"', ""
    where: tuple[tuple[str, str], ...] = (("bridge", place.bridge),)
    if place.vlan:
        where, vlan = (*where, ("vlan", str(place.vlan))), " in VLAN $(vlan)"
        bridge += f" in VLAN {place.vlan}"
    return Offer(
        action="bridge-attach",
        sentence='Authentication is required to connect the virtual machine "$(vm)" to the local'
        f' network by the bridge "$(bridge)"{vlan}, as a host of its own ($(mac))',
        details=(*details, *where),
        summary=f"a place on the local network by {bridge} ({address})",
        share=share,
        facts=(place.bridge, place.ifindex, place.vlan, place.default, address),
        permit=offered.permit,
    )


def is_filtering(bridge: Path) -> bool:
    """Whether a bridge keeps VLANs apart.

    :param bridge: its directory ``bridge`` in sysfs.
    """
    return _read(bridge / "vlan_filtering") == "1"


def _check_vlan(link: Link, vlan: int, offered: LanBridge, bridge: Path) -> str:
    """:return: the VLAN that a guest is in who asks for none; empty: this one does, or all are."""
    if vlan and vlan not in offered.vlans:
        raise NotFound(f"vlan: broker.toml does not offer VLAN {vlan} on {link.name}")
    filtering = is_filtering(bridge)
    if vlan and not filtering:
        raise NotSupported(
            f"vlan: {link.name} does not filter VLANs, so a guest would be in all of them; an"
            " administrator must turn it on (vlan_filtering), once every port has its VLANs"
        )
    if vlan or not filtering:
        return ""
    default = _read(bridge / "default_pvid")
    if default == "0":
        raise NotSupported(
            f"bridge: {link.name} filters VLANs and has no default one; ask for one of them"
        )
    # Who says which VLANs may be had does not mean the one that nobody named as well.
    if offered.vlans and default not in map(str, offered.vlans):
        raise NotFound(
            f"vlan: broker.toml does not offer VLAN {default}, the default one of {link.name};"
            " ask for one that it offers"
        )
    return default


def _read(attribute: Path) -> str:
    """Empty where there is none: it is gone, or the kernel has no VLANs for bridges."""
    try:
        return attribute.read_text(encoding="ascii").strip()
    except OSError:
        return ""

# SPDX-License-Identifier: LGPL-2.1-or-later
"""An interface of the host's that guests share with it: whether one may be put on it as it is now.

It is the administrator's. Nothing here makes or changes one, and it is known by its ifindex. Who
names one that broker.toml does not offer learns nothing; of one that it offers is said what is
wrong with it, as of a bridge (``lan.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import NotFound, NotSupported
from .kind import Offer

if TYPE_CHECKING:
    from pathlib import Path

    from .config import Configuration
    from .direct import DirectInterface, DirectMode
    from .host import Host
    from .limits import Share
    from .wire import DeviceName

_ARPHRD_ETHER = "1"
_IFF_UP = 0x1
#: What has a wire, or stands for one, by the driver's word; hardware has none.
_ETHERNET = frozenset({"", "bond", "dummy", "hsr", "macsec", "team", "veth", "vlan"})


@dataclass(frozen=True, slots=True)
class Lower:
    """The interface below a guest's.

    :param mtu: bytes; a guest's follows it.
    """

    device: DeviceName
    ifindex: int
    mtu: int
    mode: DirectMode


def find_lower(
    name: DeviceName,
    mode: DirectMode,
    configuration: Configuration,
    host: Host,
    sys_class_net: Path,
) -> tuple[Lower, DirectInterface]:
    """An interface as it is now, and what broker.toml says of it.

    :raise NotFound, NotSupported: no guest can be put there.
    """
    offered = configuration.directs.get(name)
    if offered is None:
        raise NotFound(f"device: {name} is not an interface that broker.toml offers directly")
    if mode not in offered.modes:
        raise NotFound(f"mode: broker.toml does not offer the mode {mode.value} on {name}")
    link = host.links.by_name(name)
    if link is None:
        raise NotFound(f"device: broker.toml offers {name}, and this host has no such interface")
    if link.name != name:
        raise NotFound(
            f"device: {name} is only another name of {link.name}; broker.toml must offer that one"
        )
    if reason := _unfit(link.kind, link.master, sys_class_net / name):
        raise NotSupported(f"device: {name} {reason}")
    return Lower(name, link.ifindex, link.mtu, mode), offered


def _unfit(kind: str, master: int, attributes: Path) -> str:
    """Why nothing can share it; empty: it can be."""
    if kind == "bridge":
        return "is a bridge, which guests join as one: ask for it as a bridge, in [bridge.NAME]"
    if (attributes / "wireless").exists() or (attributes / "phy80211").exists():
        return (
            "is wireless: an access point takes frames from the address that logged in and no"
            " other; ask for a managed network"
        )
    if kind not in _ETHERNET or _read(attributes / "type") != _ARPHRD_ETHER:
        return "is no Ethernet interface with a wire, so no address but its own can be on it"
    if master:
        return "is a port of a bridge or bond already: what it is a port of must be offered"
    try:
        is_up = int(_read(attributes / "flags"), 16) & _IFF_UP
    except ValueError:
        is_up = 0
    return "" if is_up else "is down; an administrator must set it up"


def offer(
    lower: Lower,
    offered: DirectInterface,
    address: str,
    details: tuple[tuple[str, str], ...],
    share: Share,
) -> Offer:
    """A place for a guest with this MAC address.

    :param details: of the guest.
    """
    mode = lower.mode.value
    return Offer(
        action="direct-attach",
        sentence='Authentication is required to connect the virtual machine "$(vm)" to the local'
        ' network of the interface "$(device)", as a host of its own ($(mac), mode $(mode))',
        details=(*details, ("device", lower.device), ("mode", mode)),
        summary=f'a place on the local network of the interface "{lower.device}" ({address},'
        f" mode {mode})",
        share=share,
        facts=(lower.device, lower.ifindex, mode, address),
        permit=offered.permit,
    )


def _read(attribute: Path) -> str:
    """Empty where there is none: it is gone."""
    try:
        return attribute.read_text(encoding="ascii").strip()
    except OSError:
        return ""

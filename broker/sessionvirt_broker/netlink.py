# SPDX-License-Identifier: LGPL-2.1-or-later
"""Links of the host by rtnetlink: look up, make, attach, delete. Works by ifindex.

pyroute2's synchronous IPRoute, on the worker thread only. It is imported with the first use, for
questions need none of it.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import sys
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from . import htb
from .errors import NotSupported

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Iterable, Mapping

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
#: RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT (linux/rtnetlink.h). IPv6 has one of these for
#: everything, by the interface lo.
_TO_NOWHERE = frozenset({6, 7, 8})
# BRIDGE_VLAN_INFO_* of linux/if_bridge.h.
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 0x2, 0x4, 0x8, 0x10
_ABSENT = frozenset({errno.ENODEV, errno.ENOENT, errno.EINVAL})


class PortsExhausted(OSError):
    """A bridge has a port for each number that there is (BR_MAX_PORTS in br_private.h)."""


@dataclass(frozen=True, slots=True)
class Link:
    """One interface, as the kernel told it a moment ago.

    :param kind: the driver's word: ``bridge``, ``tun``, ``veth``; empty for hardware.
    :param master: ifindex of the bridge or bond that it is a port of; 0: none.
    """

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int
    master: int


@dataclass(frozen=True, slots=True)
class VirtualFunction:
    """What a card's driver says of one of its virtual functions (struct ifla_vf_* in if_link.h).

    :param vlan: the tag that it adds and takes away, with ``qos`` the priority in it; 0: none.
    :param proto: of the tag: 0x8100, or 0x88a8 (802.1ad).
    :param spoofchk: 1: nothing leaves it but from ``mac``; 0: anything; -1: it is not said.
    :param trust: 1: it may change its address by itself; 0, -1: likewise.
    """

    mac: str
    vlan: int
    qos: int
    proto: int
    spoofchk: int
    trust: int


@dataclass(frozen=True, slots=True)
class Card:
    """An interface with virtual functions, by number."""

    mac: str
    functions: Mapping[int, VirtualFunction]


class Links:
    """The netlink socket of the worker thread."""

    def __init__(self) -> None:
        self._open: Any = None

    @property
    def _ip(self) -> Any:
        if self._open is None:
            self._open = _iproute()()
        return self._open

    def close(self) -> None:
        """Close the socket."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def by_name(self, name: str) -> Link | None:
        """The interface of this name, or None."""
        return self._get(ifname=name)

    def by_index(self, ifindex: int) -> Link | None:
        """The interface of this index, or None."""
        return self._get(index=ifindex)

    def index_of(self, name: str) -> int:
        """The index of an interface; much cheaper than :meth:`by_name`.

        :raise OSError: there is none.
        """
        return socket.if_nametoindex(name)

    def _get(self, **which: int | str) -> Link | None:
        message = self._message(**which)
        return None if message is None else _link(message)

    def _message(self, **which: int | str) -> Any:
        """The kernel's message about one interface, or None."""
        try:
            messages = tuple(self._ip.link("get", **which))
        except Exception as error:
            if getattr(error, "code", None) in _ABSENT:
                return None
            raise
        return messages[0] if messages else None

    def card(self, ifindex: int) -> Card | None:
        """The virtual functions of an interface; None: there is no such interface."""
        # RTEXT_FILTER_VF and RTEXT_FILTER_SKIP_STATS: with counters, those of a card with many
        # functions do not fit into one attribute.
        message = self._message(index=ifindex, ext_mask=0x01 | 0x08)
        if message is None:
            return None
        found = message.get_attr("IFLA_VFINFO_LIST")
        functions = (_function(one) for one in (found.get_attrs("IFLA_VF_INFO") if found else ()))
        return Card(str(message.get_attr("IFLA_ADDRESS") or ""), dict(functions))

    def set_function(self, ifindex: int, number: int, setting: str, value: str | int) -> None:
        """Set one thing of a virtual function.

        :param setting: "mac", "spoofchk" or "trust".
        :raise OSError: the card's driver refuses.
        """
        self._set_function(ifindex, {"vf": number, setting: value})

    def set_function_vlan(self, ifindex: int, number: int, vlan: int, qos: int) -> None:
        """Set its VLAN, of 802.1Q; 0: none.

        :raise OSError: likewise.
        """
        self._set_function(ifindex, {"vf": number, "vlan": {"vlan": vlan, "qos": qos}})

    def _set_function(self, ifindex: int, words: dict[str, object]) -> None:
        # PRIVILEGE: CAP_NET_ADMIN; what a card lets a function of it send and receive.
        try:
            self._ip.link("set", index=ifindex, vf=words)
        except Exception as error:
            _refused(error)

    def create_bridge(self, name: str, *, mac: str, mtu: int) -> int:
        """Make a bridge with an address of its own that no port's can replace.

        It does not look for members of groups (IGMP and MLD snooping): whom it takes for one, and
        for a router, is what guests say.

        :return: its ifindex.
        :raise FileExistsError: somebody has that name already.
        """
        # PRIVILEGE: CAP_NET_ADMIN; a new interface in the host's network namespace.
        try:
            self._ip.link(
                "add",
                ifname=name,
                kind="bridge",
                address=mac,
                br_stp_state=0,
                br_forward_delay=0,
                br_mcast_snooping=0,
            )
        except Exception as error:
            if getattr(error, "code", None) == errno.EEXIST:
                raise FileExistsError(name) from error
            raise
        link = self.by_name(name)
        if link is None:
            raise OSError(errno.ENODEV, "the bridge vanished", name)
        self._ip.link("set", index=link.ifindex, mtu=mtu)
        return link.ifindex

    def add_address(self, ifindex: int, interface: ipaddress.IPv4Interface) -> None:
        """Give the interface an IPv4 address."""
        # PRIVILEGE: CAP_NET_ADMIN; a route of the host to the network appears with it.
        self._ip.addr(
            "add",
            index=ifindex,
            address=str(interface.ip),
            prefixlen=interface.network.prefixlen,
            broadcast=str(interface.network.broadcast_address),
        )

    def add_address6(self, ifindex: int, interface: ipaddress.IPv6Interface) -> None:
        """Give the interface an IPv6 address, usable at once (no duplicate can be there yet)."""
        # PRIVILEGE: CAP_NET_ADMIN. 0x02: IFA_F_NODAD.
        self._ip.addr(
            "add",
            family=socket.AF_INET6,
            index=ifindex,
            address=str(interface.ip),
            prefixlen=interface.network.prefixlen,
            flags=0x02,
        )

    def create_macvtap(self, name: str, ifindex: int, *, lower: int, mode: str, mac: str) -> None:
        """Make a macvtap, down, on another interface.

        :param ifindex: that it shall have.
        :param lower: the other's.
        :raise OSError: the kernel refuses.
        """
        # PRIVILEGE: CAP_NET_ADMIN; a new interface in the host's network namespace.
        try:
            self._ip.link(
                "add",
                ifname=name,
                index=ifindex,
                kind="macvtap",
                link=lower,
                macvtap_mode=mode,
                address=mac,
            )
        except Exception as error:
            _refused(error)

    def up_for_groups(self, ifindex: int) -> None:
        """Set a macvtap up, for frames to every group: which its guest is in nobody is told.

        :raise OSError: its address is in use on the interface below (EADDRINUSE).
        """
        # PRIVILEGE: CAP_NET_ADMIN; frames flow. IFF_UP, and IFF_ALLMULTI: without, the kernel gives
        # it none to a group that the device itself has not joined, and IPv6 needs one.
        try:
            self._ip.link("set", index=ifindex, flags=0x201, change=0x201)
        except Exception as error:
            _refused(error)

    def up(self, ifindex: int) -> None:
        """Set it up."""
        self._ip.link("set", index=ifindex, state="up")

    def attach(
        self,
        ifindex: int,
        *,
        bridge: int,
        mac: str,
        guest: str,
        mtu: int,
        vlan: int = 0,
        isolated: bool = False,
    ) -> None:
        """Make it a port of the bridge for one guest, and up.

        The port learns nothing: LLDP's frames teach a bridge behind the back of every hook. A BPDU
        shuts the port (with STP on it would pass the filter, too).

        :param mac: the port's own address, which is not the guest's.
        :param vlan: the only one that it is in, untagged; 0: what the bridge puts a new port in.
        :param isolated: apart from other ports that are so (br_skb_isolated() in br_private.h).
        :raise PortsExhausted: the bridge has no number left for it.
        :raise FileExistsError: ``guest`` is known on that bridge: its own address, or a host's.
        """
        # PRIVILEGE: CAP_NET_ADMIN; frames flow from the last line on.
        # In this order: the kernel takes address and MTU before the master (do_setlink() in
        # net/core/rtnetlink.c).
        try:
            self._ip.link("set", index=ifindex, address=mac, mtu=mtu, master=bridge)
        except Exception as error:
            if getattr(error, "code", None) == errno.EXFULL:
                raise PortsExhausted from error
            raise
        if vlan:
            self._only_vlan(ifindex, vlan)
        # After the VLAN: without one named, the address is put into each that the port is in
        # (br_fdb_add()).
        try:
            # NUD_NOARP: static; NTF_MASTER: in the bridge's table, not the device's.
            self._ip.fdb("add", ifindex=ifindex, lladdr=guest, state=0x40, flags=0x04)
        except Exception as error:
            if getattr(error, "code", None) == errno.EEXIST:
                raise FileExistsError(guest) from error
            raise
        # A port's own settings are taken before its flags (__rtnl_newlink()); state="up" would be
        # a setting of the port here. 1: IFF_UP.
        settings = {"learning": 0, "guard": 1, **({"isolated": 1} if isolated else {})}
        self._ip.link("set", index=ifindex, kind="bridge_slave", **settings, flags=1, change=1)

    def _only_vlan(self, ifindex: int, vlan: int) -> None:
        """Have the port in one VLAN: what comes in untagged is in it, and goes out untagged.

        The default one of the bridge is left by leaving all others, for that may be changed at any
        time; those that it is not in are passed over (br_vlan_info()).
        """

        def change(command: str, *infos: tuple[int, int]) -> None:
            # Written out: what pyroute2 makes of its vlan_info= knows no range before 0.8.
            vlans = [("IFLA_BRIDGE_VLAN_INFO", {"vid": vid, "flags": how}) for vid, how in infos]
            self._ip.vlan_filter(command, index=ifindex, IFLA_AF_SPEC={"attrs": vlans})

        # PRIVILEGE: CAP_NET_ADMIN; which frames of the LAN the guest gets.
        change("add", (vlan, _PVID | _UNTAGGED))
        others: list[tuple[int, int]] = []
        for first, last in ((1, vlan - 1), (vlan + 1, 4094)):
            if first < last:
                others += [(first, _RANGE_BEGIN), (last, _RANGE_END)]
            elif first == last:  # which is no range to the kernel (br_vlan_valid_range())
                others.append((first, 0))
        change("del", *others)

    def limit(self, ifindex: int, rate: htb.Rate) -> None:
        """Have what an interface sends not exceed ``rate``; as of :func:`htb.set_rate`."""
        htb.set_rate(self._ip, ifindex, rate)

    def unlimited(self, ifindex: int) -> None:
        """Let it send as it can; absent is in order."""
        htb.remove(self._ip, ifindex)

    def is_limited(self, ifindex: int) -> bool:
        """Whether it is limited by us."""
        return htb.is_there(self._ip, ifindex)

    def add_altname(self, ifindex: int, altname: str) -> bool:
        """A second, readable name. One that is taken is no reason to fail.

        :return: whether it has that name now.
        """
        try:
            self._ip.link("property_add", index=ifindex, altname=altname)
        except Exception as error:
            if getattr(error, "code", None) not in (errno.EEXIST, errno.EOPNOTSUPP):
                raise
            return False
        return True

    def delete(self, ifindex: int) -> None:
        """Delete it; absent is in order."""
        # PRIVILEGE: CAP_NET_ADMIN; the caller has checked that the index is still ours.
        try:
            self._ip.link("del", index=ifindex)
        except Exception as error:
            if getattr(error, "code", None) not in _ABSENT:
                raise

    def forget_neighbours(self, name: str, addresses: Iterable[str]) -> None:
        """Have the host forget whom it found at *addresses* by an interface; absent is in order."""
        try:
            ifindex = self.index_of(name)
        except OSError:
            return  # and with it all that was found by it
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                # PRIVILEGE: CAP_NET_ADMIN; a cache, which the kernel fills again by asking.
                self._ip.neigh("del", family=family, ifindex=ifindex, dst=address)
            except Exception as error:
                if getattr(error, "code", None) not in _ABSENT:
                    raise

    def routes(
        self, version: int
    ) -> list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, int]]:
        """Prefix and interface of every route of IPv4 or 6, default routes left out.

        So are routes to nowhere: who has a prefix delegated has one for all of it that is not in
        use (RFC 7084, WPD-5), and gives parts of it to networks like ours.
        """
        from .routes import read_routes

        return read_routes(version)

    def route_interfaces(
        self, prefix: ipaddress.IPv4Network | ipaddress.IPv6Network
    ) -> frozenset[int]:
        """The interfaces with a route that overlaps ``prefix``."""
        routes = self.routes(prefix.version)
        return frozenset(index for target, index in routes if _overlap(prefix, target))

    def addresses(self) -> dict[int, list[str]]:
        """The addresses of every interface, by ifindex; without the IPv6 link-local ones."""
        found: dict[int, list[str]] = {}
        for message in self._ip.get_addr():
            address = str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS") or "")
            if address and not address.startswith("fe80:"):
                found.setdefault(int(message["index"]), []).append(address)
        return found

    def default_routes(self) -> frozenset[int]:
        """The interfaces with a default route, IPv4 or IPv6."""
        found = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in self._ip.get_routes(family=family):
                if message["dst_len"] == 0 and message.get_attr("RTA_DST") is None:
                    hops = [hop["oif"] for hop in message.get_attr("RTA_MULTIPATH") or ()]
                    found |= {*hops, message.get_attr("RTA_OIF")} - {None}
        return frozenset(int(ifindex) for ifindex in found)

    def uplinks(self, version: int = 4) -> dict[int, str]:
        """The interfaces with a default route of IPv4 or 6: ifindex to name."""
        found: dict[int, str] = {}
        for message in self._ip.get_routes(family=_FAMILIES[version]):
            if message["dst_len"] != 0 or message.get_attr("RTA_DST") is not None:
                continue
            if message["type"] in _TO_NOWHERE:
                continue
            hops = [hop["oif"] for hop in message.get_attr("RTA_MULTIPATH") or ()]
            for interface in filter(None, [message.get_attr("RTA_OIF"), *hops]):
                link = self.by_index(int(interface))
                if link is not None:
                    found[link.ifindex] = link.name
        return found


def _refused(error: Exception) -> NoReturn:
    """Raise what the kernel refused as the error that it is; anything else as it was."""
    code = getattr(error, "code", None)
    if not isinstance(code, int):
        raise error
    raise OSError(code, os.strerror(code)) from error


def _overlap(
    one: ipaddress.IPv4Network | ipaddress.IPv6Network,
    other: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> bool:
    return one.version == other.version and one.overlaps(other)


def _iproute() -> Any:
    """pyroute2's IPRoute class, and of pyroute2 only what that needs.

    The package's own ``__init__`` imports all of it: a database, a web server, a test harness
    (measured: 132 ms and 12 MB, against 48 ms and 5 MB). So the module is imported below an empty
    package; where a version does not bear that, the whole is taken.
    """
    if "pyroute2" not in sys.modules:
        spec = importlib.util.find_spec("pyroute2")
        if spec is None or spec.submodule_search_locations is None:
            raise NotSupported("python3-pyroute2 is not installed")
        package = types.ModuleType("pyroute2")
        package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
        sys.modules["pyroute2"] = package
        try:
            return importlib.import_module("pyroute2.iproute.linux").IPRoute
        except (ImportError, AttributeError):
            for name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
                del sys.modules[name]
    from pyroute2 import IPRoute

    return IPRoute


def _function(info: Any) -> tuple[int, VirtualFunction]:
    """One IFLA_VF_INFO: its number, and what it says."""
    mac, vlan = info.get_attr("IFLA_VF_MAC"), info.get_attr("IFLA_VF_VLAN")
    tags = info.get_attr("IFLA_VF_VLAN_LIST")
    tag = tags.get_attr("IFLA_VF_VLAN_INFO") if tags else None
    return int(mac["vf"]), VirtualFunction(
        mac=str(mac["mac"]),
        vlan=int(vlan["vlan"]),
        qos=int(vlan["qos"]),
        proto=int(tag["proto"]) if tag else 0x8100,
        spoofchk=_said(info.get_attr("IFLA_VF_SPOOFCHK"), "spoofchk"),
        trust=_said(info.get_attr("IFLA_VF_TRUST"), "trust"),
    )


def _said(attribute: Any, name: str) -> int:
    """0 or 1; -1, which the kernel fills in for a driver that does not say, for all else."""
    return int(attribute[name]) if attribute and attribute[name] in (0, 1) else -1


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    return Link(
        ifindex=int(message["index"]),
        name=str(message.get_attr("IFLA_IFNAME")),
        kind=str(kind or ""),
        mac=str(message.get_attr("IFLA_ADDRESS") or ""),
        mtu=int(message.get_attr("IFLA_MTU") or 0),
        master=int(message.get_attr("IFLA_MASTER") or 0),
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A managed network: its bridge, addresses, way out, DHCP. Made for the first guest, gone with the
last.

The order matters: rules before the bridge is up, dnsmasq's files before the bridge exists (udev
starts dnsmasq when it appears), forwarding last.

The bridge has an address of its own, set and not adopted from a port, or the lowest MAC of its
guests would become its own (and a guest could choose that: measured).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from .addresses import derived_mac
from .dnsmasq import NetworkFiles, RunDnsmasq
from .errors import DeviceUnsafe, NotSupported
from .firewall import NetworkRules
from .forwarding import BridgeForward, refuse_ipv6, uplink_steps
from .kind import Shared
from .networkconfig import Mode
from .steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .host import Host
    from .networkconfig import Network

FIREWALL = "firewall"
FORWARDING = "forwarding"
FORWARDING6 = "forwarding6"
#: Of a record of uplinks, the IP version.
UPLINKS_OF = {FORWARDING: 4, FORWARDING6: 6}


def record_id(bridge: str) -> str:
    """The journal record of a managed network."""
    return f"network-{bridge}"


@dataclass(frozen=True, slots=True)
class FirewallTables(Step):
    """The fixed rules."""

    NAME: ClassVar[str] = "firewall"

    def describe(self) -> str:
        return "create the nft tables bridge sessionvirt and inet sessionvirt"

    def describe_undo(self) -> str:
        return "delete the nft tables of sessionvirt"

    def execute(self, host: Host) -> Self:
        host.firewall.ensure()
        return self

    def undo(self, host: Host) -> None:
        host.firewall.remove()


@dataclass(frozen=True, slots=True)
class NetworkFilter(Step):
    """What the network may do at layer 3."""

    NAME: ClassVar[str] = "network-filter"

    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    bridge: str = ""
    mode: str = Mode.NAT.value
    nat6: int = 0

    def describe(self) -> str:
        prefixes = self._prefixes()
        to_host = "to this host for DHCP and DNS only"
        match Mode(self.mode):
            case Mode.NAT:
                return f"let {prefixes} out by NAT, and {to_host}"
            case Mode.ROUTE:
                return f"let {prefixes} out and in, and {to_host}"
            case Mode.ISOLATED:
                return f"let {prefixes} go nowhere, but {to_host}"
            case Mode.OPEN:
                return f"let {prefixes} out and in, and to all of this host"

    def describe_undo(self) -> str:
        return f"remove {self._prefixes()} from the nft sets"

    def _prefixes(self) -> str:
        way_out = Mode(self.mode) is not Mode.NAT or self.nat6 or not self.ipv4
        shown = (*self.ipv4, *(self.ipv6 if way_out else ()))
        return " and ".join(str(ipaddress.ip_interface(one).network) for one in shown)

    def rules(self) -> NetworkRules:
        """For the firewall."""
        mode = Mode(self.mode)
        return NetworkRules(self.bridge, mode, self.ipv4, self.ipv6, nat6=bool(self.nat6))

    def execute(self, host: Host) -> Self:
        host.firewall.add_network(self.rules())
        return self

    def undo(self, host: Host) -> None:
        host.firewall.remove_network(self.rules())


@dataclass(frozen=True, slots=True)
class Bridge(Step):
    """The bridge, with its addresses, up."""

    NAME: ClassVar[str] = "bridge"

    bridge: str
    mac: str
    mtu: int
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    ifindex: int = 0

    def describe(self) -> str:
        addresses = " and ".join((*self.ipv4, *self.ipv6))
        return f"create the bridge {self.bridge} with {addresses}"

    def describe_undo(self) -> str:
        return f"delete the bridge {self.bridge}"

    def execute(self, host: Host) -> Self:
        links = host.links
        try:
            ifindex = links.create_bridge(self.bridge, mac=self.mac, mtu=self.mtu)
        except FileExistsError as error:
            raise DeviceUnsafe(f"an interface {self.bridge} exists and is not ours") from error
        try:
            for one in self.ipv4:
                links.add_address(ifindex, ipaddress.IPv4Interface(one))
            # A host without IPv6 has a network without IPv6.
            if (host.paths.proc_net / "ipv6").is_dir():
                for one in self.ipv6:
                    links.add_address6(ifindex, ipaddress.IPv6Interface(one))
            links.up(ifindex)
        except BaseException:
            links.delete(ifindex)
            raise
        return replace(self, ifindex=ifindex)

    def undo(self, host: Host) -> None:
        link = host.links.by_name(self.bridge)
        # By name where a crash came before the index was written; the MAC says that it is ours.
        ours = link is not None and link.kind == "bridge" and link.mac == self.mac
        if link is not None and ours and self.ifindex in (0, link.ifindex):
            host.links.delete(link.ifindex)


def shared(network: Network, host: Host, machine_id: str) -> tuple[Shared, ...]:
    """Everything a guest's network needs, in order."""
    bridge = network.bridge
    ipv6_out = has_ipv6_out(network, host)
    forwards4 = bool(network.ipv4) and network.mode is not Mode.ISOLATED

    def network_steps() -> Sequence[Step]:
        mac = derived_mac(machine_id, "bridge", bridge)
        ipv4, ipv6 = tuple(map(str, network.ipv4)), tuple(map(str, network.ipv6))
        forward = BridgeForward(bridge, int(forwards4), int(ipv6_out))
        return (
            NetworkFiles.of(network, ipv6_out=ipv6_out),
            NetworkFilter(ipv4, ipv6, bridge, network.mode.value, int(network.nat6)),
            Bridge(bridge, mac, network.mtu, ipv4, ipv6),
            *(() if is_systemd() else (RunDnsmasq(bridge),)),
            *((forward,) if forwards4 or ipv6_out else ()),
        )

    uplinks = [*[FORWARDING] * forwards4, *[FORWARDING6] * ipv6_out]
    return (
        Shared(FIREWALL, lambda: (FirewallTables(),)),
        *(Shared(one, _uplinks(host, UPLINKS_OF[one])) for one in uplinks),
        Shared(record_id(bridge), network_steps),
    )


def _uplinks(host: Host, version: int) -> Callable[[], Sequence[Step]]:
    return lambda: uplink_steps(host, version)


def has_ipv6_out(network: Network, host: Host) -> bool:
    """Whether IPv6 goes beyond this host from this network, as both are.

    In the mode "open" it does where it can be had; what goes where is the administrator's there.
    """
    if network.mode is Mode.OPEN and network.ipv6:
        return not refuse_ipv6(host)
    return network.wants_ipv6_out


def refuse_unfit(network: Network, host: Host) -> None:
    """Refuse a network that this host cannot have: it is to be whole, or not at all.

    :raise DeviceUnsafe: the host has a route into it already; names the interface.
    :raise NotSupported: its IPv6 cannot go out.
    """
    if network.wants_ipv6_out and (reason := refuse_ipv6(host)):
        raise NotSupported(f"network {network.name}: {reason}")
    own = host.links.by_name(network.bridge)
    for prefix in network.prefixes:
        for ifindex in host.links.route_interfaces(prefix):
            if own is None or ifindex != own.ifindex:
                link = host.links.by_index(ifindex)
                raise DeviceUnsafe(
                    f"network {network.name}: {prefix} overlaps a route of the host"
                    f" by {link.name if link else 'an interface'}"
                )


def is_systemd() -> bool:
    """Whether systemd runs this host (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()

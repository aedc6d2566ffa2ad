# SPDX-License-Identifier: LGPL-2.1-or-later
"""A managed network: its bridge, addresses, NAT, DHCP. Made for the first guest, gone with the
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
from .errors import DeviceUnsafe
from .firewall import NetworkRules
from .forwarding import Forward, is_global
from .kind import Shared
from .steps import Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import Network
    from .host import Host

FIREWALL = "firewall"
FORWARDING = "forwarding"


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
    """What the network's prefix may do at layer 3."""

    NAME: ClassVar[str] = "network-filter"

    ipv4: str
    ipv6: str

    def describe(self) -> str:
        prefix = ipaddress.IPv4Interface(self.ipv4).network
        return f"let {prefix} out by NAT, and to this host for DHCP and DNS only"

    def describe_undo(self) -> str:
        return f"remove {ipaddress.IPv4Interface(self.ipv4).network} from the nft sets"

    def rules(self) -> NetworkRules:
        """For the firewall."""
        return NetworkRules(self.ipv4, self.ipv6)

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
    ipv4: str
    ipv6: str
    ifindex: int = 0

    def describe(self) -> str:
        addresses = " and ".join(filter(None, (self.ipv4, self.ipv6)))
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
            links.add_address(ifindex, ipaddress.IPv4Interface(self.ipv4))
            # A host without IPv6 has a network without IPv6.
            if self.ipv6 and (host.paths.proc_net / "ipv6").is_dir():
                links.add_address6(ifindex, ipaddress.IPv6Interface(self.ipv6))
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
    ipv4, ipv6 = str(network.ipv4), str(network.ipv6 or "")
    bridge = network.bridge

    def network_steps() -> Sequence[Step]:
        mac = derived_mac(machine_id, "bridge", bridge)
        return (
            NetworkFiles(bridge, ipv4, ipv6, network.mtu),
            NetworkFilter(ipv4, ipv6),
            Bridge(bridge, mac, network.mtu, ipv4, ipv6),
            *(() if is_systemd() else (RunDnsmasq(bridge),)),
            BridgeForward(bridge),
        )

    return (
        Shared(FIREWALL, lambda: (FirewallTables(),)),
        Shared(FORWARDING, lambda: uplink_steps(host)),
        Shared(record_id(bridge), network_steps),
    )


@dataclass(frozen=True, slots=True)
class BridgeForward(Step):
    """Forwarding of the bridge itself; it goes when the bridge does."""

    NAME: ClassVar[str] = "bridge-forward"

    bridge: str

    def describe(self) -> str:
        return f"forward IPv4 that comes in by {self.bridge}"

    def describe_undo(self) -> str:
        return "nothing: it ends with the bridge"

    def execute(self, host: Host) -> Self:
        Forward(self.bridge, host.links.index_of(self.bridge), former=0).execute(host)
        return self

    def undo(self, host: Host) -> None:
        pass


def uplink_steps(host: Host) -> tuple[Forward, ...]:
    """Forwarding of the interfaces with a default route; none where the whole host forwards."""
    if is_global(host.paths.proc_net):
        return ()
    uplinks = sorted(host.links.uplinks().items())
    return tuple(Forward.of(name, index, host.paths.proc_net) for index, name in uplinks)


def collision(network: Network, host: Host) -> None:
    """Refuse a network that the host has a route into already.

    :raise DeviceUnsafe: names the interface.
    """
    own = host.links.by_name(network.bridge)
    for ifindex in host.links.route_interfaces(network.ipv4.network):
        if own is None or ifindex != own.ifindex:
            link = host.links.by_index(ifindex)
            raise DeviceUnsafe(
                f"network {network.name}: {network.ipv4.network} overlaps a route of the host"
                f" by {link.name if link else 'an interface'}"
            )


def is_systemd() -> bool:
    """Whether systemd runs this host (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()

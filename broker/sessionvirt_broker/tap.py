# SPDX-License-Identifier: LGPL-2.1-or-later
"""The resource kind ``tap``: a TAP device, filtered, on a managed network or a LAN bridge.

Whoever holds the TAP's fd is taken to be hostile: without any capability it may change the
interface's MAC (SIOCSIFHWADDR), make it persistent and change its owner. So the rules are in place
before the interface is, the interface is watched and a changed one ends its lease, and what takes
it back deletes it by index, whatever was done to it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from . import network as managed
from .addresses import AddressBook, Addresses
from .bridges import VLANS
from .dnsmasq import HostEntry, NetworkFiles
from .errors import Busy, InvalidRequest, NotSupported
from .guestcard import guest_mac, readable_name
from .guestnames import NameBook
from .kind import Offer, Owner, Plan, Request, Shared
from .lan import find_place, is_filtering, offer
from .limits import Share
from .networkconfig import BRIDGE_PREFIX, network_of
from .networks import Networks
from .tapsteps import AttachTap, CreateTap, FilterTap
from .vhost import OpenVhost, has_vhost
from .wire import (
    PORT_PREFIX,
    TAP_PREFIX,
    BridgeName,
    Mac,
    NetworkName,
    TapName,
    bridge_name,
    mac,
    network_name,
    shown,
    tap_name,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .bridges import LanBridge
    from .config import Configuration
    from .host import Host
    from .kind import Adopted, Watched
    from .lan import Place
    from .steps import Step
    from .wire import Fields


@dataclass(frozen=True, slots=True)
class TapRequest(Request):
    """A validated ``tap``; exactly one of ``network`` and ``bridge`` is set.

    :param vlan: on a bridge; 0: none was asked for.
    :param isolated: apart from every other port there that is so, too.
    """

    network: NetworkName | None
    bridge: BridgeName | None
    mac: Mac | None
    queues: int
    vhost: bool
    name: TapName | None
    vlan: int
    isolated: bool


class TapKind:
    """The kind, and who has which address."""

    name = "tap"
    fds_fact = "ifname"

    def __init__(self, machine_id: str, sys_class_net: Path) -> None:
        self._machine_id = machine_id
        self._sys_class_net = sys_class_net
        self._books: dict[str, AddressBook] = {}
        self._names: dict[str, NameBook] = {}
        self.networks = Networks(machine_id)
        #: On LANs, by macvtap too. One set for all: what two are connected to is not known here.
        self.lan_macs: set[str] = set()

    def parse(self, fields: Fields, position: int, configuration: Configuration) -> TapRequest:
        request = TapRequest(
            position=position,
            network=network_name(fields),
            bridge=bridge_name(fields),
            mac=mac(fields),
            queues=fields.count("queues", default=1, limit=configuration.limits.queues_per_tap),
            vhost=fields.flag("vhost"),
            name=tap_name(fields),
            vlan=fields.count("vlan", default=0, limit=VLANS[-1]),
            isolated=fields.flag("isolated"),
        )
        if (request.network is None) == (request.bridge is None):
            raise InvalidRequest(f"{fields.where}: needs either network or bridge")
        if request.vlan and request.bridge is None:
            raise InvalidRequest(f"{fields.where}.vlan: goes with a bridge, not with a network")
        fields.finish()
        return request

    def is_ready(self, request: Request, host: Host) -> bool:
        return True  # the unit has tun, bridge and nf_tables loaded

    def prepare(self, request: Request, host: Host) -> None:
        pass

    def survey(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Offer:
        tap = cast("TapRequest", request)
        address = guest_mac(tap.mac, tap.position, owner, self._machine_id)
        details = (("vm", shown(owner.vm)), ("uid", str(owner.uid)), ("mac", address))
        share = Share(taps=1, queues=tap.queues, fds=tap.queues if tap.vhost else 0)
        if tap.network is not None:
            network = self.networks.named(tap.network, owner.uid, configuration, host)
            if not managed.is_systemd() and host.keeper is None:
                raise NotSupported("nothing on this host starts dnsmasq for a managed network")
            if self.networks.as_started(network.bridge) is None:
                managed.refuse_unfit(network, host)
            self._book(network.bridge).peek(network, address)
            return Offer(
                action="network-attach",
                sentence="Authentication is required to connect the virtual machine"
                ' "$(vm)" to the network "$(network)"',
                details=(*details, ("network", network.name)),
                summary=f'a connection to the network "{network.name}"',
                share=share,
                facts=(network, address),
            )
        place, offered = self._place(tap, configuration, host)
        self._not_on_a_lan(address)
        return offer(place, offered, address, details, share)

    def plan(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Plan:
        tap = cast("TapRequest", request)
        address = guest_mac(tap.mac, tap.position, owner, self._machine_id)
        ifname = TAP_PREFIX + secrets.token_hex(6)
        altname = readable_name(tap.name, tap.position, owner)
        most = configuration.limits.vhost_descriptors
        vhost = (OpenVhost(ifname, tap.queues, most),) if tap.vhost else ()
        # Like libvirt's: a high first byte, so that no bridge would ever take it for its own. No
        # guest's begins with it (wire.py).
        port_mac = PORT_PREFIX + address[3:]
        if tap.network is None:
            place, _ = self._place(tap, configuration, host)
            self._not_on_a_lan(address)  # another request of the same call may be
            return Plan(
                shared=(Shared(managed.FIREWALL, lambda: (managed.FirewallTables(),)),),
                steps=(
                    FilterTap(ifname, owner.uid, address, (), (), unbound=1),
                    CreateTap(ifname, tap.queues),
                    *vhost,
                    AttachTap(
                        *(ifname, place.bridge, port_mac, address, place.mtu, altname),
                        vlan=place.vlan,
                        bridge_ifindex=place.ifindex,
                        isolated=int(tap.isolated),
                    ),
                ),
            )
        network = self.networks.named(tap.network, owner.uid, configuration, host)
        given = self._book(network.bridge).peek(network, address)
        ipv4 = (given.ipv4,) if given.ipv4 else ()
        # A static host has its name already, whatever its machine is called.
        static = network.host_of(address) is not None
        name = "" if static else self._names_on(network.bridge).peek(network, owner.vm)
        return Plan(
            shared=self.networks.needs(network, host),
            steps=(
                FilterTap(
                    *(ifname, owner.uid, address, ipv4, given.ipv6),
                    unbound=0,
                    bridge=network.bridge,
                ),
                CreateTap(ifname, tap.queues),
                *vhost,
                HostEntry(
                    *(network.bridge, ifname, address, given.ipv4, given.ipv6),
                    *(name, network.domain),
                ),
                AttachTap(
                    *(ifname, network.bridge, port_mac, address, network.mtu, altname),
                    isolated=int(tap.isolated),
                ),
            ),
        )

    def grant(self, steps: Sequence[Step]) -> dict[str, object]:
        made, rules, attached = _tap_steps(steps)
        bridge = attached.bridge
        is_managed = bridge.startswith(BRIDGE_PREFIX)
        where: dict[str, object] = {"bridge": bridge, "vlan": attached.vlan}
        if is_managed:
            where = {"network": network_of(bridge)}
        return {
            "kind": self.name,
            "ifname": made.ifname,
            "ifindex": made.ifindex,
            "altname": attached.altname,
            "vhost": has_vhost(steps),
            "mac": rules.mac,
            "mtu": attached.mtu,
            "isolated": bool(attached.isolated),
            **where,
            "ipv4": rules.ipv4,
            "ipv6": rules.ipv6,
            "dns": self._dns_name(steps),
        }

    def _dns_name(self, steps: Sequence[Step]) -> str:
        """What its guest is found by on its network; empty: nothing."""
        for step in steps:
            if isinstance(step, HostEntry):
                network = self.networks.as_started(step.bridge)
                static = network.host_of(step.mac) if network else None
                label = static.label if static else step.name
                return ".".join(filter(None, (label, step.domain))) if label else ""
        return ""

    def share(self, steps: Sequence[Step]) -> Share:
        queues = _tap_steps(steps)[0].queues
        return Share(taps=1, queues=queues, fds=queues if has_vhost(steps) else 0)

    def watched(self, steps: Sequence[Step]) -> tuple[Watched, ...]:
        made, _, attached = _tap_steps(steps)
        # A bridge that filters VLANs no more has its guests in all of them. (One that stops in the
        # milliseconds between the look at it and this is looked at again when it changes again.)
        return (made.ifindex, *((attached.bridge_ifindex,) if attached.vlan else ()))

    def adopt(self, steps: Sequence[Step], adopted: Adopted) -> None:
        for step in steps:
            if isinstance(step, FilterTap):
                adopted.taps.append(step.rules())
            if isinstance(step, managed.NetworkFilter):
                adopted.networks.append(step.rules())
        self.begun(steps)

    def begun(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, NetworkFiles):
                self.networks.begun(step)
            elif isinstance(step, HostEntry):
                given = Addresses(step.ipv4, step.ipv6)
                network = self.networks.as_started(step.bridge)
                self._book(step.bridge).hold(network, step.mac, given)
                self._names_on(step.bridge).hold(step.name, step.mac)
            elif isinstance(step, FilterTap) and step.unbound:
                self.lan_macs.add(step.mac)

    def ended(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, NetworkFiles):
                self.networks.ended(step.bridge)
                self._books.pop(step.bridge, None)
                self._names.pop(step.bridge, None)
            elif isinstance(step, HostEntry):
                self._book(step.bridge).give_back(step.mac)
                self._names_on(step.bridge).give_back(step.name, step.mac)
            elif isinstance(step, FilterTap) and step.unbound:
                self.lan_macs.discard(step.mac)

    def intact(self, steps: Sequence[Step], host: Host) -> str:
        made, _, attached = _tap_steps(steps)
        # By sysfs, for a new broker asks this of every TAP at once: twenty times netlink's speed.
        device = self._sys_class_net / made.ifname
        try:
            if int((device / "ifindex").read_text(encoding="ascii")) != made.ifindex:
                return "the TAP is gone"
            address = (device / "address").read_text(encoding="ascii").strip()
        except OSError:
            return "the TAP is gone"
        if address != attached.mac:
            return "the TAP's address was changed by its holder"
        return self._port_fault(device, attached)

    def is_gone(self, steps: Sequence[Step], host: Host) -> bool:
        return host.links.by_index(_tap_steps(steps)[0].ifindex) is None

    def _book(self, bridge: str) -> AddressBook:
        return self._books.setdefault(bridge, AddressBook())

    def _names_on(self, bridge: str) -> NameBook:
        return self._names.setdefault(bridge, NameBook())

    def _not_on_a_lan(self, address: str) -> None:
        if address in self.lan_macs:
            raise Busy(f"the MAC address {address} is in use on this bridge")

    def _place(
        self, request: TapRequest, configuration: Configuration, host: Host
    ) -> tuple[Place, LanBridge]:
        name = cast("BridgeName", request.bridge)
        return find_place(name, request.vlan, configuration, host, self._sys_class_net)

    def _port_fault(self, device: Path, attached: AttachTap) -> str:
        """Why a TAP is not the port that it was made; empty: it is."""
        bridge = device / "master"
        try:
            name, ifindex = bridge.readlink().name, int((bridge / "ifindex").read_text("ascii"))
            learning = (device / "brport/learning").read_text("ascii").strip()
        except OSError:
            return "the TAP is no longer on its bridge"
        # By its index a bridge of the LAN is the same under another name. One of ours is not, for
        # the rules go by its name; nor is one in the record of a broker that did not keep indexes.
        by_name = attached.bridge.startswith(BRIDGE_PREFIX) or not attached.bridge_ifindex
        if (by_name and name != attached.bridge) or attached.bridge_ifindex not in (0, ifindex):
            return "the TAP is no longer on its bridge"
        if learning != "0":
            # What its port was set to went with it, its VLAN too.
            return "the TAP was taken from its bridge and put back"
        if attached.vlan and not is_filtering(bridge / "bridge"):
            return "the bridge no longer filters VLANs"
        if attached.isolated and not _is_isolated(device):
            return "the TAP is no longer isolated from others on its bridge"
        return ""


def _is_isolated(device: Path) -> bool:
    try:
        return (device / "brport/isolated").read_text("ascii").strip() == "1"
    except OSError:
        return False


def _tap_steps(steps: Sequence[Step]) -> tuple[CreateTap, FilterTap, AttachTap]:
    made = next(step for step in steps if isinstance(step, CreateTap))
    rules = next(step for step in steps if isinstance(step, FilterTap))
    attached = next(step for step in steps if isinstance(step, AttachTap))
    return made, rules, attached

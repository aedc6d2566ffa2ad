# SPDX-License-Identifier: LGPL-2.1-or-later
"""The resource kind ``tap``: a TAP device, filtered, on a managed network or a LAN bridge.

Whoever holds the TAP's fd is taken to be hostile: without any capability it may change the
interface's MAC (SIOCSIFHWADDR), make it persistent and change its owner. So the rules are in place
before the interface is, the interface is watched and a changed one ends its lease, and what takes
it back deletes it by index, whatever was done to it.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, cast

from . import network as managed
from .addresses import DERIVED_PREFIX, AddressBook, Addresses, derived_mac
from .dnsmasq import HostEntry, NetworkFiles
from .errors import Busy, DeviceUnsafe, InvalidRequest, NotFound, NotSupported
from .firewall import TapRules, link_local
from .guestnames import NameBook
from .kind import Offer, Owner, Plan, Request, Shared
from .limits import Share
from .networkconfig import BRIDGE_PREFIX, network_of
from .networks import Networks
from .steps import Step
from .tun import create
from .wire import PORT_PREFIX, BridgeName, Mac, NetworkName, bridge_name, mac, network_name, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .config import Configuration
    from .host import Host
    from .kind import Adopted, Watched
    from .wire import Fields

#: Its TAPs; ``ruleset.py`` knows the prefix.
TAP_PREFIX = "svt"
#: A VM may name its own derived addresses, of any of this many positions.
_DERIVED_POSITIONS = 64
#: NET_ADDR_SET in include/uapi/linux/netdevice.h: the address was set, not taken from a port.
_NET_ADDR_SET = "3\n"


@dataclass(frozen=True, slots=True)
class TapRequest(Request):
    """A validated ``tap``; exactly one of ``network`` and ``bridge`` is set."""

    network: NetworkName | None
    bridge: BridgeName | None
    mac: Mac | None
    queues: int


@dataclass(frozen=True, slots=True)
class CreateTap(Step):
    """The device, down and attached to nothing."""

    NAME: ClassVar[str] = "tap-create"

    ifname: str
    queues: int
    ifindex: int = 0

    def describe(self) -> str:
        queues = f" with {self.queues} queues" if self.queues > 1 else ""
        return f"create the TAP {self.ifname}{queues}"

    def describe_undo(self) -> str:
        return f"delete the TAP {self.ifname}"

    def execute(self, host: Host) -> Self:
        host.fds[self.ifname] = create(self.ifname, self.queues)
        return replace(self, ifindex=host.links.index_of(self.ifname))

    def undo(self, host: Host) -> None:
        host.close_fds(self.ifname)
        # By index, for an administrator may have renamed it: then no rule of ours is about it. The
        # index is not known after a crash between the two lines of execute(); the name is 48 random
        # bits of ours. An index is not given again before 2^31 interfaces later, but by request.
        links = host.links
        link = links.by_index(self.ifindex) if self.ifindex else links.by_name(self.ifname)
        if link is not None and link.kind == "tun":
            links.delete(link.ifindex)


@dataclass(frozen=True, slots=True)
class FilterTap(Step):
    """What its frames may carry; there before the TAP is.

    :param bridge: of a managed network, where the host forgets whom it had at the addresses.
    """

    NAME: ClassVar[str] = "tap-filter"

    ifname: str
    uid: int
    mac: str
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    unbound: int
    bridge: str = ""

    def describe(self) -> str:
        addresses = "any address" if self.unbound else ", ".join((*self.ipv4, *self.ipv6))
        return f"let {self.ifname} send from {self.mac} and {addresses} only"

    def describe_undo(self) -> str:
        return f"remove {self.ifname} from the nft sets"

    def rules(self) -> TapRules:
        """For the firewall."""
        return TapRules(self.ifname, self.uid, self.mac, self.ipv4, self.ipv6, bool(self.unbound))

    def execute(self, host: Host) -> Self:
        host.firewall.add_tap(self.rules())
        return self

    def undo(self, host: Host) -> None:
        host.firewall.remove_tap(self.rules())
        # Undone after the TAP, so that no frame brings them back. The address' next guest would be
        # looked for at this one's MAC, and everybody on the host can read who was there.
        if self.bridge:
            addresses = (*self.ipv4, *self.ipv6, str(link_local(self.mac)))
            host.links.forget_neighbours(self.bridge, addresses)


@dataclass(frozen=True, slots=True)
class AttachTap(Step):
    """A port of the bridge, and up."""

    NAME: ClassVar[str] = "tap-attach"

    ifname: str
    bridge: str
    mac: str
    guest: str
    mtu: int
    altname: str

    def describe(self) -> str:
        return f"attach {self.ifname} to {self.bridge} and set it up"

    def describe_undo(self) -> str:
        return "nothing: it ends with the TAP"

    def execute(self, host: Host) -> Self:
        ifindex, bridge = host.links.index_of(self.ifname), host.links.index_of(self.bridge)
        host.links.add_altname(ifindex, self.altname)
        # A port has no layer 3 of its own; without this it would get a link-local address.
        disable = host.paths.proc_net / "ipv6/conf" / self.ifname / "disable_ipv6"
        if disable.exists():
            disable.write_text("1\n", encoding="ascii")
        try:
            host.links.attach(ifindex, bridge=bridge, mac=self.mac, guest=self.guest, mtu=self.mtu)
        except FileExistsError as error:
            raise Busy(f"the MAC address {self.guest} is in use on {self.bridge}") from error
        return self

    def undo(self, host: Host) -> None:
        pass


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
        #: On LAN bridges. One set for all: what two bridges are connected to is not known here.
        self._lan_macs: set[str] = set()

    def parse(self, fields: Fields, position: int, configuration: Configuration) -> TapRequest:
        request = TapRequest(
            position=position,
            network=network_name(fields),
            bridge=bridge_name(fields),
            mac=mac(fields),
            queues=fields.count("queues", default=1, limit=configuration.limits.queues_per_tap),
        )
        if (request.network is None) == (request.bridge is None):
            raise InvalidRequest(f"{fields.where}: needs either network or bridge")
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
        address = self._mac(tap, owner)
        details = (("vm", shown(owner.vm)), ("uid", str(owner.uid)), ("mac", address))
        share = Share(taps=1, queues=tap.queues)
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
        bridge, ifindex = self._lan_bridge(cast("BridgeName", tap.bridge), configuration, host)
        self._not_on_a_lan(address)
        return Offer(
            action="bridge-attach",
            sentence='Authentication is required to connect the virtual machine "$(vm)" to the'
            ' local network by the bridge "$(bridge)", as a host of its own ($(mac))',
            details=(*details, ("bridge", bridge)),
            summary=f'a place on the local network by the bridge "{bridge}" ({address})',
            share=share,
            facts=(bridge, ifindex, address),
            permit=configuration.bridges[bridge].permit,
        )

    def plan(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Plan:
        tap = cast("TapRequest", request)
        address = self._mac(tap, owner)
        ifname = TAP_PREFIX + secrets.token_hex(6)
        words = re.sub(r"[^A-Za-z0-9_.-]", "_", owner.vm)[:64]
        altname = f"{TAP_PREFIX}-{owner.uid}-{words}-{tap.position}"
        # Like libvirt's: a high first byte, so that no bridge would ever take it for its own. No
        # guest's begins with it (wire.py).
        port_mac = PORT_PREFIX + address[3:]
        if tap.network is None:
            bridge, ifindex = self._lan_bridge(cast("BridgeName", tap.bridge), configuration, host)
            self._not_on_a_lan(address)  # another request of the same call may be
            link = host.links.by_index(ifindex)
            mtu = link.mtu if link else 1500
            return Plan(
                shared=(Shared(managed.FIREWALL, lambda: (managed.FirewallTables(),)),),
                steps=(
                    FilterTap(ifname, owner.uid, address, (), (), unbound=1),
                    CreateTap(ifname, tap.queues),
                    AttachTap(ifname, bridge, port_mac, address, mtu, altname),
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
                HostEntry(
                    *(network.bridge, ifname, address, given.ipv4, given.ipv6),
                    *(name, network.domain),
                ),
                AttachTap(ifname, network.bridge, port_mac, address, network.mtu, altname),
            ),
        )

    def grant(self, steps: Sequence[Step]) -> dict[str, object]:
        made, rules, attached = _tap_steps(steps)
        bridge = attached.bridge
        is_managed = bridge.startswith(BRIDGE_PREFIX)
        return {
            "kind": self.name,
            "ifname": made.ifname,
            "ifindex": made.ifindex,
            "mac": rules.mac,
            "mtu": attached.mtu,
            ("network" if is_managed else "bridge"): network_of(bridge) if is_managed else bridge,
            "ipv4": rules.ipv4,
            "ipv6": rules.ipv6,
        }

    def share(self, steps: Sequence[Step]) -> Share:
        return Share(taps=1, queues=_tap_steps(steps)[0].queues)

    def watched(self, steps: Sequence[Step]) -> tuple[Watched, ...]:
        return (_tap_steps(steps)[0].ifindex,)

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
                self._lan_macs.add(step.mac)

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
                self._lan_macs.discard(step.mac)

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
        try:
            bridge = (device / "master").readlink().name
        except OSError:
            bridge = ""
        return "" if bridge == attached.bridge else "the TAP is no longer on its bridge"

    def is_gone(self, steps: Sequence[Step], host: Host) -> bool:
        return host.links.by_index(_tap_steps(steps)[0].ifindex) is None

    def _mac(self, request: TapRequest, owner: Owner) -> Mac:
        def derived(position: int) -> Mac:
            return derived_mac(self._machine_id, "tap", str(owner.uid), owner.vm, str(position))

        if request.mac is None:
            return derived(request.position)
        foreign = request.mac not in map(derived, range(_DERIVED_POSITIONS))
        if request.mac.startswith(DERIVED_PREFIX) and foreign:
            raise InvalidRequest(f"mac: {DERIVED_PREFIX} is for addresses that the broker derives")
        return request.mac

    def _book(self, bridge: str) -> AddressBook:
        return self._books.setdefault(bridge, AddressBook())

    def _names_on(self, bridge: str) -> NameBook:
        return self._names.setdefault(bridge, NameBook())

    def _not_on_a_lan(self, address: str) -> None:
        if address in self._lan_macs:
            raise Busy(f"the MAC address {address} is in use on this bridge")

    def _lan_bridge(
        self, name: BridgeName, configuration: Configuration, host: Host
    ) -> tuple[BridgeName, int]:
        link = host.links.by_name(name) if name in configuration.bridges else None
        if link is None or link.kind != "bridge":
            # One sentence for absent, no bridge and not offered: a caller learns nothing of the
            # host.
            raise NotFound(f"bridge: {name} is not a bridge that broker.toml offers")
        assigned = (self._sys_class_net / name / "addr_assign_type").read_text(encoding="ascii")
        if assigned != _NET_ADDR_SET:
            raise DeviceUnsafe(
                f"bridge: {name} has no MAC address of its own, so a guest could take it over;"
                " an administrator must set one"
            )
        return name, link.ifindex


def _tap_steps(steps: Sequence[Step]) -> tuple[CreateTap, FilterTap, AttachTap]:
    made = next(step for step in steps if isinstance(step, CreateTap))
    rules = next(step for step in steps if isinstance(step, FilterTap))
    attached = next(step for step in steps if isinstance(step, AttachTap))
    return made, rules, attached

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The resource kind ``publish``: ports of the host lead to ports of a guest on a managed network.

It rests on a TAP of the same lease, and goes with it. What is published is what was asked for and
no more: on one address it is reached by that one alone, on 127.0.0.1 by this host alone.

Never taken: a port on which the host itself listens, or that another lease has. Whose that is, is
not said.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from .errors import Busy, InvalidRequest, LimitsExceeded, NotFound, NotSupported
from .kind import Offer, Owner, Plan, Resting, Shared
from .limits import Share
from .listening import listener
from .network import has_ipv6_out
from .networkconfig import Mode, network_of
from .publishpolicy import PRIVILEGED
from .publishsteps import PublishPorts, RouteLocalnet, TurnAround, ports_in_words
from .tapsteps import FilterTap
from .wire import grant_of, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .config import Configuration
    from .host import Host
    from .kind import Adopted, Request, Watched
    from .listening import Address
    from .networkconfig import Network
    from .networks import Networks
    from .steps import Step
    from .wire import Fields

_LAST_PORT: Final = 65535
#: Those that a network's own dnsmasq has on the gateway's addresses: DNS, DHCP.
_OF_NETWORKS: Final = {"tcp": frozenset({53}), "udp": frozenset({53, 67, 547})}
_SENTENCE: Final = (
    'Authentication is required to have $(ports) of $(where) lead to the virtual machine "$(vm)"'
)


@dataclass(frozen=True, slots=True)
class PublishRequest(Resting):
    """A validated ``publish``.

    :param address: of the host; None: every one.
    :param version: with None: of this IP version only; 0: of those that the guest has.
    """

    protocol: str
    address: Address | None
    version: int
    host_port: int
    guest_port: int
    ports: int

    @property
    def where(self) -> str:
        """In words."""
        if self.address is not None:
            return str(self.address)
        words = f"every IPv{self.version} address" if self.version else "every address"
        return f"{words} of this machine"

    @property
    def taken(self) -> range:
        """The host's ports."""
        return range(self.host_port, self.host_port + self.ports)


class PublishKind:
    """The kind, and which ports are taken."""

    name = "publish"
    fds_fact = "id"

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        #: IP version, protocol and port, to the addresses; "": every one.
        self._taken: dict[tuple[int, str, int], set[str]] = {}

    def parse(self, fields: Fields, position: int, configuration: Configuration) -> PublishRequest:
        on = _rests_on(fields)
        protocol = fields.text("protocol")
        if protocol not in _OF_NETWORKS:
            raise InvalidRequest(f"{fields.where}.protocol: must be tcp or udp")
        address, version = _address(fields)
        limit = configuration.limits.ports_per_request
        host_port, guest_port = _port(fields, "host_port"), _port(fields, "guest_port")
        ports = fields.count("ports", default=1, limit=_LAST_PORT)
        fields.finish()
        if ports > limit:
            raise LimitsExceeded(f"ports_per_request: {limit}")
        for name, first in (("host_port", host_port), ("guest_port", guest_port)):
            if first + ports - 1 > _LAST_PORT:
                raise InvalidRequest(f"{fields.where}.{name}: the last port is {_LAST_PORT}")
        return PublishRequest(
            *(position, on, protocol, address, version, host_port, guest_port, ports)
        )

    def is_ready(self, request: Request, host: Host) -> bool:
        return True  # nf_tables comes with TAPs; the kernel loads nft_chain_nat by itself

    def prepare(self, request: Request, host: Host) -> None:
        pass

    def survey(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Offer:
        wanted = cast("PublishRequest", request)
        tap, targets = self._targets(wanted, owner, configuration, host)
        self._refuse_address(wanted, host)
        self._refuse_used(wanted, targets, host)
        guest = ports_in_words(wanted.guest_port, wanted.ports)
        ports = f"{wanted.protocol.upper()} {ports_in_words(wanted.host_port, wanted.ports)}"
        privileged = wanted.host_port < PRIVILEGED
        return Offer(
            action="publish-privileged-port" if privileged else "publish-port",
            sentence=_SENTENCE,
            details=(
                ("vm", shown(owner.vm)),
                ("uid", str(owner.uid)),
                ("mac", tap.mac),
                ("protocol", wanted.protocol),
                ("host_port", str(wanted.host_port)),
                ("guest_port", str(wanted.guest_port)),
                ("count", str(wanted.ports)),
                ("address", "" if wanted.address is None else str(wanted.address)),
                ("ports", ports),
                ("where", wanted.where),
            ),
            summary=f"{ports} of {wanted.where}, which leads to its {guest}",
            share=Share(ports=wanted.ports),
            facts=(wanted, tap.mac, targets),
            permit=configuration.publish.permit_for(wanted.taken),
            includes="publish-port" if privileged else "",
        )

    def plan(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Plan:
        wanted = cast("PublishRequest", request)
        tap, targets = self._targets(wanted, owner, configuration, host)
        self._refuse_taken(wanted, targets)  # another request of the same call may have it
        bridge = tap.bridge
        shared = [Shared(f"published-{bridge}", lambda: (TurnAround(bridge),))]
        loopback = wanted.address is None or wanted.address.is_loopback
        if loopback and any(_version(one) == 4 for one in targets):
            shared.append(Shared(f"localnet-{bridge}", lambda: (RouteLocalnet(bridge),)))
        step = PublishPorts(
            tap=wanted.on,
            bridge=bridge,
            protocol=wanted.protocol,
            address="" if wanted.address is None else str(wanted.address),
            host_port=wanted.host_port,
            guest_port=wanted.guest_port,
            ports=wanted.ports,
            targets=targets,
        )
        return Plan(tuple(shared), (step,))

    def grant(self, steps: Sequence[Step]) -> dict[str, object]:
        made = _made(steps)
        return {
            "kind": self.name,
            "tap": made.tap,
            "protocol": made.protocol,
            "address": made.address,
            "host_port": made.host_port,
            "guest_port": made.guest_port,
            "ports": made.ports,
            "guest": made.targets,
        }

    def share(self, steps: Sequence[Step]) -> Share:
        return Share(ports=_made(steps).ports)

    def watched(self, steps: Sequence[Step]) -> tuple[Watched, ...]:
        return ()  # the TAP is, and this goes with it

    def begun(self, steps: Sequence[Step]) -> None:
        for key, address in _keys(steps):
            self._taken.setdefault(key, set()).add(address)

    def ended(self, steps: Sequence[Step]) -> None:
        for key, address in _keys(steps):
            addresses = self._taken.get(key, set())
            addresses.discard(address)
            if not addresses:
                self._taken.pop(key, None)

    def adopt(self, steps: Sequence[Step], adopted: Adopted) -> None:
        self.begun(steps)
        adopted.published += [
            step.rules() for step in steps if isinstance(step, (PublishPorts, TurnAround))
        ]

    def intact(self, steps: Sequence[Step], host: Host) -> str:
        return ""

    def is_gone(self, steps: Sequence[Step], host: Host) -> bool:
        return False

    # Section: what is refused

    def _targets(
        self, wanted: PublishRequest, owner: Owner, configuration: Configuration, host: Host
    ) -> tuple[FilterTap, tuple[str, ...]]:
        """The TAP, and the guest's addresses that the ports lead to: one of each IP version.

        :raise NotSupported: there is none.
        """
        tap = next(one for one in owner.parts[wanted.on] if isinstance(one, FilterTap))
        if not tap.bridge:
            raise NotSupported(_ON_A_LAN)
        name = network_of(tap.bridge)
        network = self._networks.named(name, owner.uid, configuration, host)
        if network.mode is Mode.ISOLATED:
            raise NotSupported(f"network {name} is isolated: nothing comes in there")
        version = wanted.address.version if wanted.address is not None else wanted.version
        addresses4 = tap.ipv4[:1] if version in (0, 4) else ()
        addresses6 = tap.ipv6[:1] if version in (0, 6) else ()
        if addresses6 and not has_ipv6_out(network, host):
            if not addresses4:
                raise NotSupported(_ipv6_stays(network))
            addresses6 = ()
        if not addresses4 and not addresses6:
            raise NotSupported(f"the guest has no IPv{version or 4} address")
        return tap, (*addresses4, *addresses6)

    def _refuse_address(self, wanted: PublishRequest, host: Host) -> None:
        address = wanted.address
        if address is None or (address.version == 4 and address.is_loopback):
            return
        if address.is_loopback:
            raise NotSupported("the kernel has no way back to ::1 for the answer; 127.0.0.1 works")
        own = {one for addresses in host.links.addresses().values() for one in addresses}
        if str(address) not in own:
            raise NotFound(f"address: {address} is not an address of this host")

    def _refuse_used(self, wanted: PublishRequest, targets: Sequence[str], host: Host) -> None:
        ours = _OF_NETWORKS[wanted.protocol].intersection(wanted.taken)
        if wanted.address is None and ours:
            raise Busy(
                f"networks of this host have {wanted.protocol} port {min(ours)} of their gateways"
                " for DNS and DHCP; name another address"
            )
        versions = {_version(one) for one in targets}
        sockets = host.paths.sockets
        found = listener(sockets, wanted.protocol, wanted.address, versions, wanted.taken)
        if found is not None:
            raise Busy(f"the host itself listens on {found[0]}, {wanted.protocol} port {found[1]}")
        self._refuse_taken(wanted, targets)

    def _refuse_taken(self, wanted: PublishRequest, targets: Sequence[str]) -> None:
        address = "" if wanted.address is None else str(wanted.address)
        for version in map(_version, targets):
            for port in wanted.taken:
                taken = self._taken.get((version, wanted.protocol, port), set())
                if taken and (not address or taken & {address, ""}):
                    raise Busy(f"{wanted.protocol} port {port} of {wanted.where} is published")


_ON_A_LAN: Final = (
    "the guest is on the LAN itself, where everybody reaches it by its own address: only ports of"
    " guests on managed networks are published"
)


def _ipv6_stays(network: Network) -> str:
    return (
        f"network {network.name}: its IPv6 does not leave this host, so no answer would"
        ' (mode = "route" or nat6 = true in broker.toml)'
    )


def _rests_on(fields: Fields) -> str:
    """The TAP's grant.

    :raise NotSupported: it is a macvtap device's.
    """
    name = fields.peek("tap")
    if isinstance(name, str) and re.fullmatch(r"direct[0-9]{1,5}", name):
        raise NotSupported(_ON_A_LAN)
    return grant_of(fields, "tap")


def _address(fields: Fields) -> tuple[Address | None, int]:
    """The host's address (None: every one), and of which IP version; 0: of both."""
    text = fields.text("address")
    if text is None:
        return None, 0
    try:
        if len(text) > 45 or not re.fullmatch(r"[0-9a-fA-F:.]+", text):
            raise ValueError(text)
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidRequest(f"{fields.where}.address: must be an IPv4 or IPv6 address") from error
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        raise InvalidRequest(f"{fields.where}.address: must be one host's, not many")
    if address.is_unspecified:
        return None, address.version
    return address, address.version


def _port(fields: Fields, name: str) -> int:
    port = fields.count(name, default=0, limit=_LAST_PORT)
    if not port:
        raise InvalidRequest(f"{fields.where}.{name}: is missing")
    return port


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _made(steps: Sequence[Step]) -> PublishPorts:
    return next(step for step in steps if isinstance(step, PublishPorts))


def _keys(steps: Sequence[Step]) -> Iterable[tuple[tuple[int, str, int], str]]:
    for step in steps:
        if isinstance(step, PublishPorts):
            for target in step.targets:
                for port in range(step.host_port, step.host_port + step.ports):
                    yield (_version(target), step.protocol, port), step.address

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ports of the host lead to a guest, as steps.

``TurnAround`` and ``RouteLocalnet`` are a network's, shared by all that is published there;
``PublishPorts`` is one grant's. What a rule is, ``published.py`` says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from .flows import end_datagrams
from .published import Publication, Turning
from .steps import Step

if TYPE_CHECKING:
    from pathlib import Path

    from .host import Host

__all__ = ["PublishPorts", "RouteLocalnet", "TurnAround", "ports_in_words"]


def ports_in_words(first: int, ports: int) -> str:
    """``port 80``, ``ports 80-89``."""
    return f"port {first}" if ports == 1 else f"ports {first}-{first + ports - 1}"


@dataclass(frozen=True, slots=True)
class PublishPorts(Step):
    """New flows to these ports of the host go to the guest.

    :param address: of the host; empty: every one, of the IP versions of ``targets``.
    :param targets: the guest's addresses, one of each IP version.
    """

    NAME: ClassVar[str] = "publish-ports"

    tap: str
    bridge: str
    protocol: str
    address: str
    host_port: int
    guest_port: int
    ports: int
    targets: tuple[str, ...]

    def describe(self) -> str:
        where = self.address or "every address of this host"
        return (
            f"have {self.protocol} {ports_in_words(self.host_port, self.ports)} of {where} lead to"
            f" {ports_in_words(self.guest_port, self.ports)} of {' and '.join(self.targets)}"
        )

    def describe_undo(self) -> str:
        return "remove it from the nft maps; connections that there are go on"

    def rules(self) -> Publication:
        """For the firewall."""
        return Publication(
            *(self.bridge, self.protocol, self.address, self.host_port, self.guest_port),
            *(self.ports, self.targets),
        )

    def execute(self, host: Host) -> Self:
        host.firewall.publish(self.rules())
        return self

    def undo(self, host: Host) -> None:
        host.firewall.unpublish(self.rules())
        # A connection has an end. Datagrams that somebody goes on sending would come here for ever,
        # also when the port is another guest's, or a service of the host's.
        if self.protocol == "udp":
            for target in self.targets:
                end_datagrams(target, range(self.host_port, self.host_port + self.ports))


@dataclass(frozen=True, slots=True)
class TurnAround(Step):
    """What a guest sends to a port that another of its network has published turns round."""

    NAME: ClassVar[str] = "turn-around"

    bridge: str

    def describe(self) -> str:
        return f"let guests on {self.bridge} reach what others there publish"

    def describe_undo(self) -> str:
        return f"remove {self.bridge} from the nft set of those that do"

    def rules(self) -> Turning:
        """For the firewall."""
        return Turning(self.bridge)

    def execute(self, host: Host) -> Self:
        host.firewall.publish(self.rules())
        return self

    def undo(self, host: Host) -> None:
        host.firewall.unpublish(self.rules())


@dataclass(frozen=True, slots=True)
class RouteLocalnet(Step):
    """The host's own 127.0.0.0/8 may be one end of a flow by this bridge.

    The rules that keep guests from it are there before; they are of the fixed part. Where somebody
    takes them away and they cannot be put back, this is shut (``upkeep.py``).

    :param former: what the setting was; -1: not known yet.
    """

    NAME: ClassVar[str] = "route-localnet"

    bridge: str
    former: int = -1

    def describe(self) -> str:
        return f"let 127.0.0.0/8 of this host itself reach what is published on {self.bridge}"

    def describe_undo(self) -> str:
        return f"set route_localnet of {self.bridge} back to what it was"

    def execute(self, host: Host) -> Self:
        former = int(self._path(host).read_text(encoding="ascii"))
        self.open(host)
        return replace(self, former=former)

    def undo(self, host: Host) -> None:
        # A crash before the former value was written leaves -1: then it is what a bridge comes
        # with, unless somebody set the default of the whole host; that one's bridges are ours to
        # close, too.
        if self.former != 1:
            self.shut(host)

    def open(self, host: Host) -> None:
        """Have it so; ``former`` stays."""
        # PRIVILEGE: CAP_NET_ADMIN; one interface, which is ours.
        self._path(host).write_text("1\n", encoding="ascii")

    def shut(self, host: Host) -> None:
        """As if it were not there; also what somebody had set before."""
        path = self._path(host)
        if path.exists():
            # PRIVILEGE: CAP_NET_ADMIN; as above.
            path.write_text("0\n", encoding="ascii")

    def _path(self, host: Host) -> Path:
        return host.paths.proc_net / "ipv4/conf" / self.bridge / "route_localnet"

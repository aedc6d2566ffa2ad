# SPDX-License-Identifier: LGPL-2.1-or-later
"""A TAP is made and put on its bridge, as steps.

In this order::

    FilterTap    what its frames may carry, before the TAP is there
    CreateTap    the device, down and attached to nothing
    AttachTap    a port of the bridge, and up

Nothing here asks whether somebody may have it; ``tap.py`` does, before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from .errors import Busy, LimitsExceeded, StateChanged
from .firewall import TapRules, link_local
from .flows import end_flows
from .netlink import PortsExhausted
from .steps import Step
from .tun import create

if TYPE_CHECKING:
    from .host import Host

__all__ = ["AttachTap", "CreateTap", "FilterTap"]


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
            end_flows((*self.ipv4, *self.ipv6))
            addresses = (*self.ipv4, *self.ipv6, str(link_local(self.mac)))
            host.links.forget_neighbours(self.bridge, addresses)


@dataclass(frozen=True, slots=True)
class AttachTap(Step):
    """A port of the bridge, in its VLAN alone, and up.

    :param vlan: 0: the bridge's default one.
    :param bridge_ifindex: 0: whichever has the name, and learnt then.
    :param isolated: 1: nothing passes between it and another port of which this is true.
    """

    NAME: ClassVar[str] = "tap-attach"

    ifname: str
    bridge: str
    mac: str
    guest: str
    mtu: int
    altname: str
    vlan: int = 0
    bridge_ifindex: int = 0
    isolated: int = 0

    def describe(self) -> str:
        vlan = f" in VLAN {self.vlan} only" if self.vlan else ""
        isolated = ", isolated," if self.isolated else ""
        return f"attach {self.ifname} to {self.bridge}{vlan}{isolated} and set it up"

    def describe_undo(self) -> str:
        return "nothing: it ends with the TAP"

    def execute(self, host: Host) -> Self:
        ifindex, bridge = host.links.index_of(self.ifname), host.links.index_of(self.bridge)
        if self.bridge_ifindex not in (0, bridge):
            raise StateChanged(f"{self.bridge} is another bridge than a moment ago; ask again")
        named = host.links.add_altname(ifindex, self.altname)
        # A port has no layer 3 of its own; without this it would get a link-local address.
        disable = host.paths.proc_net / "ipv6/conf" / self.ifname / "disable_ipv6"
        if disable.exists():
            disable.write_text("1\n", encoding="ascii")
        try:
            host.links.attach(
                ifindex,
                bridge=bridge,
                mac=self.mac,
                guest=self.guest,
                mtu=self.mtu,
                vlan=self.vlan,
                isolated=bool(self.isolated),
            )
        except FileExistsError as error:
            raise Busy(f"the MAC address {self.guest} is in use on {self.bridge}") from error
        except PortsExhausted as error:
            raise LimitsExceeded(f"{self.bridge} has as many ports as a bridge can have") from error
        return replace(self, altname=self.altname if named else "", bridge_ifindex=bridge)

    def undo(self, host: Host) -> None:
        pass

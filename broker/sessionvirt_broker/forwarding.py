# SPDX-License-Identifier: LGPL-2.1-or-later
"""IPv4 forwarding, interface by interface, never globally.

The kernel asks the interface a packet *came in* by (ip_route_input_slow() in net/ipv4/route.c), so
NAT needs it on the bridge and, for the answers, on the interfaces with a default route. That alone
would make the host a router between those; the firewall's set ``uplinks`` lets what comes in there
go to our networks only, which is what the host did before.

Where forwarding is on for the whole host (Docker, an administrator), that is somebody's wish:
nothing is set, nothing restricted, nothing taken back.

IPv6 is not forwarded at all: a host that lives by router advertisements would lose its route.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from .steps import Step

if TYPE_CHECKING:
    from pathlib import Path

    from .host import Host


def is_global(proc_net: Path) -> bool:
    """Whether the whole host forwards IPv4."""
    return (proc_net / "ipv4/conf/all/forwarding").read_text() == "1\n"


@dataclass(frozen=True, slots=True)
class Forward(Step):
    """Forward what comes in by one interface.

    :param ifindex: which interface the name meant when this was planned.
    :param former: 1 where it forwarded before: then there is nothing to take back.
    """

    NAME: ClassVar[str] = "forward"

    ifname: str
    ifindex: int
    former: int

    @classmethod
    def of(cls, ifname: str, ifindex: int, proc_net: Path) -> Self:
        """The step for an interface as it is now."""
        return cls(ifname, ifindex, int(_path(proc_net, ifname).read_text(encoding="ascii")))

    def describe(self) -> str:
        return f"forward IPv4 that comes in by {self.ifname}"

    def describe_undo(self) -> str:
        return f"set IPv4 forwarding of {self.ifname} back to what it was"

    def execute(self, host: Host) -> Self:
        # PRIVILEGE: CAP_NET_ADMIN (net_ctl_permissions()); one interface, see above.
        _path(host.paths.proc_net, self.ifname).write_text("1\n", encoding="ascii")
        return self

    def undo(self, host: Host) -> None:
        link = host.links.by_name(self.ifname)
        if link is None or link.ifindex != self.ifindex or self.former:
            return
        if not is_global(host.paths.proc_net):
            _path(host.paths.proc_net, self.ifname).write_text("0\n", encoding="ascii")


def _path(proc_net: Path, ifname: str) -> Path:
    # The name is the kernel's own (RTM_GETLINK) or the bridge's; it cannot hold a slash.
    return proc_net / "ipv4/conf" / ifname / "forwarding"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forwarding, interface by interface, never globally.

The kernel asks the interface a packet *came in* by (ip_route_input_slow() in net/ipv4/route.c,
ip6_forward() in net/ipv6/ip6_output.c), so a network needs it on its bridge and, for the answers,
on the interfaces with a default route. That alone would make the host a router between those; the
firewall's sets ``uplinks`` and ``uplinks6`` let what comes in there go to our networks only, which
is what the host did before.

Where forwarding is on for the whole host (Docker, an administrator), that is somebody's wish:
nothing is set, nothing restricted, nothing taken back.

IPv6 has two settings of an interface that sound alike. ``force_forwarding`` (Linux 6.17) forwards
what comes in by it. ``forwarding`` makes the host a router *on* it: it takes no advertisements of
others and calls itself a router, without which guests forget their default route as soon as they
ask whether the gateway is still there (RFC 4861, 7.2.5). The bridge needs both. But the kernel,
when the latter is turned on anywhere, drops the default routes of the whole host that it has by
router advertisements, but for interfaces with accept_ra=2 (addrconf_fixup_forwarding() and
rt6_purge_dflt_routers()). A host that lives by such a route keeps it: :func:`refuse_ipv6`.
An uplink gets the former only, and so goes on taking advertisements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from .errors import NotSupported
from .steps import Step

if TYPE_CHECKING:
    from pathlib import Path

    from .host import Host

#: RTF_DEFAULT | RTF_ADDRCONF (linux/ipv6_route.h): a default route by an advertisement that the
#: kernel itself took. NetworkManager's and networkd's, which they set, have neither.
_BY_ADVERTISEMENT = 0x00010000 | 0x00040000


def is_global(proc_net: Path, version: int = 4) -> bool:
    """Whether the whole host forwards; a host without IPv6 does not forward it."""
    try:
        return (proc_net / f"ipv{version}/conf/all/forwarding").read_text() == "1\n"
    except FileNotFoundError:
        return False


def refuse_ipv6(host: Host) -> str:
    """Why a network's IPv6 cannot go out; empty: it can."""
    proc_net = host.paths.proc_net
    if not (proc_net / "ipv6").is_dir():
        return "this host has no IPv6"
    whole = is_global(proc_net, 6)
    if whole and (proc_net / "ipv6/conf/default/forwarding").read_text() == "1\n":
        return ""  # a new bridge is a router's from the start
    lost = _would_be_lost(proc_net, host.paths.ipv6_routes)
    one_by_one = (proc_net / "ipv6/conf/all/force_forwarding").exists()
    if not lost and (whole or one_by_one):
        return ""
    todo = [f"net.ipv6.conf.{name}.accept_ra=2" for name in lost]
    if not whole and not one_by_one:
        todo.append("net.ipv6.conf.all.forwarding=1")
    effect = (
        f"; turning it on would take the default route that {' and '.join(lost)}"
        f" {'have' if len(lost) > 1 else 'has'} by router advertisements"
        if lost
        else ", and this kernel cannot turn it on for single interfaces (Linux 6.17 can)"
    )
    return f"IPv6 forwarding is off{effect}; an administrator can set {' and '.join(todo)}"


def _would_be_lost(proc_net: Path, routes: Path) -> list[str]:
    """Interfaces whose default route the kernel would drop."""
    found = set()
    try:
        lines = routes.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    for line in lines:
        # Documentation: rt6_info_route() in net/ipv6/route.c; all but the last are hexadecimal.
        words = line.split()
        if len(words) == 10 and int(words[8], 16) & _BY_ADVERTISEMENT == _BY_ADVERTISEMENT:
            accept_ra = proc_net / "ipv6/conf" / words[9] / "accept_ra"
            if accept_ra.exists() and accept_ra.read_text() != "2\n":
                found.add(words[9])
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Forward(Step):
    """Forward what comes in by one interface.

    :param ifindex: which interface the name meant when this was planned.
    :param former: 1 where it forwarded before: then there is nothing to take back.
    :param version: 4 or 6.
    """

    NAME: ClassVar[str] = "forward"

    ifname: str
    ifindex: int
    former: int
    version: int = 4

    @classmethod
    def of(cls, ifname: str, ifindex: int, proc_net: Path, version: int = 4) -> Self:
        """The step for an interface as it is now."""
        former = int(_path(proc_net, ifname, version).read_text(encoding="ascii"))
        return cls(ifname, ifindex, former, version)

    def describe(self) -> str:
        return f"forward IPv{self.version} that comes in by {self.ifname}"

    def describe_undo(self) -> str:
        return f"set IPv{self.version} forwarding of {self.ifname} back to what it was"

    def execute(self, host: Host) -> Self:
        # PRIVILEGE: CAP_NET_ADMIN (net_ctl_permissions()); one interface, see above.
        path = _path(host.paths.proc_net, self.ifname, self.version)
        path.write_text("1\n", encoding="ascii")
        return self

    def undo(self, host: Host) -> None:
        link = host.links.by_name(self.ifname)
        if link is None or link.ifindex != self.ifindex or self.former:
            return
        # Where the whole host forwards by now, IPv4's is the same switch and somebody else's.
        if self.version == 6 or not is_global(host.paths.proc_net):
            path = _path(host.paths.proc_net, self.ifname, self.version)
            path.write_text("0\n", encoding="ascii")


@dataclass(frozen=True, slots=True)
class BridgeForward(Step):
    """Forwarding of a network's bridge itself; it goes when the bridge does.

    :param ipv6: whether IPv6 is forwarded, too, and ``ipv4`` likewise.
    """

    NAME: ClassVar[str] = "bridge-forward"

    bridge: str
    ipv4: int = 1
    ipv6: int = 0

    def describe(self) -> str:
        versions = " and ".join([*["IPv4"] * self.ipv4, *["IPv6"] * self.ipv6])
        return f"forward {versions} that comes in by {self.bridge}"

    def describe_undo(self) -> str:
        return "nothing: it ends with the bridge"

    def execute(self, host: Host) -> Self:
        # PRIVILEGE: CAP_NET_ADMIN; one interface, which is ours.
        conf = host.paths.proc_net
        if self.ipv4:
            _path(conf, self.bridge, 4).write_text("1\n", encoding="ascii")
        if self.ipv6:
            router = conf / "ipv6/conf" / self.bridge / "forwarding"
            if router.read_text() != "1\n":
                # Asked again in the last moment: an advertisement may have come since. One that
                # comes between this line and the next is the race that is left; the next one of
                # that router brings its route back.
                if reason := refuse_ipv6(host):
                    raise NotSupported(reason)
                router.write_text("1\n", encoding="ascii")
            forced = _path(conf, self.bridge, 6)
            if forced.exists():
                forced.write_text("1\n", encoding="ascii")
        return self

    def undo(self, host: Host) -> None:
        pass


def uplink_steps(host: Host, version: int = 4) -> tuple[Forward, ...]:
    """Forwarding of the interfaces with a default route; none where the whole host forwards."""
    conf = host.paths.proc_net
    if is_global(conf, version):
        return ()
    uplinks = sorted(host.links.uplinks(version).items())
    if version == 6:
        uplinks = [(i, name) for i, name in uplinks if _path(conf, name, 6).exists()]
    return tuple(Forward.of(name, index, conf, version) for index, name in uplinks)


def _path(proc_net: Path, ifname: str, version: int) -> Path:
    # The name is the kernel's own (RTM_GETLINK) or the bridge's; it cannot hold a slash.
    switch = {4: "forwarding", 6: "force_forwarding"}[version]
    return proc_net / f"ipv{version}/conf" / ifname / switch

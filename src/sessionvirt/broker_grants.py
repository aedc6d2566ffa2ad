# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker has granted, a class for each kind, and how an answer is read into it.

What this never does: talk to the bus, own a descriptor (a :class:`.broker_data.Lease` does).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from .broker_requests import (
    FDS_PER_DEVICE,
    BandwidthRequest,
    DirectRequest,
    FilterRequest,
    PciRequest,
    PublishRequest,
    Rate,
    TapRequest,
)
from .broker_values import malformed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .broker_values import Descriptors, Fields
    from .descriptors import Fd

__all__ = [
    "BandwidthGrant", "FilterGrant", "Grant", "PciGrant", "PublishGrant", "TapGrant", "read_grant",
]  # fmt: skip


@dataclass(frozen=True)
class TapGrant:
    """A TAP or macvtap device that is held.

    :param id: its name within the lease.
    :param fds: one for each queue; none where a lease is only listed. The lease owns them.
    :param vhost_fds: of /dev/vhost-net, likewise; none where the host has none, or nobody asked.
    :param vhost: whether it was given those.
    :param ifname: the host's name of it.
    :param altname: its second name, for people; empty: somebody else has that.
    :param device: the host's interface that a macvtap shares, as its ``mode`` says; else empty.
    :param vlan: the one that was asked for on the bridge; 0: none was.
    :param mac: the only source address that the guest may use.
    :param mtu: bytes.
    :param ipv4: addresses that the guest may use; empty: not restricted.
    :param dns: what it is found by on its network; empty: nothing.
    :param isolated: nothing passes between it and other TAPs there that are so.
    :param drops: its frames that the filter dropped, by reason; None: not told.
    :param ipv6: likewise, beside the link-local one of the MAC.
    """

    id: str
    kind: str
    fds: tuple[Fd, ...]
    ifname: str
    ifindex: int
    mac: str
    mtu: int
    network: str
    bridge: str
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    vlan: int = 0
    vhost_fds: tuple[Fd, ...] = ()
    vhost: bool = False
    altname: str = ""
    dns: str = ""
    device: str = ""
    mode: str = ""
    isolated: bool = False
    drops: Mapping[str, int] | None = field(default=None, hash=False)

    @property
    def descriptors(self) -> tuple[Fd, ...]:
        """All that came with it."""
        return (*self.fds, *self.vhost_fds)


@dataclass(frozen=True)
class PciGrant:
    """A PCI device that is held, with its whole isolation group.

    :param id: its name within the lease.
    :param fds: an iommufd and the device; or none: QEMU opens the node itself. The lease owns them.
    :param name: vendor and model in words.
    :param group: the number of its IOMMU group.
    :param members: the address of every device of the group, its own included.
    :param node: what the user may open until the lease ends; empty: nothing.
    :param driver: the VFIO driver that has it now.
    :param former: the driver that gets it back; may be empty.
    :param mac: what its card was told; empty: nothing. ``vlan`` likewise, 0.
    """

    id: str
    kind: str
    fds: tuple[Fd, ...]
    address: str
    name: str
    group: int
    members: tuple[str, ...]
    node: str
    driver: str
    former: str
    mac: str = ""
    vlan: int = 0

    @property
    def descriptors(self) -> tuple[Fd, ...]:
        """All that came with it."""
        return self.fds


@dataclass(frozen=True)
class BandwidthGrant:
    """The limit of what a TAP of the same lease receives and sends.

    :param id: its name within the lease; of several for one TAP the last is in force.
    :param tap: the TAP's.
    :param inbound: what the guest receives; None: no limit. Likewise ``outbound``.
    """

    id: str
    kind: str
    tap: str
    inbound: Rate | None
    outbound: Rate | None

    @property
    def descriptors(self) -> tuple[Fd, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class FilterGrant:
    """What a guest may not.

    :param id: its name within the lease.
    :param tap: that of the TAP.
    """

    id: str
    kind: str
    tap: str
    deny_outbound: tuple[str, ...] = ()
    allow_outbound: tuple[str, ...] = ()
    deny_inbound: tuple[str, ...] = ()
    allow_inbound: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    only_mac: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    no_broadcast: bool = False
    no_multicast4: bool = False
    no_multicast6: bool = False

    @property
    def descriptors(self) -> tuple[Fd, ...]:
        """None come with it."""
        return ()

    @property
    def fds(self) -> tuple[Fd, ...]:
        """Likewise."""
        return ()

    @property
    def words(self) -> str:
        """What it forbids, for a table."""
        lists = ("deny_outbound", "allow_outbound", "deny_inbound", "allow_inbound")
        said = [f"{n.replace('_', ' ')} {', '.join(v)}" for n in lists if (v := getattr(self, n))]
        if self.deny:
            said.append(f"no {', '.join(self.deny)}")
        if self.only_mac:
            said.append(f"only with {', '.join(self.only_mac)}")
        if self.addresses:
            said.append(f"only from {', '.join(self.addresses)}")
        flags = {"no_broadcast": "broadcast", "no_multicast4": "multicast",
                 "no_multicast6": "IPv6 multicast"}  # fmt: skip
        return "; ".join([*said, *(f"no {w}" for n, w in flags.items() if getattr(self, n))])


@dataclass(frozen=True)
class PublishGrant:
    """Ports of the host that lead to a guest.

    :param id: its name within the lease.
    :param tap: the grant's that it goes with.
    :param address: of the host; empty: every one of the IP versions of ``guest``.
    :param ports: how many, from both on.
    :param guest: the addresses that they lead to.
    :param fds: none.
    """

    id: str
    kind: str
    tap: str
    protocol: str
    address: str
    host_port: int
    guest_port: int
    ports: int
    guest: tuple[str, ...]
    fds: tuple[Fd, ...] = ()

    @property
    def descriptors(self) -> tuple[Fd, ...]:
        """All that came with it."""
        return self.fds


Grant: TypeAlias = TapGrant | PciGrant | BandwidthGrant | FilterGrant | PublishGrant


def read_grant(fields: Fields, fds: Descriptors | None) -> Grant:
    """Read a grant, of whichever kind it is.

    :param fds: None: the grant is of a list and has no descriptors.
    """
    kind = fields.text("kind")
    if kind in (TapRequest.kind, DirectRequest.kind):
        return read_tap(fields, fds)
    if kind == PciRequest.kind:
        return read_pci(fields, fds)
    if kind == PublishRequest.kind:
        return read_published(fields)
    if kind == BandwidthRequest.kind:
        return read_bandwidth(fields)
    if kind == FilterRequest.kind:
        return read_filter(fields)
    raise malformed(f"a grant of the unknown kind {kind!r}")


def read_tap(fields: Fields, fds: Descriptors | None) -> TapGrant:
    """Read the grant of a TAP or macvtap device."""
    name = fields.text("id")
    indices = fields.numbers("fds", "ah") if fields.has("fds") or fds is not None else ()
    vhost = fields.flag("vhost")
    queues = len(indices) // 2 if vhost else len(indices)
    if vhost and len(indices) != 2 * queues:
        raise malformed(f"{name}: {len(indices)} descriptors for queues and vhost")
    given = () if fds is None else tuple(fds.take(index, name) for index in indices)
    return TapGrant(
        id=name,
        kind=fields.text("kind"),
        fds=given[:queues],
        vhost_fds=given[queues:],
        vhost=vhost,
        altname=fields.text("altname"),
        dns=fields.text("dns"),
        ifname=fields.text("ifname"),
        ifindex=fields.number("ifindex"),
        mac=fields.text("mac"),
        mtu=fields.number("mtu"),
        network=fields.text("network") if fields.has("network") else "",
        bridge=fields.text("bridge") if fields.has("bridge") else "",
        device=fields.text("device") if fields.has("device") else "",
        mode=fields.text("mode") if fields.has("mode") else "",
        vlan=fields.number("vlan") if fields.has("vlan") else 0,
        isolated=fields.flag("isolated") if fields.has("isolated") else False,
        drops=fields.counters("drops") if fields.has("drops") else None,
        ipv4=fields.texts("ipv4"),
        ipv6=fields.texts("ipv6"),
    )


def read_pci(fields: Fields, fds: Descriptors | None) -> PciGrant:
    """Read the grant of a PCI device, which comes as two descriptors or with none."""
    name = fields.text("id")
    indices = fields.numbers("fds", "ah") if fds is not None else ()
    if len(indices) not in (0, FDS_PER_DEVICE):
        raise malformed(f"{name}: a PCI device with {len(indices)} descriptors")
    return PciGrant(
        id=name,
        kind=fields.text("kind"),
        fds=() if fds is None else tuple(fds.take(index, name) for index in indices),
        address=fields.text("address"),
        name=fields.text("name"),
        group=fields.number("group"),
        members=fields.texts("members"),
        node=fields.text("node"),
        driver=fields.text("driver"),
        former=fields.text("former"),
        # An older broker says neither.
        mac=fields.text("mac") if fields.has("mac") else "",
        vlan=fields.number("vlan") if fields.has("vlan") else 0,
    )


def read_published(fields: Fields) -> PublishGrant:
    """Read the grant of published ports, which comes without descriptors."""
    if fields.has("fds") and fields.numbers("fds", "ah"):
        raise malformed("published ports with descriptors")
    return PublishGrant(
        id=fields.text("id"),
        kind=fields.text("kind"),
        tap=fields.text("tap"),
        protocol=fields.text("protocol"),
        address=fields.text("address"),
        host_port=fields.number("host_port"),
        guest_port=fields.number("guest_port"),
        ports=fields.number("ports"),
        guest=fields.texts("guest"),
    )


def read_bandwidth(fields: Fields) -> BandwidthGrant:
    """Read the grant of a limit, which has no descriptors."""
    if fields.numbers("fds", "ah"):
        raise malformed("a limit with descriptors")
    inbound = Rate(
        fields.number("inbound_average"),
        fields.number("inbound_peak"),
        fields.number("inbound_burst"),
    )
    outbound = Rate(
        fields.number("outbound_average"),
        fields.number("outbound_peak"),
        fields.number("outbound_burst"),
    )
    return BandwidthGrant(
        id=fields.text("id"),
        kind=fields.text("kind"),
        tap=fields.text("tap"),
        inbound=inbound if inbound.average else None,
        outbound=outbound if outbound.average else None,
    )


def read_filter(fields: Fields) -> FilterGrant:
    """Read the grant of a filter."""
    return FilterGrant(
        id=fields.text("id"),
        kind=fields.text("kind"),
        tap=fields.text("tap"),
        deny_outbound=fields.texts("deny_outbound"),
        allow_outbound=fields.texts("allow_outbound"),
        deny_inbound=fields.texts("deny_inbound"),
        allow_inbound=fields.texts("allow_inbound"),
        deny=fields.texts("deny"),
        only_mac=fields.texts("only_mac"),
        addresses=fields.texts("addresses"),
        no_broadcast=fields.flag("no_broadcast"),
        no_multicast4=fields.flag("no_multicast4"),
        no_multicast6=fields.flag("no_multicast6"),
    )

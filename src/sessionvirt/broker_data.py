# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker answers, as frozen dataclasses.

What it is asked for is :mod:`sessionvirt.broker_requests`, whose names are here, too. The contract
is ``broker/org.sessionvirt.Broker1.xml``; this is its session side. Each value is read as the D-Bus
type that the contract gives it, by :mod:`sessionvirt.broker_values`. Keys that are not known here
are a newer broker's and do no harm.

What this never does: talk to the bus.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeAlias

from .broker_requests import (
    FDS_PER_DEVICE,
    BandwidthRequest,
    DirectRequest,
    FilterRequest,
    PciRequest,
    PublishRequest,
    Rate,
    Request,
    TapRequest,
)
from .broker_values import malformed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .broker_values import Descriptors, Fields
    from .descriptors import Fd

__all__ = [
    "BandwidthGrant", "BandwidthRequest", "DeviceInfo", "Diagnosis", "FilterGrant", "FilterRequest",
    "Grant", "Lease", "LeaseInfo", "NetworkInfo", "PciGrant", "PciRequest", "Plan",
    "PlannedRequest", "PublishGrant", "PublishRequest", "Rate", "Request", "Step", "TapGrant",
    "TapRequest",
]  # fmt: skip


@dataclass(frozen=True)
class PlannedRequest:
    """The broker's answer to one request of a plan.

    :param verdict: "yes", "ask" or "no".
    :param action: the polkit action.
    :param reason: empty for "yes".
    """

    kind: str
    verdict: str
    action: str
    reason: str


@dataclass(frozen=True)
class Step:
    """One change of the host, and what undoes it; both are sentences."""

    do: str
    undo: str


@dataclass(frozen=True)
class Plan:
    """What an Acquire with the same requests would do.

    :param verdict: "yes", "ask" or "no", for all of them together.
    :param action: the polkit action that would be asked; empty where none would.
    :param prompt: the sentence of the prompt; empty likewise.
    """

    verdict: str
    action: str
    prompt: str
    requests: tuple[PlannedRequest, ...]
    steps: tuple[Step, ...]


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


@dataclass(frozen=True)
class Lease:
    """Everything that one VM start was given; a context manager that closes our descriptors.

    :param path: the D-Bus object path that names it to the broker.
    :param hold: while any copy of this is open, the broker keeps what was granted.
    :param grants: one for each request, in order.
    """

    path: str
    hold: Fd
    grants: tuple[Grant, ...]

    @property
    def taps(self) -> tuple[TapGrant, ...]:
        """The TAP devices, in order."""
        return tuple(grant for grant in self.grants if isinstance(grant, TapGrant))

    @property
    def devices(self) -> tuple[PciGrant, ...]:
        """The host's devices, in order."""
        return tuple(grant for grant in self.grants if isinstance(grant, PciGrant))

    def close(self) -> None:
        """Close what is still ours; where QEMU has no copies, this gives everything back."""
        self.hold.close()
        for grant in self.grants:
            for fd in grant.descriptors:
                fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@dataclass(frozen=True)
class NetworkInfo:
    """A managed network, or a bridge or interface that the administrator permits.

    :param type: "network", "bridge" or "direct".
    :param mode: "nat", "route", "isolated" or "open"; of a bridge "lan"; of an interface what is
        offered, like "bridge,private".
    :param mtu: bytes; 0: there is no such bridge.
    :param ipv4: the host's addresses with their prefixes; may be empty, like ``ipv6``.
    :param leases: how many interfaces the caller has there; for root everybody's.
    """

    name: str
    type: str
    mode: str
    bridge: str
    up: bool
    mtu: int
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    leases: int


@dataclass(frozen=True)
class DeviceInfo:
    """A PCI function of the host.

    :param ids: vendor and model as "8086:10d3"; ``subsystem`` likewise, or empty.
    :param class_code: six hexadecimal digits.
    :param driver: may be empty.
    :param variant: the module with a VFIO driver that is made for it; empty: none.
    :param group: the number of its IOMMU group; empty: no IOMMU has it.
    :param endpoint: False: a bridge.
    :param resets: the kernel's ways to reset it; none: what a guest left may stay in it.
    :param rom: it has an expansion ROM.
    :param uses: what on the host would suffer; the function's own.
    :param holder: the VM that has it; "-": another user's; empty: none.
    :param verdict: "free", "group", "refused", "held", "no-iommu" or "bridge".
    """

    address: str
    name: str
    ids: str
    subsystem: str
    class_code: str
    driver: str
    variant: str
    group: str
    endpoint: bool
    resets: tuple[str, ...]
    rom: bool
    uses: tuple[str, ...]
    holder: str
    verdict: str


@dataclass(frozen=True)
class LeaseInfo:
    """A lease of this user; for root anybody's.

    :param state: "held" or "releasing".
    :param since: seconds since the epoch.
    :param allowed: "yes" without a prompt, "configured" where broker.toml answered it beforehand,
        "asked" after one.
    :param drops: frames that the filter dropped, by reason.
    :param process: QEMU's, where it was let lock memory; else 0.
    :param degraded: why the filter of its interfaces may not be there; empty: it is.
    """

    lease: str
    vm: str
    uid: int
    state: str
    since: int
    allowed: str
    grants: tuple[Grant, ...]
    drops: Mapping[str, int]
    process: int
    degraded: str = ""

    def filters(self, tap: str) -> tuple[FilterGrant, ...]:
        """Those of a TAP, by its grant's id; the last one holds."""
        return tuple(one for one in self.grants if isinstance(one, FilterGrant) and one.tap == tap)

    @property
    def name(self) -> str:
        """What people call it: the last part of its path."""
        return self.lease.rpartition("/")[2]


@dataclass(frozen=True)
class Obstacle:
    """A rule of somebody else's that stops a guest's packets; the contract says what each means."""

    lease: str
    vm: str
    bridge: str
    traffic: str
    ip: int
    family: str
    table: str
    chain: str
    handle: int
    hook: str
    priority: int
    verdict: str
    certainty: str


@dataclass(frozen=True)
class TraceStep:
    """One rule that a packet met, or the end of a chain; the contract says what each means."""

    packet: int
    direction: str
    family: str
    table: str
    chain: str
    handle: int
    type: str
    verdict: str
    target: str
    hook: str


@dataclass(frozen=True)
class Diagnosis:
    """Facts about the host as the broker sees it; the contract says what each means."""

    version: str
    boot_id: str
    capabilities: tuple[str, ...]
    missing_capabilities: tuple[str, ...]
    polkit: str
    nft_tables: str
    ip_forward: bool
    bridge_nf_call: bool
    dnsmasq: str
    systemd: bool
    tun: bool
    configuration: str
    foreign_forward_drops: tuple[str, ...]
    legacy_tables: tuple[str, ...] = ()


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


def read_plan(fields: Fields) -> Plan:
    """Read the answer of Plan."""
    return Plan(
        verdict=fields.text("verdict"),
        action=fields.text("action"),
        prompt=fields.text("prompt"),
        requests=tuple(
            PlannedRequest(
                kind=row.text("kind"),
                verdict=row.text("verdict"),
                action=row.text("action"),
                reason=row.text("reason"),
            )
            for row in fields.rows("requests")
        ),
        steps=tuple(Step(do, undo) for do, undo in fields.pairs("steps")),
    )


def read_network(fields: Fields) -> NetworkInfo:
    """Read one row of ListNetworks."""
    return NetworkInfo(
        name=fields.text("name"),
        type=fields.text("type"),
        mode=fields.text("mode"),
        bridge=fields.text("bridge"),
        up=fields.flag("up"),
        mtu=fields.number("mtu"),
        ipv4=fields.texts("ipv4"),
        ipv6=fields.texts("ipv6"),
        leases=fields.number("leases"),
    )


def read_device(fields: Fields) -> DeviceInfo:
    """Read one row of ListDevices."""
    return DeviceInfo(
        address=fields.text("address"),
        name=fields.text("name"),
        ids=fields.text("ids"),
        subsystem=fields.text("subsystem"),
        class_code=fields.text("class"),
        driver=fields.text("driver"),
        variant=fields.text("variant"),
        group=fields.text("group"),
        endpoint=fields.flag("endpoint"),
        resets=fields.texts("resets"),
        rom=fields.flag("rom"),
        uses=fields.texts("uses"),
        holder=fields.text("holder"),
        verdict=fields.text("verdict"),
    )


def read_lease(fields: Fields) -> LeaseInfo:
    """Read one row of ListLeases."""
    return LeaseInfo(
        lease=fields.path("lease"),
        vm=fields.text("vm"),
        uid=fields.number("uid"),
        state=fields.text("state"),
        since=fields.number("since", "t"),
        allowed=fields.text("allowed"),
        grants=tuple(read_grant(row, None) for row in fields.rows("grants")),
        drops=fields.counters("drops"),
        process=fields.number("process"),
        # An older broker does not say it.
        degraded=fields.text("degraded") if fields.has("degraded") else "",
    )


def read_diagnosis(fields: Fields) -> Diagnosis:
    """Read the answer of Diagnose."""
    return Diagnosis(
        version=fields.text("version"),
        boot_id=fields.text("boot_id"),
        capabilities=fields.texts("capabilities"),
        missing_capabilities=fields.texts("missing_capabilities"),
        polkit=fields.text("polkit"),
        nft_tables=fields.text("nft_tables"),
        ip_forward=fields.flag("ip_forward"),
        bridge_nf_call=fields.flag("bridge_nf_call"),
        dnsmasq=fields.text("dnsmasq"),
        systemd=fields.flag("systemd"),
        tun=fields.flag("tun"),
        configuration=fields.text("configuration"),
        foreign_forward_drops=fields.texts("foreign_forward_drops"),
        # An older broker does not say it.
        legacy_tables=fields.texts("legacy_tables") if fields.has("legacy_tables") else (),
    )


def read_obstacle(fields: Fields) -> Obstacle:
    """Read one row of ListObstacles."""
    return Obstacle(
        lease=fields.path("lease"),
        vm=fields.text("vm"),
        bridge=fields.text("bridge"),
        traffic=fields.text("traffic"),
        ip=fields.number("ip"),
        family=fields.text("family"),
        table=fields.text("table"),
        chain=fields.text("chain"),
        handle=fields.number("handle", "t"),
        hook=fields.text("hook"),
        priority=fields.number("priority", "i"),
        verdict=fields.text("verdict"),
        certainty=fields.text("certainty"),
    )


def read_trace(fields: Fields) -> TraceStep:
    """Read one step of Trace."""
    return TraceStep(
        packet=fields.number("packet"),
        direction=fields.text("direction"),
        family=fields.text("family"),
        table=fields.text("table"),
        chain=fields.text("chain"),
        handle=fields.number("handle", "t"),
        type=fields.text("type"),
        verdict=fields.text("verdict"),
        target=fields.text("target"),
        hook=fields.text("hook"),
    )

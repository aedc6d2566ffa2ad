# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker answers, as frozen dataclasses.

What it is asked for is :mod:`sessionvirt.broker_requests`, and what it grants
:mod:`sessionvirt.broker_grants`, whose names are here, too. The contract
is ``broker/org.sessionvirt.Broker1.xml``; this is its session side. Each value is read as the D-Bus
type that the contract gives it, by :mod:`sessionvirt.broker_values`. Keys that are not known here
are a newer broker's and do no harm.

What this never does: talk to the bus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from .broker_grants import (
    BandwidthGrant,
    FilterGrant,
    Grant,
    PciGrant,
    PublishGrant,
    TapGrant,
    read_grant,
)
from .broker_requests import (
    BandwidthRequest,
    FilterRequest,
    PciRequest,
    PublishRequest,
    Rate,
    Request,
    TapRequest,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .broker_values import Fields
    from .descriptors import Fd

__all__ = [
    "BandwidthGrant", "BandwidthRequest", "DeviceInfo", "Diagnosis", "FilterGrant", "FilterRequest",
    "Grant", "Lease", "LeaseInfo", "NetworkInfo", "PciGrant", "PciRequest", "Plan",
    "PlannedRequest", "PublishGrant", "PublishRequest", "Rate", "Request", "Step", "TapGrant",
    "TapRequest",
    "read_grant",
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

    def limits(self, tap: str) -> tuple[BandwidthGrant, ...]:
        """Likewise."""
        found = (one for one in self.grants if isinstance(one, BandwidthGrant))
        return tuple(one for one in found if one.tap == tap)

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

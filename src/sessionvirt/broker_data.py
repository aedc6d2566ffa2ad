# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker is asked for and what it answers, as frozen dataclasses.

The contract is ``broker/org.sessionvirt.Broker1.xml``; this is its session side. Each value is read
as the D-Bus type that the contract gives it, by :mod:`sessionvirt.broker_values`. Keys that are not
known here are a newer broker's and do no harm.

What this never does: talk to the bus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from .broker_values import malformed
from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .broker_values import Descriptors, Fields
    from .descriptors import Fd

__all__ = [
    "Diagnosis", "Lease", "LeaseInfo", "NetworkInfo", "Plan", "PlannedRequest", "Step", "TapGrant",
    "TapRequest",
]  # fmt: skip


@dataclass(frozen=True)
class TapRequest:
    """A TAP device on a managed network or on a bridge that the administrator permits.

    :param network: a managed network's name; or
    :param bridge: a bridge's name. Exactly one of the two.
    :param mac: the guest's address; by default the broker derives one, the same at every start.
    :param queues: queue pairs.
    :raise UsageError: both or none of network and bridge.
    """

    network: str | None = None
    bridge: str | None = None
    mac: str | None = None
    queues: int = 1

    def __post_init__(self) -> None:
        if (self.network is None) == (self.bridge is None):
            raise UsageError("a TAP is asked for on a network or on a bridge")

    def parameters(self) -> dict[str, tuple[str, str | int]]:
        """Return what is sent: name to D-Bus type and value."""
        texts = {"network": self.network, "bridge": self.bridge, "mac": self.mac}
        sent: dict[str, tuple[str, str | int]] = {
            name: ("s", text) for name, text in texts.items() if text is not None
        }
        if self.queues != 1:
            sent["queues"] = ("u", self.queues)
        return sent


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
    """A TAP device that is held.

    :param id: its name within the lease.
    :param fds: one for each queue; none where a lease is only listed. The lease owns them.
    :param ifname: the host's name of it.
    :param mac: the only source address that the guest may use.
    :param mtu: bytes.
    :param ipv4: addresses that the guest may use; empty: not restricted.
    :param ipv6: likewise, beside the link-local one of the MAC.
    """

    id: str
    fds: tuple[Fd, ...]
    ifname: str
    ifindex: int
    mac: str
    mtu: int
    network: str
    bridge: str
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]


@dataclass(frozen=True)
class Lease:
    """Everything that one VM start was given; a context manager that closes our descriptors.

    :param path: the D-Bus object path that names it to the broker.
    :param hold: while any copy of this is open, the broker keeps what was granted.
    """

    path: str
    hold: Fd
    grants: tuple[TapGrant, ...]

    def close(self) -> None:
        """Close what is still ours; where QEMU has no copies, this gives everything back."""
        self.hold.close()
        for grant in self.grants:
            for fd in grant.fds:
                fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@dataclass(frozen=True)
class NetworkInfo:
    """A managed network, or a bridge that the administrator permits.

    :param type: "network" or "bridge".
    :param mode: "nat" or "lan".
    :param ipv4: the host's address and prefix; may be empty, like ``ipv6``.
    :param leases: how many the caller has there; for root everybody's.
    """

    name: str
    type: str
    mode: str
    bridge: str
    up: bool
    ipv4: str
    ipv6: str
    leases: int


@dataclass(frozen=True)
class LeaseInfo:
    """A lease of this user; for root anybody's.

    :param state: "held" or "releasing".
    :param since: seconds since the epoch.
    :param allowed: "yes" without a prompt, "asked" after one.
    :param drops: frames that the filter dropped, by reason.
    """

    lease: str
    vm: str
    uid: int
    state: str
    since: int
    allowed: str
    grants: tuple[TapGrant, ...]
    drops: Mapping[str, int]


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


def read_grant(fields: Fields, fds: Descriptors | None) -> TapGrant:
    """Read a grant.

    :param fds: None: the grant is of a list and has no descriptors.
    """
    kind = fields.text("kind")
    if kind != "tap":
        raise malformed(f"a grant of the unknown kind {kind!r}")
    name = fields.text("id")
    indices = fields.numbers("fds", "ah") if fields.has("fds") or fds is not None else ()
    return TapGrant(
        id=name,
        fds=() if fds is None else tuple(fds.take(index, name) for index in indices),
        ifname=fields.text("ifname"),
        ifindex=fields.number("ifindex"),
        mac=fields.text("mac"),
        mtu=fields.number("mtu"),
        network=fields.text("network") if fields.has("network") else "",
        bridge=fields.text("bridge") if fields.has("bridge") else "",
        ipv4=fields.texts("ipv4"),
        ipv6=fields.texts("ipv6"),
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
        ipv4=fields.text("ipv4"),
        ipv6=fields.text("ipv6"),
        leases=fields.number("leases"),
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
    )

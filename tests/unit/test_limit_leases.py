# SPDX-License-Identifier: LGPL-2.1-or-later
"""Grants that rest on a TAP: they come after it, go with it, and each other's order is kept.

The kernel's part is played: links and a policer that note what is in force. That the real ones do
it is proved with packets in the kernel tier.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lab.nofirewall import no_firewall
from sessionvirt_broker.bandwidth import BandwidthKind
from sessionvirt_broker.config import BUILTIN
from sessionvirt_broker.errors import HostFailure, InvalidRequest, LimitsExceeded, NotFound
from sessionvirt_broker.host import Host, Paths
from sessionvirt_broker.htb import Rate
from sessionvirt_broker.journal import Journal
from sessionvirt_broker.kind import Offer, Owner, Plan, Request
from sessionvirt_broker.kinds import STEPS
from sessionvirt_broker.leases import Leases
from sessionvirt_broker.limits import Share
from sessionvirt_broker.tapsteps import FilterTap
from sessionvirt_broker.wire import VmName

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sessionvirt_broker.lease import Acquired

pytestmark = pytest.mark.unit

UID = os.getuid()
OWNER = Owner(UID, VmName("web"))
TAP: Any = ("tap", {})


def limit(average: int, tap: str = "tap0", **more: int) -> Any:
    rates = {key: ("u", value) for key, value in more.items()}
    return "bandwidth", {"tap": ("s", tap), "inbound_average": ("u", average), **rates}


class Kernel:
    """Links, and the policer of a firewall."""

    def __init__(self) -> None:
        self.inbound: dict[int, Rate] = {}
        self.outbound: dict[str, Rate] = {}
        self.broken = False

    def index_of(self, name: str) -> int:
        return int(name.removeprefix("svt")) + 100

    def by_index(self, ifindex: int) -> object:
        return ifindex

    def limit(self, ifindex: int, rate: Rate) -> None:
        self.inbound[ifindex] = rate

    def unlimited(self, ifindex: int) -> None:
        self.inbound.pop(ifindex, None)

    def is_limited(self, ifindex: int) -> bool:
        return ifindex in self.inbound

    def set_rate(self, ifname: str, rate: Rate) -> None:
        if self.broken:
            raise HostFailure("nft refuses")
        self.outbound[ifname] = rate

    def remove(self, ifname: str) -> None:
        self.outbound.pop(ifname, None)

    def adopt(self, rates: dict[str, Rate]) -> None:
        self.outbound = dict(rates)


@dataclass(frozen=True, slots=True)
class FakeTap:
    """As much of the kind ``tap`` as others rest on."""

    broken: set[str]
    name: str = "tap"
    fds_fact: str = "ifname"

    def parse(self, fields: Any, position: int, configuration: Any) -> Request:
        return Request(position)

    def is_ready(self, request: Request, host: Host) -> bool:
        return True

    def prepare(self, request: Request, host: Host) -> None:
        pass

    def survey(self, request: Request, owner: Owner, configuration: Any, host: Host) -> Offer:
        return Offer("network-attach", "", (("vm", owner.vm),), "", Share(taps=1), ())

    def plan(self, request: Request, owner: Owner, configuration: Any, host: Host) -> Plan:
        mac = f"52:54:00:00:00:{request.position:02x}"
        return Plan((), (FilterTap(f"svt{request.position}", owner.uid, mac, (), (), 1),))

    def grant(self, steps: Any) -> dict[str, object]:
        return {"kind": self.name, "ifname": steps[0].ifname}

    def share(self, steps: Any) -> Share:
        return Share(taps=1)

    def watched(self, steps: Any) -> tuple[int, ...]:
        return (100 + int(steps[0].ifname.removeprefix("svt")),)

    def begun(self, steps: Any) -> None:
        pass

    def ended(self, steps: Any) -> None:
        pass

    def adopt(self, steps: Any, adopted: Any) -> None:
        pass

    def intact(self, steps: Any, host: Host) -> str:
        return "gone" if steps[0].ifname in self.broken else ""

    def is_gone(self, steps: Any, host: Host) -> bool:
        return steps[0].ifname in self.broken


class Lab:
    """A broker's leases, on a kernel that outlives it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("records", "holds"):
            (root / name).mkdir()
        self.kernel = Kernel()
        self.broken: set[str] = set()
        self.leases = self.broker()

    def broker(self) -> Leases:
        nothing = lambda *_: None  # noqa: E731
        firewall = no_firewall(policer=self.kernel)
        links: Any = self.kernel
        absent = self.root / "absent"
        vfio: Any = SimpleNamespace(let_go=nothing)
        host = Host(links, firewall, Paths(self.root, absent, absent, absent), None, vfio)
        kinds: Any = {"tap": FakeTap(self.broken), "bandwidth": BandwidthKind()}
        return Leases(host, Journal(self.root / "records", "boot", STEPS), kinds)

    @contextlib.contextmanager
    def acquired(self, *raw: Any) -> Iterator[str]:
        offers = self.leases.survey(raw, OWNER, BUILTIN)
        acquired: Acquired = self.leases.acquire(raw, OWNER, BUILTIN, offers, "yes")
        try:
            yield acquired.lease
        finally:
            acquired.close()
            os.close(acquired.watch)

    def add(self, lease: str, *raw: Any) -> list[dict[str, Any]]:
        offers = self.leases.survey(raw, OWNER, BUILTIN, lease)
        grants = self.leases.add(lease, UID, raw, BUILTIN, offers)
        return [dict(grant.facts) for grant in grants]

    def grants(self) -> list[str]:
        (lease,) = self.leases.listing.leases(UID)
        grants: Any = lease["grants"]
        return [str(grant["id"]) for grant in grants]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_it_comes_with_the_tap_of_the_same_call(lab: Lab) -> None:
    with lab.acquired(TAP, TAP, limit(70, "tap1", outbound_average=30)) as lease:
        assert lab.grants() == ["tap0", "tap1", "bandwidth2"]
        assert lab.kernel.inbound == {101: Rate(70)}
        assert lab.kernel.outbound == {"svt1": Rate(30)}
        assert lab.leases.release(lease, UID)
        assert (lab.kernel.inbound, lab.kernel.outbound) == ({}, {})


def test_only_what_came_before_can_be_rested_on(lab: Lab) -> None:
    for raw in ([limit(1)], [limit(1), TAP], [TAP, limit(1, "tap1")], [TAP, limit(1), TAP][1:]):
        with pytest.raises(NotFound, match="the lease has no grant"):
            lab.leases.survey(raw, OWNER, BUILTIN)
    with pytest.raises(InvalidRequest, match="must be the id of a grant, like tap0"):
        lab.leases.survey([TAP, limit(1, "bandwidth0")], OWNER, BUILTIN)


def test_the_newest_that_is_held_is_in_force(lab: Lab) -> None:
    with lab.acquired(TAP) as lease:
        lab.add(lease, limit(1, outbound_average=9))
        lab.add(lease, limit(2))
        lab.add(lease, limit(3))
        assert (lab.kernel.inbound, lab.kernel.outbound) == ({100: Rate(3)}, {})
        lab.leases.drop(lease, UID, ["bandwidth2"])
        assert lab.kernel.inbound == {100: Rate(3)}
        lab.leases.drop(lease, UID, ["bandwidth3"])
        assert (lab.kernel.inbound, lab.kernel.outbound) == ({100: Rate(1)}, {"svt0": Rate(9)})
        lab.leases.drop(lease, UID, ["bandwidth1"])
        assert (lab.kernel.inbound, lab.kernel.outbound) == ({}, {})


def test_a_tap_takes_along_what_rests_on_it_and_nothing_else(lab: Lab) -> None:
    with lab.acquired(TAP, TAP, limit(1), limit(2, "tap1")) as lease:
        lab.leases.drop(lease, UID, ["tap0"])
        assert lab.grants() == ["tap1", "bandwidth3"]
        assert lab.kernel.inbound == {101: Rate(2)}
        with pytest.raises(NotFound):
            lab.add(lease, limit(1))


def test_one_that_the_host_took_away_is_dropped_and_the_lease_goes_on(lab: Lab) -> None:
    with lab.acquired(TAP, limit(1)) as lease:
        lab.kernel.inbound.clear()
        (changed,) = lab.leases.changed([100])
        assert (changed.lease, changed.dropped) == (lease, ("bandwidth1",))
        assert lab.grants() == ["tap0"]


def test_with_its_last_tap_a_lease_has_nothing_left(lab: Lab) -> None:
    with lab.acquired(TAP, limit(1)):
        lab.broken.add("svt0")
        (changed,) = lab.leases.changed([100])
        assert changed.dropped == ()  # all of it ends


def test_when_it_fails_what_was_in_force_is_again(lab: Lab) -> None:
    with lab.acquired(TAP, limit(1)) as lease:
        lab.kernel.broken = True
        with pytest.raises(Exception, match="outbound"):
            lab.add(lease, limit(2, outbound_average=1))
        assert lab.kernel.inbound == {100: Rate(1)}
        assert lab.grants() == ["tap0", "bandwidth1"]


def test_the_next_broker_has_the_same_and_puts_back_what_is_missing(lab: Lab) -> None:
    with lab.acquired(TAP, limit(1)) as lease:
        lab.add(lease, limit(2, outbound_average=9))
        lab.kernel.inbound.clear()
        lab.kernel.outbound.clear()
        lab.leases = lab.broker()
        for _, watch in lab.leases.reconcile():
            os.close(watch)
        assert (lab.kernel.inbound, lab.kernel.outbound) == ({100: Rate(2)}, {"svt0": Rate(9)})
        lab.leases.drop(lease, UID, ["bandwidth2"])
        assert (lab.kernel.inbound, lab.kernel.outbound) == ({100: Rate(1)}, {})


def test_what_rests_on_a_tap_that_is_gone_is_gone_for_every_next_broker(lab: Lab) -> None:
    with lab.acquired(TAP, TAP, limit(1), limit(2, "tap1")):
        lab.broken.add("svt0")
        for _ in range(2):
            lab.leases = lab.broker()
            for _, watch in lab.leases.reconcile():
                os.close(watch)
            assert lab.grants() == ["tap1", "bandwidth3"]
            assert lab.kernel.inbound == {101: Rate(2)}


def test_a_lease_whose_only_tap_is_gone_has_ended(lab: Lab) -> None:
    with lab.acquired(TAP, limit(1)):
        lab.broken.add("svt0")
        lab.leases = lab.broker()
        assert lab.leases.reconcile() == []
        assert lab.kernel.inbound == {}


def test_one_tap_has_so_many_at_most(lab: Lab) -> None:
    with pytest.raises(LimitsExceeded), lab.acquired(TAP, *[limit(1)] * 9):
        pass
    assert lab.kernel.inbound == {}
    with lab.acquired(TAP, TAP, *[limit(1)] * 8) as lease:
        with pytest.raises(LimitsExceeded):
            lab.add(lease, limit(1))
        lab.add(lease, limit(1, "tap1"))

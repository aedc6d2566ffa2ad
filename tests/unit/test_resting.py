# SPDX-License-Identifier: LGPL-2.1-or-later
"""Grants that rest on another one of their lease: named in one call or later, and gone with it.

The kind that rests is the real filter; what it rests on is the step that binds a TAP, without one.
"""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from lab.nofirewall import no_firewall
from sessionvirt_broker.config import BUILTIN
from sessionvirt_broker.errors import HostFailure, NotFound
from sessionvirt_broker.filters import FilterFrames, FilterKind
from sessionvirt_broker.host import Host, Paths
from sessionvirt_broker.journal import Journal
from sessionvirt_broker.kind import Offer, Owner, Plan, Request
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
OWNER = Owner(UID, VmName("vm"))
MAC = "52:54:00:00:00:01"
TAP: Any = ("tap", {})


def filter_on(tap: str) -> Any:
    return "filter", {"tap": ("s", tap), "deny_outbound": ("as", ["tcp:25"])}


class Taps(FilterKind):
    """Grants with nothing but what binds a TAP; *gone* are those that the kernel lost."""

    name = "tap"

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.made = 0

    def parse(self, fields: Any, position: int, configuration: Any) -> Any:
        return Request(position)

    def survey(self, *_: Any) -> Offer:
        return Offer("network-attach", "", (), "", Share(taps=1), ())

    def plan(self, *_: Any) -> Plan:
        self.made += 1
        name = f"svt{self.made:012x}"
        return Plan((), (FilterTap(name, UID, MAC, ("10.0.0.2",), (), unbound=0),))

    def grant(self, steps: Any) -> dict[str, object]:
        return {"kind": "tap", "ifname": steps[0].ifname}

    def share(self, steps: Any) -> Share:
        return Share(taps=1)

    def watched(self, steps: Any) -> tuple[str, ...]:
        return (steps[0].ifname,)

    def adopt(self, steps: Any, adopted: Any) -> None:
        pass

    def intact(self, steps: Any, host: Any) -> str:
        return "gone" if steps[0].ifname in self.gone else ""

    def is_gone(self, steps: Any, host: Any) -> bool:
        return True


class Lab:
    """Leases over a firewall that only notes what it is told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("records", "holds"):
            (root / name).mkdir()
        self.told: list[str] = []
        #: Whether the firewall removes no filter, and of which TAPs it did not.
        self.refuses = False
        self.refused: list[str] = []
        self.adopted: Any = ()
        self.taps = Taps()
        self.leases = self.broker()

    def broker(self) -> Leases:
        def tell(word: str) -> Any:
            return lambda first, *_: self.told.append(f"{word} {getattr(first, 'ifname', first)}")

        def adopt(*everything: Any) -> None:
            self.adopted = everything

        def remove(ifname: str, _: int) -> None:
            if self.refuses:
                self.refused.insert(0, ifname)
                raise HostFailure("not now")
            self.told.append(f"unfilter {ifname}")

        filters = SimpleNamespace(add=tell("filter"), remove=remove)
        firewall = no_firewall(
            add_tap=tell("bind"), remove_tap=tell("unbind"), adopt=adopt, filters=filters
        )
        absent, anything = self.root / "absent", cast("Any", SimpleNamespace(let_go=lambda: None))
        host = Host(anything, firewall, Paths(self.root, absent, absent, absent), None, anything)
        steps: Any = {step.NAME: step for step in (FilterTap, FilterFrames)}
        networks: Any = SimpleNamespace(as_started=lambda _: None)
        kinds: Any = {"tap": self.taps, "filter": FilterKind(networks)}
        return Leases(host, Journal(self.root / "records", "boot", steps), kinds)

    def acquire(self, *raw: Any) -> Acquired:
        offers = self.leases.survey(raw, OWNER, BUILTIN)
        return self.leases.acquire(raw, OWNER, BUILTIN, offers, "yes")

    def add(self, lease: str, *raw: Any) -> list[str]:
        offers = self.leases.survey(raw, OWNER, BUILTIN, lease)
        added = self.leases.add(lease, UID, raw, BUILTIN, offers)
        return [str(grant.facts["id"]) for grant in added]

    def held(self) -> list[str]:
        (row,) = self.leases.listing.leases(UID)
        return [one["id"] for one in cast("Any", row["grants"])]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@contextlib.contextmanager
def closing(acquired: Acquired) -> Iterator[str]:
    try:
        yield acquired.lease
    finally:
        acquired.close()
        os.close(acquired.watch)


def test_it_names_what_comes_before_it_in_the_same_call_and_goes_after_it(lab: Lab) -> None:
    with closing(lab.acquire(TAP, filter_on("tap0"))) as lease:
        (name,) = {line.split()[1] for line in lab.told}
        assert lab.told == [f"bind {name}", f"filter {name}"]
        assert lab.held() == ["tap0", "filter1"]
        lab.told.clear()
        lab.leases.release(lease)
        # What is filtered goes first: until then its guest can send.
        assert lab.told == [f"unbind {name}", f"unfilter {name}"]


@pytest.mark.parametrize("raw", [[filter_on("tap0"), TAP], [TAP, filter_on("tap1")]])
def test_it_names_nothing_else(raw: Any, lab: Lab) -> None:
    with pytest.raises(NotFound, match="has no grant"):
        lab.acquire(*raw)
    assert lab.told == []


def test_it_is_added_and_dropped_alone_and_goes_with_what_it_rests_on(lab: Lab) -> None:
    with closing(lab.acquire(TAP, TAP)) as lease:
        assert lab.add(lease, filter_on("tap1")) == ["filter2"]
        assert lab.add(lease, filter_on("tap1"), filter_on("tap0")) == ["filter3", "filter4"]
        lab.leases.drop(lease, UID, ["filter2"])
        assert lab.held() == ["tap0", "tap1", "filter3", "filter4"]
        lab.leases.drop(lease, UID, ["tap1"])
        assert lab.held() == ["tap0", "filter4"]
        with pytest.raises(NotFound):
            lab.add(lease, filter_on("tap1"))
        assert lab.add(lease, TAP, filter_on("tap5")) == ["tap5", "filter6"]
        lab.leases.release(lease)


def test_it_is_gone_with_a_device_that_the_kernel_lost(lab: Lab) -> None:
    with closing(lab.acquire(TAP, TAP)) as lease:
        lab.add(lease, filter_on("tap1"))
        (row,) = lab.leases.listing.leases(UID)
        ifname = cast("Any", row["grants"])[1]["ifname"]
        lab.taps.gone.add(ifname)
        (change,) = lab.leases.changed([ifname])
        assert change.dropped == ("tap1",)
        assert lab.held() == ["tap0"]
        lab.leases.release(lease)


def test_the_next_broker_keeps_what_is_whole_and_forgets_what_rested_on_the_rest(lab: Lab) -> None:
    with closing(lab.acquire(TAP, TAP)) as lease:
        lab.add(lease, filter_on("tap0"), filter_on("tap1"))
        (row,) = lab.leases.listing.leases(UID)
        one, other = (cast("Any", row["grants"])[n]["ifname"] for n in (0, 1))
        lab.taps.gone.add(other)
        for _ in range(2):  # once more: what was forgotten is not in the record either
            lab.leases = lab.broker()
            ((_, watch),) = lab.leases.reconcile()
            os.close(watch)
            assert lab.held() == ["tap0", "filter2"]
            assert [rules.ifname for rules in lab.adopted[3]] == [one]
        lab.leases.drop(lease, UID, ["tap0"])
        assert lab.held() == []
        lab.leases.release(lease)


def test_what_would_not_go_ends_no_lease_and_is_tried_again(lab: Lab) -> None:
    with closing(lab.acquire(TAP, TAP)) as lease:
        lab.add(lease, filter_on("tap0"), filter_on("tap1"))
        lab.refuses = True
        lab.leases.drop(lease, UID, ["filter2"])
        lab.leases.drop(lease, UID, ["filter3"])
        lab.refuses = False
        assert lab.held() == ["tap0", "tap1"]
        lab.leases = lab.broker()
        ((_, watch),) = lab.leases.reconcile()
        os.close(watch)
        assert lab.told[-2:] == ["unfilter " + one for one in lab.refused]
        assert lab.held() == ["tap0", "tap1"]
        assert lab.adopted[3] == []
        lab.leases.release(lease)


def test_a_lease_whose_only_device_is_lost_ends(lab: Lab) -> None:
    with closing(lab.acquire(TAP, filter_on("tap0"))):
        (row,) = lab.leases.listing.leases(UID)
        lab.taps.gone.add(cast("Any", row["grants"])[0]["ifname"])
        lab.leases = lab.broker()
        assert lab.leases.reconcile() == []
        assert lab.leases.listing.leases(UID) == []

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The resource kind ``bandwidth``: how much a TAP of the lease may receive and send in a second.

It rests on the TAP, and goes with it. A further one for the same TAP is in force from then on, and
the former again where the newer is given back. Numbers are libvirt's: average and peak in 1000
bytes a second, burst in KiB.

It takes from its own user only, so nobody need be asked (``guest-limits``); but a rule may say no.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, cast

from .errors import InvalidRequest, LimitsExceeded
from .htb import Rate
from .kind import Offer, Owner, Plan, Resting
from .limits import Share
from .steps import Step
from .tapsteps import FilterTap
from .throttle import TapLimits
from .wire import grant_of, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .config import Configuration
    from .host import Host
    from .kind import Adopted, Request, Watched
    from .wire import Fields

__all__ = ["BandwidthKind", "LimitTap"]

#: 32 Gbit/s, in 1000 bytes a second: what a class of htb and a quantum of time bear without their
#: extensions for more, and more than a TAP moves.
MOST_RATE = 4_000_000
#: KiB; also of nft's bucket, which is counted by 32 bits in bytes.
MOST_BURST = 1 << 20
#: A burst's longest worth: the kernel counts what may be sent at once in units of 64 ns, by 32 bits
#: (PSCHED_TICKS2NS() in include/net/pkt_sched.h), which is 274 s.
_BURST_SECONDS = 240
#: Limits that a TAP has at a time: the one in force, and those that it took the place of.
_MOST_PER_TAP = 8
_DIRECTIONS = ("inbound", "outbound")


@dataclass(frozen=True, slots=True)
class BandwidthRequest(Resting):
    """A validated ``bandwidth``; at least one direction is there."""

    inbound: Rate | None
    outbound: Rate | None


@dataclass(frozen=True, slots=True)
class LimitTap(Step):
    """The limits of one grant in force on its TAP, in the place of those that it had.

    :param tap: the TAP's grant.
    :param number: this grant's.
    :param ifindex: the TAP's, learnt when it is done.
    """

    NAME: ClassVar[str] = "tap-limit"

    ifname: str
    tap: str
    number: int
    inbound_average: int
    inbound_peak: int
    inbound_burst: int
    outbound_average: int
    outbound_peak: int
    outbound_burst: int
    ifindex: int = 0

    def describe(self) -> str:
        limits = self.limits()
        words = [
            f"{verb} at most {rate.average} kB/s"
            for verb, rate in (("receive", limits.inbound), ("send", limits.outbound))
            if rate is not None
        ]
        return f"let the guest of {self.ifname} {' and '.join(words)} on average"

    def describe_undo(self) -> str:
        return f"take that limit from {self.ifname}"

    def limits(self) -> TapLimits:
        """For the throttle."""
        return TapLimits(
            self.ifname,
            self.number,
            self.ifindex,
            _rate(self.inbound_average, self.inbound_peak, self.inbound_burst),
            _rate(self.outbound_average, self.outbound_peak, self.outbound_burst),
        )

    def execute(self, host: Host) -> Self:
        done = replace(self, ifindex=host.links.index_of(self.ifname))
        host.throttle.add(done.limits(), host.links, host.firewall.policer)
        return done

    def undo(self, host: Host) -> None:
        host.throttle.remove(self.limits(), host.links, host.firewall.policer)


class BandwidthKind:
    """The kind."""

    name = "bandwidth"
    #: It has none; the TAP's are the TAP's grant's.
    fds_fact = "id"

    def parse(
        self, fields: Fields, position: int, configuration: Configuration
    ) -> BandwidthRequest:
        on = grant_of(fields, "tap")
        inbound, outbound = (_read_rate(fields, direction) for direction in _DIRECTIONS)
        if inbound is None and outbound is None:
            raise InvalidRequest(f"{fields.where}: needs inbound_average or outbound_average")
        fields.finish()
        return BandwidthRequest(position=position, on=on, inbound=inbound, outbound=outbound)

    def is_ready(self, request: Request, host: Host) -> bool:
        return True  # the kernel loads htb by itself

    def prepare(self, request: Request, host: Host) -> None:
        pass

    def survey(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Offer:
        wanted = cast("BandwidthRequest", request)
        tap = _tap(wanted, owner)
        rates = tuple(zip(_DIRECTIONS, (wanted.inbound, wanted.outbound), strict=True))
        return Offer(
            action="guest-limits",
            sentence="Authentication is required to limit the network traffic of the virtual"
            ' machine "$(vm)" ($(mac))',
            details=(("vm", shown(owner.vm)), ("uid", str(owner.uid)), ("mac", tap.mac)),
            summary=f"a limit of the network traffic of {tap.mac}",
            share=Share(),
            # The TAP's name is chosen anew by each plan of the same call; its MAC is its guest's.
            facts=(tap.mac, wanted.on, rates),
        )

    def plan(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Plan:
        wanted = cast("BandwidthRequest", request)
        tap = _tap(wanted, owner)
        numbers: list[int] = []
        for rate in (wanted.inbound, wanted.outbound):
            numbers += (rate.average, rate.peak, rate.burst) if rate else (0, 0, 0)
        return Plan((), (LimitTap(tap.ifname, wanted.on, wanted.position, *numbers),))

    def grant(self, steps: Sequence[Step]) -> dict[str, object]:
        (step,) = _steps(steps)
        names = [f"{way}_{word}" for way in _DIRECTIONS for word in ("average", "peak", "burst")]
        numbers: dict[str, object] = {name: getattr(step, name) for name in names}
        return {"kind": self.name, "tap": step.tap, **numbers}

    def share(self, steps: Sequence[Step]) -> Share:
        return Share()

    def watched(self, steps: Sequence[Step]) -> tuple[Watched, ...]:
        return tuple(step.ifindex for step in _steps(steps))

    def begun(self, steps: Sequence[Step]) -> None:
        pass

    def ended(self, steps: Sequence[Step]) -> None:
        pass

    def adopt(self, steps: Sequence[Step], adopted: Adopted) -> None:
        adopted.limits += [step.limits() for step in _steps(steps)]

    def intact(self, steps: Sequence[Step], host: Host) -> str:
        """What a new broker finds taken away it puts back: then none are in force yet."""
        for step in _steps(steps):
            limits = step.limits()
            if (
                limits.inbound is not None
                and host.throttle.in_force(limits)
                and not host.links.is_limited(limits.ifindex)
            ):
                return "somebody took the TAP's limit away"
        return ""

    def is_gone(self, steps: Sequence[Step], host: Host) -> bool:
        # It ends by itself: a guest that is not slowed down any more has lost nothing.
        return bool(self.intact(steps, host))


def _read_rate(fields: Fields, way: str) -> Rate | None:
    rate = Rate(
        fields.count(f"{way}_average", default=0, limit=MOST_RATE),
        fields.count(f"{way}_peak", default=0, limit=MOST_RATE),
        fields.count(f"{way}_burst", default=0, limit=MOST_BURST),
    )
    if not rate.average:
        if rate != Rate(0):
            raise InvalidRequest(f"{fields.where}.{way}_average: is missing")
        return None
    if rate.peak and rate.peak < rate.average:
        raise InvalidRequest(f"{fields.where}.{way}_peak: must not be less than the average")
    if rate.burst * 1024 > rate.bytes * _BURST_SECONDS:
        raise InvalidRequest(
            f"{fields.where}.{way}_burst: must be at most {_BURST_SECONDS} seconds of the average"
        )
    return rate


def _rate(average: int, peak: int, burst: int) -> Rate | None:
    return Rate(average, peak, burst) if average else None


def _tap(wanted: BandwidthRequest, owner: Owner) -> FilterTap:
    """Which TAP is meant.

    :raise LimitsExceeded: it has as many limits as one can have.
    """
    tap = next(step for step in owner.parts[wanted.on] if isinstance(step, FilterTap))
    held = sum(step.ifname == tap.ifname for part in owner.parts.values() for step in _steps(part))
    if held >= _MOST_PER_TAP:
        raise LimitsExceeded(f"bandwidths of one TAP: {_MOST_PER_TAP}")
    return tap


def _steps(steps: Iterable[Step]) -> list[LimitTap]:
    return [step for step in steps if isinstance(step, LimitTap)]

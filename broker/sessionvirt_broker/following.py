# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lease.Trace: whoever may, follows one guest's packets for some seconds.

On the loop: asks, has the rule made, listens, and has the rule taken away, whatever happens and
whoever leaves meanwhile. One trace at a time for the whole host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import tracing
from .audit import audit
from .errors import Busy, HostFailure, InvalidRequest, NotSupported
from .kind import Offer
from .limits import Share
from .tracewatch import Step, Steps, Traced, TraceWatch
from .wire import legible, shown

if TYPE_CHECKING:
    from .bus import Bus, Caller
    from .config import ConfigFile
    from .consent import Consent
    from .host import Host
    from .kind import Owner
    from .leases import Leases
    from .wire import Fields
    from .worker import Worker

__all__ = ["Following", "Target", "target"]

_MOST_SECONDS, _SECONDS = 60, 10
_MOST_LETTERS = 128


@dataclass(frozen=True, slots=True)
class Target:
    """Whom the packets are for.

    :param port: 0: any.
    """

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    seconds: int


def target(options: Fields) -> Target:
    """The options ``to``, ``port`` and ``seconds``."""
    text = options.text("to")
    if text is None:
        raise InvalidRequest(f"{options.where}.to: is missing")
    port = options.count("port", default=0, limit=65535)
    seconds = options.count("seconds", default=_SECONDS, limit=_MOST_SECONDS)
    try:
        # 45: what the longest address has, an IPv4-mapped one.
        address = ipaddress.ip_address(text if len(text) <= 45 and text.isascii() else "")
    except ValueError:
        raise InvalidRequest(f"{options.where}.to: must be an IP address") from None
    if "%" in text:
        raise InvalidRequest(f"{options.where}.to: must be an IP address without a zone")
    return Target(address, port, seconds)


class Following:
    """The traces, one at a time."""

    def __init__(
        self,
        bus: Bus,
        consent: Consent,
        worker: Worker,
        leases: Leases,
        host: Host,
        config: ConfigFile,
    ) -> None:
        self._bus = bus
        self._consent = consent
        self._worker = worker
        self._leases = leases
        self._host = host
        self._config = config
        self._busy = False

    async def follow(
        self, caller: Caller, lease: str, wanted: Target, *, interactive: bool
    ) -> list[dict[str, object]]:
        """The steps of what a lease's guest sends to an address while this waits, and the answers.

        :raise Busy: somebody else's trace is under way.
        """
        owner, _ = await self._addresses(lease, caller.uid, wanted)
        offer = _offer(owner, wanted)
        await self._consent.obtain(
            caller, owner, [offer], self._config.limits, interactive=interactive
        )
        # What was asked about must still be so, and who asked still there.
        owner, guest = await self._addresses(lease, caller.uid, wanted)
        await self._bus.identify(caller.sender)
        if self._busy:
            raise Busy("another trace is under way")
        self._busy = True
        try:
            to = f"{wanted.address} port {wanted.port or 'any'}"
            audit("trace", uid=caller.uid, sender=caller.sender, lease=lease, vm=owner.vm, what=to)
            async with self._bus.cancelled_without(caller):
                steps = await self._listen(guest, wanted)
            hooks = await self._worker.run(self._hooks)
        finally:
            self._busy = False
        return [_row(packet, one, hooks) for packet, one in steps.steps]

    async def _addresses(self, lease: str, uid: int, wanted: Target) -> tuple[Owner, str]:
        owner, addresses = await self._worker.run(self._leases.addresses, lease, uid)
        version = wanted.address.version
        mine = [one for one in addresses if ipaddress.ip_address(one).version == version]
        if not mine:
            raise NotSupported(f"no IPv{version} address of the machine is known")
        return owner, mine[0]

    async def _listen(self, guest: str, wanted: Target) -> Steps:
        loop = asyncio.get_running_loop()
        steps = Steps(str(ipaddress.ip_address(guest)), str(wanted.address))
        full = asyncio.Event()

        def heard() -> None:
            for one in watch.told():
                steps.add(one)
            if steps.full:
                full.set()

        run = self._host.firewall.run
        with contextlib.closing(TraceWatch()) as watch:
            loop.add_reader(watch.fileno(), heard)
            try:
                await self._worker.run(tracing.begin, run, guest, str(wanted.address), wanted.port)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(full.wait(), wanted.seconds)
            finally:
                loop.remove_reader(watch.fileno())
                # The worker does one thing after the other: also what was begun is taken away.
                await asyncio.shield(self._worker.run(_end, self._host))
        return steps

    def _hooks(self) -> dict[tuple[str, str, str], str]:
        """Of every base chain."""
        found = {}
        for item in self._host.firewall.listed_terse("chains", {}):
            chain = item.get("chain", {})
            key = (str(chain.get("family")), str(chain.get("table")), str(chain.get("name")))
            found[key] = str(chain.get("hook", ""))
        return found


def _end(host: Host) -> None:
    try:
        tracing.end(host.firewall.run)
    except HostFailure as error:
        audit("failure", why=str(error))


def _row(packet: Traced, one: Step, hooks: dict[tuple[str, str, str], str]) -> dict[str, object]:
    return {
        "packet": packet.number,
        "direction": packet.direction,
        "family": one.family,
        "table": legible(one.table, _MOST_LETTERS),
        "chain": legible(one.chain, _MOST_LETTERS),
        "handle": one.handle,
        "type": one.kind,
        "verdict": one.verdict,
        "target": legible(one.target, _MOST_LETTERS),
        "hook": hooks.get((one.family, one.table, one.chain), ""),
    }


def _offer(owner: Owner, wanted: Target) -> Offer:
    """Not an offer, but put before a person in the same way."""
    return Offer(
        action="trace",
        sentence="Authentication is required to follow what the virtual machine"
        ' "$(vm)" sends to $(to) through the firewall of this host',
        details=(("vm", shown(owner.vm)), ("to", str(wanted.address)), ("uid", str(owner.uid))),
        summary=f'following packets of "{shown(owner.vm)}"',
        share=Share(),
        facts=(),
    )

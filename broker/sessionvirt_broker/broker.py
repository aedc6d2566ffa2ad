# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each method of the contract does: validate, authorise, validate again, act.

Knows no message: ``service.py`` decodes and encodes. Everything that touches the host goes through
the worker; what comes back with fds in it is owned by whoever has it.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .audit import audit
from .authority import NAME as AUTHORITY
from .authority import Answer
from .consent import asked
from .diagnose import facts
from .errors import BrokerError
from .hold import HoldWatch
from .kind import Owner
from .lease import close_grants
from .wire import Fields, vm_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from .bus import Bus, Caller
    from .config import ConfigFile, Configuration
    from .consent import Consent
    from .host import Host
    from .kind import Offer
    from .lease import Acquired, Granted
    from .leases import Leases, RawRequest
    from .worker import Worker

_VERDICTS = {
    Answer.YES: "yes",
    Answer.WOULD_ASK: "ask",
    Answer.NO: "no",
    Answer.DISMISSED: "no",
}
_REASONS = {"yes": "", "ask": "polkit would ask", "no": "polkit refuses"}


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls, and whether a prompt may be shown."""

    caller: Caller
    interactive: bool


class Broker:
    """The methods, and the watch over what was given."""

    def __init__(
        self,
        *,
        bus: Bus,
        consent: Consent,
        worker: Worker,
        leases: Leases,
        host: Host,
        config: ConfigFile,
        changed: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._consent = consent
        self._worker = worker
        self._leases = leases
        self._host = host
        self._config = config
        #: Called when the number of leases may have changed.
        self._changed = changed
        self.holds = HoldWatch()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed_links: frozenset[int] = frozenset()
        self._changed_routes = False
        self._looking = False

    # Section: methods of the contract

    async def plan(
        self, call: Call, raw: Sequence[RawRequest], options: Fields
    ) -> dict[str, object]:
        """Plan."""
        owner = Owner(call.caller.uid, vm_name(options))
        options.finish()

        def survey() -> tuple[list[Offer], list[tuple[str, str]]]:
            configuration = self._config.current()
            offers = self._leases.survey(raw, owner, configuration)
            return offers, self._leases.outline(raw, owner, configuration)

        offers, steps = await self._worker.run(survey)
        answers = await self._consent.answers(call.caller, offers)
        question = asked(owner, offers, answers)
        verdicts = [_VERDICTS[answer] for answer in answers]
        overall = "no" if "no" in verdicts else "ask" if question else "yes"
        return {
            "verdict": overall,
            "action": f"org.sessionvirt.broker1.{question.action}" if question else "",
            "prompt": question.sentence if question else "",
            "requests": [
                {
                    "kind": word,
                    "verdict": verdict,
                    "action": f"org.sessionvirt.broker1.{offer.action}",
                    "reason": _REASONS[verdict],
                }
                for (word, _), offer, verdict in zip(raw, offers, verdicts, strict=True)
            ],
            "steps": steps,
        }

    async def acquire(self, call: Call, raw: Sequence[RawRequest], options: Fields) -> Acquired:
        """Acquire. The hold's read end is watched before this returns."""
        owner = Owner(call.caller.uid, vm_name(options))
        interactive = options.flag("interactive") or call.interactive
        options.finish()
        offers, allowed = await self._permit(call, owner, raw, interactive, None)
        acquired = await self._worker.run_or_orphan(
            lambda: self._leases.acquire(raw, owner, self._config.current(), offers, allowed),
            self._orphaned,
        )
        try:
            self.holds.add(acquired.lease, acquired.watch)
        except OSError:
            self._orphaned(acquired)
            raise
        self._changed()
        for grant in acquired.grants:
            _tell("grant", call.caller, acquired.lease, owner, grant, allowed)
        return acquired

    async def add(
        self, call: Call, lease: str, raw: Sequence[RawRequest], options: Fields
    ) -> tuple[Granted, ...]:
        """Lease.Add."""
        interactive = options.flag("interactive") or call.interactive
        options.finish()
        uid = call.caller.uid
        owner = await self._worker.run(self._leases.owner, lease, uid)
        offers, allowed = await self._permit(call, owner, raw, interactive, lease)

        def undo(grants: tuple[Granted, ...]) -> None:
            names = [str(grant.facts["id"]) for grant in grants]
            close_grants(grants)
            self._spawn(self._drop_quietly(lease, uid, names))

        grants = await self._worker.run_or_orphan(
            lambda: self._leases.add(lease, uid, raw, self._config.current(), offers), undo
        )
        for grant in grants:
            _tell("grant", call.caller, lease, owner, grant, allowed)
        return grants

    async def drop(self, call: Call, lease: str, names: Sequence[str], options: Fields) -> None:
        """Lease.Drop."""
        options.finish()
        owner = await self._worker.run(self._leases.drop, lease, call.caller.uid, names)
        audit("drop", uid=owner.uid, sender=call.caller.sender, lease=lease, what=",".join(names))

    async def release(self, call: Call, lease: str, options: Fields) -> None:
        """Lease.Release."""
        options.finish()
        await self._worker.run(self._leases.release, lease, call.caller.uid)
        self._ended(lease, call.caller.uid, "asked for", sender=call.caller.sender)

    async def list_networks(self, call: Call, options: Fields) -> list[dict[str, object]]:
        """ListNetworks."""
        options.finish()

        def survey() -> list[dict[str, object]]:
            configuration = self._config.current()
            users = self._leases.network_users(_whose(call.caller.uid))

            def row(
                name: str, type_: str, mode: str, bridge: str, ipv4: str = "", ipv6: str = ""
            ) -> dict[str, object]:
                return {
                    "name": name,
                    "type": type_,
                    "mode": mode,
                    "bridge": bridge,
                    "up": self._host.links.by_name(bridge) is not None,
                    "ipv4": ipv4,
                    "ipv6": ipv6,
                    "leases": users[name],
                }

            networks = [
                row(one.name, "network", one.mode, one.bridge, str(one.ipv4), str(one.ipv6 or ""))
                for one in configuration.networks.values()
            ]
            bridges = [row(name, "bridge", "lan", name) for name in sorted(configuration.bridges)]
            return networks + bridges

        return await self._worker.run(survey)

    async def list_leases(self, call: Call, options: Fields) -> list[dict[str, object]]:
        """ListLeases."""
        options.finish()
        return await self._worker.run(self._leases.listing, _whose(call.caller.uid))

    async def diagnose(self, options: Fields) -> dict[str, object]:
        """Diagnose."""
        options.finish()
        polkit = await self._bus.presence(AUTHORITY)
        found = await self._worker.run(facts, self._host, self._config)
        return {**found, "polkit": polkit}

    # Section: the end of what was given

    def holds_ended(self) -> None:
        """The loop reports hang-ups: give those leases back."""
        for lease in self.holds.ended():
            self._spawn(self._release_ended(lease, "the holder is gone"))

    def links_changed(self, ifindexes: frozenset[int], *, routes: bool) -> None:
        """The kernel reports changed interfaces, or routes: are leases still as given?"""
        self._changed_links |= ifindexes
        self._changed_routes |= routes
        if not self._looking:
            self._looking = True
            self._spawn(self._look())

    async def settle(self) -> None:
        """Wait for what was begun here."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _permit(
        self,
        call: Call,
        owner: Owner,
        raw: Sequence[RawRequest],
        interactive: bool,  # noqa: FBT001  (every caller has the five in this order)
        lease: str | None,
    ) -> tuple[list[Offer], str]:
        """Validate and authorise; the caller is still there afterwards."""

        def survey() -> tuple[list[Offer], Configuration]:
            configuration = self._config.current()
            return self._leases.survey(raw, owner, configuration, lease), configuration

        offers, configuration = await self._worker.run(survey)
        allowed = await self._consent.obtain(
            call.caller, owner, offers, configuration.limits, interactive=interactive
        )
        # polkitd once took a subject that had left for root (CVE-2021-3560): who asked must be
        # there.
        await self._bus.identify(call.caller.sender)
        return offers, allowed

    def _orphaned(self, acquired: Acquired) -> None:
        """Made for a caller that has left."""
        acquired.close()
        os.close(acquired.watch)
        self._spawn(self._release_ended(acquired.lease, "its caller is gone"))

    async def undelivered(self, acquired: Acquired) -> None:
        """The answer could not be sent."""
        await self._release_ended(acquired.lease, "the answer could not be sent")

    async def _release_ended(self, lease: str, why: str) -> None:
        owner = await self._worker.run(self._leases.release, lease)
        if owner is not None:
            self._ended(lease, owner.uid, why)

    def _ended(self, lease: str, uid: int, why: str, sender: str = "") -> None:
        self.holds.remove(lease)
        self._changed()
        audit("release", uid=uid, sender=sender, lease=lease, why=why)

    async def _drop_quietly(self, lease: str, uid: int, names: Sequence[str]) -> None:
        try:
            await self._worker.run(self._leases.drop, lease, uid, names)
        except BrokerError as error:
            audit("failure", lease=lease, why=str(error))

    async def _look(self) -> None:
        """One look at a time, at everything that changed until it begins."""
        try:
            while self._changed_links or self._changed_routes:
                ifindexes, self._changed_links = self._changed_links, frozenset()
                routes, self._changed_routes = self._changed_routes, False
                await self._look_at(ifindexes, routes=routes)
        finally:
            self._looking = False

    async def _look_at(self, ifindexes: frozenset[int], *, routes: bool) -> None:
        for found in await self._worker.run(self._leases.changed, sorted(ifindexes)):
            if found.dropped:
                what = ",".join(found.dropped)
                audit("drop", uid=found.uid, lease=found.lease, what=what, why=found.why)
            else:
                await self._release_ended(found.lease, found.why)
        if routes:
            await self._worker.run(self._leases.refresh_uplinks)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            audit("failure", why=f"{type(error).__name__}: {error}")


def _whose(uid: int) -> int | None:
    """Root sees everybody's."""
    return None if uid == 0 else uid


def _tell(
    event: str, caller: Caller, lease: str, owner: Owner, grant: Granted, allowed: str
) -> None:
    given = grant.facts
    audit(
        event,
        uid=caller.uid,
        sender=caller.sender,
        lease=lease,
        vm=owner.vm,
        what=f"{given['kind']} {given.get('ifname', '')}",
        where=given.get("network") or given.get("bridge") or "",
        mac=given.get("mac", ""),
        why=allowed,
    )

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
from .custody import FIRST_RETRY_SECONDS, Custody
from .diagnose import facts
from .errors import Busy, Restarting
from .following import Following, target
from .kind import Offer, Owner
from .lease import close_grants
from .limits import Share, lockable_bytes
from .networkconfig import PRIVATE
from .pace import Pace
from .processes import open_pidfd
from .termination import end
from .wire import Fields, shown, vm_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .bus import Bus, Caller
    from .config import ConfigFile, Configuration
    from .consent import Consent
    from .devices import Devices
    from .host import Host
    from .lease import Acquired, Granted
    from .leases import Leases, RawRequest
    from .networks import Networks
    from .worker import Worker

#: How often Reclaim looks, at the shorter distance: what QEMU unpins takes a moment.
_RECLAIM_LOOKS = 60

_STILL_OPEN = "a process still has something of it open; it is given back when that is closed"

_VERDICTS = {
    Answer.YES: "yes",
    Answer.CONFIGURED: "yes",
    Answer.WOULD_ASK: "ask",
    Answer.NO: "no",
    Answer.DISMISSED: "no",
}
_REASONS = {"yes": "", "ask": "polkit would ask", "no": "polkit refuses"}


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls, whether a prompt may be shown, and descriptors that are the edge's."""

    caller: Caller
    interactive: bool
    fds: tuple[int, ...] = ()


class Broker:
    """The methods."""

    def __init__(
        self,
        *,
        bus: Bus,
        consent: Consent,
        worker: Worker,
        leases: Leases,
        host: Host,
        config: ConfigFile,
        devices: Devices,
        networks: Networks,
        changed: Callable[[], None],
        replace: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._consent = consent
        self._worker = worker
        self._leases = leases
        self._host = host
        self._config = config
        self._devices = devices
        self._networks = networks
        #: Called when only the next broker can do what was asked.
        self._replace = replace
        #: Called when the number of leases may have changed.
        self._changed = changed
        self.custody = Custody(worker, leases, changed)
        #: What reads everybody's rules.
        self._pace = Pace(worker)
        self._following = Following(bus, consent, worker, leases, host, config)

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
        try:
            acquired = await self._worker.run_or_orphan(
                lambda: self._leases.acquire(raw, owner, self._config.current(), offers, allowed),
                self.custody.orphaned,
            )
        finally:
            # A step may have failed, and what was done before it would not go.
            self.custody.persist()
        try:
            self.custody.holds.add(acquired.lease, acquired.watch)
        except OSError:
            self.custody.orphaned(acquired)
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
            self.custody.drop_quietly(lease, uid, names)

        try:
            grants = await self._worker.run_or_orphan(
                lambda: self._leases.add(lease, uid, raw, self._config.current(), offers), undo
            )
        finally:
            self.custody.persist()
        for grant in grants:
            _tell("grant", call.caller, lease, owner, grant, allowed)
        return grants

    async def drop(self, call: Call, lease: str, names: Sequence[str], options: Fields) -> None:
        """Lease.Drop."""
        options.finish()
        try:
            owner = await self._worker.run(self._leases.drop, lease, call.caller.uid, names)
        finally:
            self.custody.persist()
        audit("drop", uid=owner.uid, sender=call.caller.sender, lease=lease, what=",".join(names))

    async def release(self, call: Call, lease: str, options: Fields) -> None:
        """Lease.Release."""
        options.finish()
        await self._worker.run(self._leases.release, lease, call.caller.uid)
        self.custody.ended(lease, call.caller.uid, "asked for", sender=call.caller.sender)
        if self._leases.listing.is_releasing(lease):
            raise Busy(_STILL_OPEN)

    async def reclaim(self, call: Call, lease: str, options: Fields) -> None:
        """Lease.Reclaim."""
        interactive = options.flag("interactive") or call.interactive
        options.finish()
        caller = call.caller
        owner, process = await self._worker.run(self._leases.holder, lease)
        allowed = "own"
        if owner.uid != caller.uid:
            offer = _reclaim_offer(owner)
            limits = self._config.limits
            allowed = await self._consent.obtain(
                caller, owner, [offer], limits, interactive=interactive
            )
            await self._bus.identify(caller.sender)
        pidfd = open_pidfd(process) if process else None
        if pidfd is not None:
            try:
                await end(pidfd)
            finally:
                os.close(pidfd)
        # It may have ended with its process, meanwhile.
        if await self._worker.run(self._leases.release, lease) is not None:
            self.custody.ended(lease, owner.uid, f"reclaimed ({allowed})", sender=caller.sender)
        await self._given_back(lease)

    async def _given_back(self, lease: str) -> None:
        """Wait a moment for what waits; who has a device open may be about to close it.

        :raise Busy: it is open still.
        """
        for _ in range(_RECLAIM_LOOKS):
            if not self._leases.listing.is_releasing(lease):
                return
            await asyncio.sleep(FIRST_RETRY_SECONDS)
            await self._worker.run(self._leases.retry)
        raise Busy(_STILL_OPEN)

    async def lock_memory(self, call: Call, lease: str, size_bytes: int, options: Fields) -> None:
        """Lease.LockMemory."""
        options.finish()
        # The edge closes its own when the call is over; the worker may be at it for longer.
        pidfd = os.dup(call.fds[0])

        def lock() -> int:
            try:
                most = lockable_bytes(self._config.current().limits)
                return self._leases.lock_memory(lease, call.caller.uid, pidfd, size_bytes, most)
            finally:
                os.close(pidfd)

        pid = await self._worker.run(lock)
        audit(
            "lock-memory",
            uid=call.caller.uid,
            sender=call.caller.sender,
            lease=lease,
            what=f"process {pid}",
            bytes=size_bytes,
        )

    async def trace(self, call: Call, lease: str, options: Fields) -> list[dict[str, object]]:
        """Lease.Trace."""
        interactive = options.flag("interactive") or call.interactive
        wanted = target(options)
        options.finish()
        return await self._following.follow(call.caller, lease, wanted, interactive=interactive)

    async def list_networks(self, call: Call, options: Fields) -> list[dict[str, object]]:
        """ListNetworks."""
        options.finish()

        def survey() -> list[dict[str, object]]:
            configuration = self._config.current()
            users = self._leases.listing.network_users(_whose(call.caller.uid))

            def row(
                name: str, type_: str, mode: str, bridge: str, mtu: int = 0, *addresses: object
            ) -> dict[str, object]:
                link = self._host.links.by_name(bridge)
                own = [str(address) for address in addresses if address]
                return {
                    "name": name,
                    "type": type_,
                    "mode": mode,
                    "bridge": bridge,
                    "up": link is not None,
                    "mtu": link.mtu if link else mtu,
                    "ipv4": tuple(address for address in own if ":" not in address),
                    "ipv6": tuple(address for address in own if ":" in address),
                    "leases": users[type_, bridge if name == PRIVATE else name],
                }

            networks = [
                row(
                    *(one.name, "network", one.mode.value, one.bridge, one.mtu),
                    *(*one.ipv4, *one.ipv6),
                )
                for one in self._networks.all_of(call.caller.uid, configuration, self._host)
            ]
            bridges = [row(name, "bridge", "lan", name) for name in sorted(configuration.bridges)]
            directs = [
                row(name, "direct", ",".join(sorted(offered.modes)), name)
                for name, offered in sorted(configuration.directs.items())
            ]
            return networks + bridges + directs

        return await self._worker.run(survey)

    async def list_devices(self, call: Call, options: Fields) -> list[dict[str, object]]:
        """ListDevices."""
        options.finish()
        uid = _whose(call.caller.uid)
        return await self._worker.run(
            lambda: self._devices.rows(
                self._config.current(), self._host, self._leases.listing.device_holders(uid)
            )
        )

    async def list_leases(self, call: Call, options: Fields) -> list[dict[str, object]]:
        """ListLeases."""
        options.finish()
        return await self._worker.run(self._leases.listing.leases, _whose(call.caller.uid))

    async def list_obstacles(self, call: Call, options: Fields) -> list[dict[str, object]]:
        """ListObstacles."""
        vm = vm_name(options) if options.has("vm") else None
        options.finish()
        uid = _whose(call.caller.uid)
        return await self._pace.run(call.caller.uid, self._leases.obstacles.rows, uid, vm)

    async def diagnose(self, call: Call, options: Fields) -> dict[str, object]:
        """Diagnose."""
        options.finish()
        polkit = await self._bus.presence(AUTHORITY)
        found = await self._pace.run(call.caller.uid, facts, self._host, self._config)
        return {**found, "polkit": polkit}

    # Section: permission

    async def _permit(
        self,
        call: Call,
        owner: Owner,
        raw: Sequence[RawRequest],
        interactive: bool,  # noqa: FBT001  (every caller has the five in this order)
        lease: str | None,
    ) -> tuple[list[Offer], str]:
        """Validate and authorise; the caller is still there afterwards."""

        def survey() -> tuple[list[Offer], Configuration, bool]:
            configuration = self._config.current()
            offers = self._leases.survey(raw, owner, configuration, lease)
            return offers, configuration, self._leases.is_ready(raw, configuration)

        offers, configuration, ready = await self._worker.run(survey)
        if not ready:
            await self._prepare(call.caller, raw, offers)
            # What is loaded now may have settings that isolate nothing.
            offers, configuration, _ = await self._worker.run(survey)
        allowed = await self._consent.obtain(
            call.caller, owner, offers, configuration.limits, interactive=interactive
        )
        # polkitd once took a subject that had left for root (CVE-2021-3560): who asked must be
        # there.
        await self._bus.identify(call.caller.sender)
        return offers, allowed

    async def _prepare(
        self, caller: Caller, raw: Sequence[RawRequest], offers: Sequence[Offer]
    ) -> None:
        """Have the host made ready; for nobody to whom polkit says no, for others may notice it."""
        await self._consent.answers(caller, offers, refusing=True)
        try:
            await self._worker.run(lambda: self._leases.prepare(raw, self._config.current()))
        except Restarting:
            self._replace()
            raise


def _reclaim_offer(owner: Owner) -> Offer:
    """Not an offer, but put before a person in the same way."""
    return Offer(
        action="reclaim",
        sentence="Authentication is required to end the virtual machine"
        ' "$(vm)" of the user with the id $(owner), and take back what it has of this host',
        details=(("vm", shown(owner.vm)), ("owner", str(owner.uid))),
        summary=f'taking back what the virtual machine "{shown(owner.vm)}" has',
        share=Share(),
        facts=(),
    )


def _whose(uid: int) -> int | None:
    """Root sees everybody's."""
    return None if uid == 0 else uid


def _what(given: Mapping[str, object]) -> object:
    """What was given, by its kind's name for it."""
    if "host_port" in given:
        ports = f"{given['host_port']}+{given['ports']}:{given['guest_port']}"
        return f"{given['tap']} {given['protocol']} {given['address'] or '*'} {ports}"
    return given.get("ifname") or given.get("address") or given.get("tap")


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
        what=f"{given['kind']} {_what(given)}",
        where=given.get("network") or given.get("bridge") or given.get("device") or "",
        mac=given.get("mac", ""),
        vlan=given.get("vlan") or "",
        why=allowed,
    )

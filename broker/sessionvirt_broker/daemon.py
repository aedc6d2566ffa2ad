# SPDX-License-Identifier: LGPL-2.1-or-later
"""Serve, and end without losing a request.

Start: take up old leases, own the name, say READY. End, when nothing has been held for a while: say
STOPPING, give the name up (what was sent before has arrived then), answer it, and go; what is sent
later activates the next broker, which waits for the lock. Leases that exist at SIGTERM stay, for
that next one.

A call that was sent in that moment may make a lease, or a prompt. Then the broker goes on where
nobody has told it to end. systemd, however, knows no way back from STOPPING: it would kill what
goes on when TimeoutStopSec= is over. There the broker has itself followed by another, by its exit
status, and asks for time as long as a prompt is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .authority import Authority
from .autostart import follow
from .broker import Broker
from .bus import Bus
from .config import ConfigFile
from .consent import Consent
from .diagnose import boot_id
from .errors import ConfigurationError, Restarting
from .firewall import Firewall
from .host import Host, Paths
from .journal import Journal
from .kinds import STEPS, resource_kinds
from .leases import Leases
from .limits import Usage
from .linkwatch import LinkWatch
from .mending import Mending
from .netlink import Links
from .rulewatch import RuleWatch
from .service import NAME, Service
from .ueventwatch import UeventWatch
from .vfio import Vfio
from .worker import Worker

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .dnsmasq import Keeper

log = logging.getLogger(__name__)

#: Exit status: leases are held, start the next (RestartForceExitStatus= in the unit).
EXIT_SUCCESSOR = 75
#: What was sent before the name was given up is answered in this time, but for prompts.
_LAST_CALLS_SECONDS = 2.0
#: As TimeoutStopSec= in the unit.
_EXTENSION_USEC = 20_000_000


class Daemon:
    """One run of the broker."""

    def __init__(self, paths: Paths, keeper: Keeper | None, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._bus = Bus()
        self._worker = Worker()
        self._host = Host(Links(), Firewall(), paths, keeper, Vfio())
        self._config = ConfigFile(paths.config)
        kinds = resource_kinds(_machine_id(), paths.aliases, replaceable=_is_service())
        self._leases = Leases(self._host, Journal(paths.records, boot_id(), STEPS), kinds.all)
        self._mending = Mending(self._worker, self._leases.upkeep)
        self._networks = kinds.networks
        usage = Usage(lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
        self._broker = Broker(
            bus=self._bus,
            consent=Consent(Authority(self._bus), self._bus, usage),
            worker=self._worker,
            leases=self._leases,
            host=self._host,
            config=self._config,
            devices=kinds.devices,
            networks=self._networks,
            changed=self._changed,
            replace=self._replace,
        )
        self._service = Service(self._bus, self._broker, usage, lambda: self._config.limits)
        self._stop = asyncio.Event()
        self._told = False
        #: Only the next one can do what was asked.
        self._replaced = False
        #: systemd was told STOPPING=1 and waits, while a call of the last moment is under way.
        self._ending = False
        self._idle: asyncio.TimerHandle | None = None

    async def run(self) -> int:
        """Serve until idle, told to end, or off the bus.

        :return: the exit status; not 0 when the bus was lost, so that systemd starts the next.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminate)
        with (
            contextlib.closing(self._broker.custody.holds),
            contextlib.closing(LinkWatch()) as links,
            contextlib.closing(UeventWatch()) as devices,
            _rule_watch() as rules,
        ):
            for lease, read_end in await self._worker.run(self._leases.reconcile):
                self._broker.custody.holds.add(lease, read_end)
            await self._worker.run(self._autostart)
            loop.add_reader(self._broker.custody.holds.fileno(), self._broker.custody.holds_ended)
            loop.add_reader(links.fileno(), self._heard, links)
            loop.add_reader(devices.fileno(), self._heard_devices, devices)
            if rules is not None:
                loop.add_reader(rules.fileno(), self._heard_rules, rules)
            self._mending.wait()
            self._broker.custody.persist()
            await self._bus.connect(self._service.on_message, self._service.on_fault)
            if not await self._bus.own(NAME):
                log.error("%s is owned by somebody else", NAME)
                return 1
            _notify("READY=1")
            self._restart_idle()
            return await self._serve()

    async def _serve(self) -> int:
        lost = asyncio.ensure_future(self._bus.disconnected())
        try:
            while True:
                stop = asyncio.ensure_future(self._stop.wait())
                await asyncio.wait({lost, stop}, return_when=asyncio.FIRST_COMPLETED)
                if lost.done():
                    stop.cancel()
                    log.error("the system bus is gone; leases stay")
                    return 1
                _notify("STOPPING=1")
                await self._bus.disown(NAME)
                # Idle: what was sent before is answered. Told to end: prompts are withdrawn.
                seconds = None if self._told else _LAST_CALLS_SECONDS
                answered = await self._service.settle(cancel=self._told, seconds=seconds)
                await self._broker.custody.settle()
                await self._mending.settle()
                if answered and self._replaced:
                    return EXIT_SUCCESSOR
                if answered and (self._told or not self._is_needed()):
                    return 0
                if answered and _is_service():
                    return EXIT_SUCCESSOR
                # A call that came in that moment made a lease, or put a prompt, which nobody else
                # is to wait for: go on, if nobody else has begun.
                self._ending = _is_service()
                if not self._told:
                    self._stop.clear()
                if not await self._bus.own(NAME):
                    return 0
                self._broker.custody.persist()
                self._mending.wait()
                self._restart_idle()
        finally:
            lost.cancel()
            if self._idle is not None:
                self._idle.cancel()
            await self._worker.close()
            self._bus.disconnect()

    def _autostart(self) -> None:
        try:
            follow(self._leases, self._networks, self._config.current(), self._host)
        except ConfigurationError:
            pass  # each call that needs it will say so
        except Exception:
            log.exception("networks without guests could not be looked after")

    def _terminate(self) -> None:
        self._told = True
        self._stop.set()

    def _replace(self) -> None:
        # Nothing is done for whoever is interrupted by this, and the next broker is asked at once.
        self._service.cancelled = Restarting("the broker starts anew; ask again")
        self._replaced = True
        self._terminate()

    def _is_needed(self) -> bool:
        """Whether something is held, or not yet given back."""
        return bool(len(self._leases)) or self._leases.waits

    def _changed(self) -> None:
        if not self._ending:
            self._restart_idle()

    def _restart_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        loop = asyncio.get_running_loop()
        seconds = _LAST_CALLS_SECONDS if self._ending else self._idle_seconds
        self._idle = loop.call_later(seconds, self._idle_over)

    def _idle_over(self) -> None:
        if self._service.busy or (self._is_needed() and not self._ending):
            if self._ending:
                _notify(f"EXTEND_TIMEOUT_USEC={_EXTENSION_USEC}")
            self._restart_idle()
        else:
            self._idle = None
            self._stop.set()

    def _heard(self, watch: LinkWatch) -> None:
        changes = watch.changes()
        indexes = self._leases.watched() if changes.everything else changes.ifindexes
        concerned = indexes & self._leases.watched()
        if concerned or changes.routes:
            self._broker.custody.host_changed(concerned, routes=changes.routes)

    def _heard_rules(self, watch: RuleWatch) -> None:
        changes = watch.changes(self._host.firewall.port)
        if changes.others:
            self._leases.obstacles.outdated()
        self._mending.heard(changes)

    def _heard_devices(self, watch: UeventWatch) -> None:
        changes = watch.changes()
        watched = self._leases.watched()
        if concerned := watched if changes.everything else changes.addresses & watched:
            self._broker.custody.host_changed(concerned, routes=False)


def run(paths: Paths, keeper: Keeper | None, idle_seconds: float) -> int:
    """One broker, from its start to its end; the exit status."""

    async def serve() -> int:
        return await Daemon(paths, keeper, idle_seconds).run()

    return asyncio.run(serve())


def _rule_watch() -> AbstractContextManager[RuleWatch | None]:
    """Where the kernel has no nfnetlink there are no rules either, but devices may be."""
    try:
        return contextlib.closing(RuleWatch())
    except OSError as error:
        log.warning("changes of the firewall's rules will not be heard of: %s", error)
        return contextlib.nullcontext()


def _is_service() -> bool:
    """Whether systemd started this and is told what becomes of it."""
    return "NOTIFY_SOCKET" in os.environ


def _notify(state: str) -> None:
    """sd_notify(3), where systemd waits for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        name = "\0" + address[1:] if address.startswith("@") else address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), name)


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        return ""

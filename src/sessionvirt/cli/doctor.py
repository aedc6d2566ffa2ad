# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt doctor``: what this host can do, and what to do where it cannot.

The broker gives facts and this words them. A warning is something that works less well than it
could; a problem is something that does not work. Without a broker everything else is still
checked.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from sessionvirt.errors import NotFoundError, SessionvirtError
from sessionvirt.host.firewalls import presence

from . import status
from .checks import Check, Level, broker_checks, session_checks
from .firewallchecks import host_checks, obstacle_checks
from .output import paint, print_json, visible
from .waychecks import way_checks

if TYPE_CHECKING:
    import argparse

    from sessionvirt.broker_data import Diagnosis, Obstacle

__all__ = ["main"]

_COLOURS: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}


def main(args: argparse.Namespace) -> int:
    """Print the checks; returns 1 where there is a problem."""
    if args.trace or args.to:
        from . import tracing

        return tracing.main(args)
    checks, facts, obstacles = asyncio.run(_examine(args.vm))
    if args.json:
        rows = [{**asdict(check), "level": check.level.value} for check in checks]
        told = {"checks": rows, "broker": None if facts is None else asdict(facts)}
        print_json({**told, "obstacles": [asdict(one) for one in obstacles]})
    else:
        _print(checks)
    return status.FAILURE if any(each.level is Level.PROBLEM for each in checks) else status.OK


async def _examine(vm: str | None) -> tuple[list[Check], Diagnosis | None, list[Obstacle]]:
    """Look at the host, and at what stops machines that run.

    :param vm: only this one; its name.
    """
    checks = await session_checks()
    from sessionvirt.broker_client import BrokerClient

    try:
        async with await BrokerClient.connect() as client:
            facts = await client.diagnose()
            leases = [one for one in await client.leases() if vm in (None, one.vm)]
            obstacles = list(await client.obstacles(vm)) if leases else []
    except SessionvirtError as error:
        found = f"{error.cause}: {error.evidence}" if error.evidence else error.cause
        checks.append(Check("broker", Level.WARNING, found, error.advice))
        return checks, None, []
    if vm is not None and not leases:
        raise NotFoundError(
            f"no machine called {vm} holds anything of this host",
            advice="sessionvirt leases lists those that do",
        )
    there = presence()
    checks += broker_checks(facts, running=bool(leases))
    checks += host_checks(facts, leases, there)
    checks += way_checks(leases)
    if leases:
        checks += obstacle_checks(obstacles, there)
    return checks, facts, obstacles


def _print(checks: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        level = paint(check.level.value.ljust(7), _COLOURS[check.level])
        print(f"{level}  {check.name.ljust(width)}  {visible(check.found)}")
        if check.advice:
            print(f"{' ' * (width + 11)}{visible(check.advice)}")
    problems = sum(check.level is Level.PROBLEM for check in checks)
    warnings = sum(check.level is Level.WARNING for check in checks)
    print(f"\n{problems} problems, {warnings} warnings")

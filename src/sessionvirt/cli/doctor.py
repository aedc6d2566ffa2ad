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

from sessionvirt.errors import SessionvirtError

from . import status
from .checks import Check, Level, broker_checks, session_checks
from .output import paint, print_json, visible

if TYPE_CHECKING:
    import argparse

    from sessionvirt.broker_data import Diagnosis

__all__ = ["main"]

_COLOURS: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}


def main(args: argparse.Namespace) -> int:
    """Print the checks; returns 1 where there is a problem."""
    checks, facts = asyncio.run(_examine())
    if args.json:
        rows = [{**asdict(check), "level": check.level.value} for check in checks]
        print_json({"checks": rows, "broker": None if facts is None else asdict(facts)})
    else:
        _print(checks)
    return status.FAILURE if any(each.level is Level.PROBLEM for each in checks) else status.OK


async def _examine() -> tuple[list[Check], Diagnosis | None]:
    checks = await session_checks()
    from sessionvirt.broker_client import BrokerClient

    try:
        async with await BrokerClient.connect() as client:
            facts = await client.diagnose()
    except SessionvirtError as error:
        found = f"{error.cause}: {error.evidence}" if error.evidence else error.cause
        checks.append(Check("broker", Level.WARNING, found, error.advice))
        return checks, None
    return [*checks, *broker_checks(facts)], facts


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

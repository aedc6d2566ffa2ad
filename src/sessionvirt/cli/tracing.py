# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt doctor --trace``: where the packets of a machine that runs end, rule by rule."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

from sessionvirt.broker_client import BrokerClient
from sessionvirt.errors import NotFoundError, UsageError

from . import status
from .agent import terminal_agent
from .output import print_json, say, visible

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from sessionvirt.broker_data import TraceStep

__all__ = ["ended", "main", "worded"]


def main(args: argparse.Namespace) -> int:
    """Follow, and print where each packet ended; returns 1 where one was dropped, or none came."""
    if not (args.trace and args.vm and args.to):
        raise UsageError("--trace needs a machine, and --to an address")
    try:
        ipaddress.ip_address(args.to)
    except ValueError:
        raise UsageError(f"'{args.to}' is not an IP address") from None
    steps = asyncio.run(_follow(args))
    packets = [list(group) for _, group in groupby(sorted(steps, key=_packet), key=_packet)]
    if args.json:
        rows = [
            {
                "ended": ended(one),
                "direction": one[0].direction,
                "steps": [asdict(step) for step in one],
            }
            for one in packets
        ]
        print_json({"packets": rows})
    elif packets:
        for number, one in enumerate(packets):
            way = "an answer" if one[0].direction == "in" else "sent"
            print(f"packet {number}, {way}: {ended(one)}")
            for line in worded(one):
                print(f"    {visible(line)}")
    else:
        say(f"{args.vm} sent nothing to {args.to} meanwhile, or it did not get as far as this host")
    fine = packets and all(ended(one) == "passed" for one in packets)
    return status.OK if fine else status.FAILURE


async def _follow(args: argparse.Namespace) -> tuple[TraceStep, ...]:
    async with await BrokerClient.connect() as client:
        leases = [one for one in await client.leases() if one.vm == args.vm]
        if not leases:
            raise NotFoundError(
                f"no machine called {args.vm} holds anything of this host",
                advice="sessionvirt leases lists those that do",
            )
        ask = not args.no_ask_password
        async with terminal_agent(wanted=ask):
            say(f"for {args.seconds} seconds: have {args.vm} send something to {args.to}")
            return await client.trace(
                leases[0].lease, args.to, port=args.port, seconds=args.seconds, interactive=ask
            )


def _plain(steps: list[TraceStep]) -> dict[str, object]:
    told = [asdict(step) for step in steps]
    return {"ended": ended(steps), "direction": steps[0].direction, "steps": told}


def _packet(step: TraceStep) -> int:
    return step.packet


def ended(steps: Sequence[TraceStep]) -> str:
    """What became of a packet, as far as it was followed."""
    return "dropped" if steps and steps[-1].verdict == "drop" else "passed"


def worded(steps: Sequence[TraceStep]) -> list[str]:
    """A line for each rule that decided something; those that only went on are left out."""
    lines = []
    for step in steps:
        place = f"{step.family} {step.table} {step.chain}"
        place += f" (hook {step.hook})" if step.hook else ""
        if step.type == "policy":
            lines.append(f"{place}: its policy says {step.verdict}")
        elif step.type == "rule" and step.verdict != "continue":
            to = f" {step.target}" if step.target else ""
            lines.append(f"{place}: rule {step.handle} says {step.verdict}{to}")
    return lines

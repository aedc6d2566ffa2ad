# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt plan``: what a run would change on this host. Changes nothing."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from sessionvirt.broker_data import Plan
from sessionvirt.driver.domain import choose_accelerator
from sessionvirt.driver.network import default_mac, tap_requests
from sessionvirt.model.needs import NeedKind, needs
from sessionvirt.qemu import capabilities as qemu_capabilities
from sessionvirt.qemu.command import build
from sessionvirt.qemu.wiring import TapWiring, UserWiring, Wiring

from . import status
from .definition import load_domain
from .output import paint, print_json, print_table

if TYPE_CHECKING:
    import argparse

    from sessionvirt.model.domain import Domain
    from sessionvirt.qemu.wiring import InterfaceWiring

__all__ = ["main"]

#: Stands for a descriptor that is only known when the machine is started.
_EXAMPLE_FD = 9
_EXAMPLE_MTU = 1500

_NOTHING = Plan(verdict="yes", action="", prompt="", requests=(), steps=())
_COLOURS = {"yes": "green", "ask": "yellow", "no": "red"}


def main(args: argparse.Namespace) -> int:
    """Print the plan; returns 4 where the answer would be no."""
    return asyncio.run(_main(args, load_domain(args)))


async def _main(args: argparse.Namespace, domain: Domain) -> int:
    requests = tap_requests(domain)
    plan = _NOTHING
    if requests:
        from sessionvirt.broker_client import BrokerClient

        async with await BrokerClient.connect() as client:
            plan = await client.plan(requests, domain.name)
    command = await _command(domain) if args.verbose or args.json else ()
    if args.json:
        print_json({"vm": domain.name, **asdict(plan), "command": list(command)})
    else:
        _print(domain, plan, command)
    return status.DENIED if plan.verdict == "no" else status.OK


async def _command(domain: Domain) -> tuple[str, ...]:
    """Return QEMU's command line, with examples for what only a start knows."""
    arch = domain.os.arch if domain.os is not None else None
    binary = domain.emulator or qemu_capabilities.find_binary(arch)
    capabilities = await qemu_capabilities.load(binary)
    accelerator, _ = choose_accelerator(domain)
    wirings: list[InterfaceWiring] = []
    for need in needs(domain):
        mac = need.mac or default_mac(domain.name, need.interface)
        if need.kind is NeedKind.TAP:
            wirings.append(TapWiring((_EXAMPLE_FD,) * need.queues, mac, need.mtu or _EXAMPLE_MTU))
        else:
            wirings.append(UserWiring(mac))
    return build(domain, capabilities, Wiring(_EXAMPLE_FD, accelerator, tuple(wirings))).argv


def _print(domain: Domain, plan: Plan, command: tuple[str, ...]) -> None:
    answers = {
        "yes": "it would start without a question",
        "ask": f"somebody would be asked ({plan.action})",
        "no": "it would be denied",
    }
    answer = answers.get(plan.verdict, plan.verdict)
    print(f"{domain.name}: {paint(answer, _COLOURS.get(plan.verdict, 'bold'))}")
    if plan.prompt:
        print(f"prompt: {plan.prompt}")
    if plan.requests:
        print()
        rows = [(row.kind, row.verdict, row.action, row.reason) for row in plan.requests]
        print_table(("REQUEST", "ANSWER", "ACTION", "REASON"), rows)
    print()
    if plan.steps:
        numbered = enumerate(plan.steps, 1)
        rows = [(f"{number}", step.do, step.undo, "") for number, step in numbered]
        print_table(("", "CHANGE OF THIS HOST", "UNDONE BY"), [row[:3] for row in rows])
    else:
        print("Nothing on this host changes.")
    if command:
        print(f"\n{paint('QEMU', 'bold')} (descriptors and given addresses are examples):")
        print(shlex.join(command))

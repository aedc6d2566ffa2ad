# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt plan``: what a run would change on this host. Changes nothing."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from sessionvirt.broker_data import Plan, Step
from sessionvirt.driver.lease import broker_requests
from sessionvirt.driver.rehearsal import rehearse
from sessionvirt.driver.settings import choose_accelerator
from sessionvirt.model.filterref import remarks
from sessionvirt.model.memory_lock import lock_limit
from sessionvirt.qemu import capabilities as qemu_capabilities
from sessionvirt.qemu.wiring import Accelerator

from . import status
from .definition import lists_of, load_domain
from .output import paint, print_json, print_table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from sessionvirt.model.domain import Domain

__all__ = ["main"]

_NOTHING = Plan(verdict="yes", action="", prompt="", requests=(), steps=())
_COLOURS = {"yes": "green", "ask": "yellow", "no": "red"}


def main(args: argparse.Namespace) -> int:
    """Print the plan; returns 4 where the answer would be no."""
    return asyncio.run(_main(args, load_domain(args)))


async def _main(args: argparse.Namespace, domain: Domain) -> int:
    command, accelerator = await _command(domain)
    requests = broker_requests(
        domain,
        with_group=args.with_group,
        vhost=accelerator is Accelerator.KVM,
        lists=lists_of(args),
    )
    plan = _NOTHING
    if requests:
        from sessionvirt.broker_client import BrokerClient

        async with await BrokerClient.connect() as client:
            plan = await client.plan(requests, domain.name)
        plan = replace(plan, steps=(*plan.steps, *_memory(domain)))
    if args.json:
        said = list(_remarks(domain))
        print_json({"vm": domain.name, **asdict(plan), "remarks": said, "command": list(command)})
    else:
        _print(domain, plan, command if args.verbose else ())
    return status.DENIED if plan.verdict == "no" else status.OK


def _memory(domain: Domain) -> tuple[Step, ...]:
    """What is asked of the broker beside the lease, when QEMU is about to start."""
    amount = lock_limit(domain)
    if not amount:
        return ()
    words = f"let QEMU lock {amount / (1 << 30):.1f} GiB of memory"
    return (Step(words, "nothing: it ends with QEMU"),)


def _remarks(domain: Domain) -> Iterator[str]:
    """What the filters of a definition do that their names do not say."""
    for number, nic in enumerate(domain.interfaces):
        yield from (f"interface {number}, {one}" for one in remarks(nic))


async def _command(domain: Domain) -> tuple[tuple[str, ...], Accelerator]:
    """Return QEMU's command line, and what would run the guest.

    A start that would fail fails here, too.
    """
    arch = domain.os.arch if domain.os is not None else None
    binary = domain.emulator or qemu_capabilities.find_binary(arch)
    capabilities = await qemu_capabilities.load(binary)
    accelerator, _ = choose_accelerator(domain)
    return rehearse(domain, capabilities, accelerator).argv, accelerator


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
    for remark in _remarks(domain):
        print(f"note: {remark}")
    if command:
        print(f"\n{paint('QEMU', 'bold')} (descriptors and given addresses are examples):")
        print(shlex.join(command))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt networks``: the networks and bridges that machines can join, and who is on them.

Two words, the first of which is ``import`` or ``export``, are about files (:mod:`.networkfiles`);
one word is a name, also where it is one of these two.
"""

from __future__ import annotations

import asyncio
import pwd
import shutil
import sys
import time
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Final

from sessionvirt.broker_client import BrokerClient
from sessionvirt.errors import UsageError
from sessionvirt.host.traffic import Traffic, ports, traffic

from . import status
from .hurry import in_time
from .networkview import View, lines, named, plain, taps, view
from .networkwatch import show, until_ended
from .output import print_json, print_json_line, print_table, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from sessionvirt.broker_data import LeaseInfo, NetworkInfo

__all__ = ["main"]

#: Seconds between the two counts that make a rate, where there is only one look.
_GLANCE: Final = 0.5
_NOTHING: Final = "no networks; an administrator adds them to /etc/sessionvirt/broker.toml"
#: Characters a line of a file or pipe may have: it is not a window.
_ENDLESS: Final = 10_000


def main(args: argparse.Namespace) -> int:
    """Print the list, a network, or a file."""
    if args.what is not None:
        return _transfer(args)
    return asyncio.run(_main(args))


def _transfer(args: argparse.Namespace) -> int:
    """Import or export: what two words mean.

    :raise UsageError: they mean nothing.
    """
    from .networkfiles import export_network, import_file

    if args.json or args.names or args.watch:
        raise UsageError("options go with one network only")
    match args.which:
        case "import":
            print(import_file(args.what), end="")
        case "export":
            print(export_network(named(asyncio.run(_ask()), args.what)), end="")
        case _:
            raise UsageError(
                f"{args.which} and {args.what}: one network at a time",
                advice="of two words the first is 'import' or 'export'",
            )
    return status.OK


async def _main(args: argparse.Namespace) -> int:
    if args.names:
        if args.which is not None or args.watch:
            raise UsageError("--names goes with nothing else")
        return await _print_names(args.names)
    if args.which is not None or args.watch:
        async with await BrokerClient.connect() as client:
            return await _Survey(client, args.which, as_json=args.json).run(watch=args.watch)
    networks = await _ask()
    if args.json:
        print_json({"networks": [asdict(network) for network in networks]})
        return status.OK
    if not networks:
        say(_NOTHING)
        return status.OK
    heads = ("NAME", "TYPE", "MODE", "BRIDGE", "STATE", "MTU", "IPV4", "IPV6", "LEASES")
    rows = [
        (
            network.name,
            network.type,
            network.mode,
            network.bridge,
            "up" if network.up else "down",
            str(network.mtu or ""),
            " ".join(network.ipv4),
            " ".join(network.ipv6),
            str(network.leases),
        )
        for network in networks
    ]
    print_table(heads, rows)
    return status.OK


class _Survey:
    """Looks at networks, and remembers what was counted at the former look.

    :param name: of what to look at; None: at everything.
    """

    def __init__(self, client: BrokerClient, name: str | None, *, as_json: bool) -> None:
        self._client = client
        self._name = name
        self._as_json = as_json
        self._counted: dict[str, tuple[float, Traffic]] = {}

    async def run(self, *, watch: bool) -> int:
        """Look once, or until it is ended.

        :return: the exit status.
        """
        before = await self.look()
        if any(each.interfaces for each in before):
            await asyncio.sleep(_GLANCE)
        if watch:
            return await until_ended(self._show, drawn=not self._as_json)
        views = await self.look()
        if self._as_json:
            print_json(_report(views))
        else:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _ENDLESS
            print("\n".join(_text(views, width)))
        return status.OK

    async def look(self) -> list[View]:
        """Ask the broker and the kernel.

        :raise NotFoundError: there is nothing of that name.
        """
        networks = await self._client.networks()
        if self._name is not None:
            networks = named(networks, self._name)
        leases = await self._client.leases()
        counted = self._count(leases)
        return [
            view(network, leases, ports(network.bridge), counted, _user) for network in networks
        ]

    def _count(
        self, leases: tuple[LeaseInfo, ...]
    ) -> Mapping[str, tuple[Traffic | None, Traffic | None]]:
        """Read the counters of every interface; those that are gone are forgotten."""
        found: dict[str, tuple[Traffic | None, Traffic | None]] = {}
        kept = {}
        for _, tap in taps(leases):
            now, totals = time.monotonic(), traffic(tap.ifname)
            then, former = self._counted.get(tap.ifname, (now, None))
            rates = totals.since(former, now - then) if totals and former else None
            found[tap.ifname] = totals, rates
            if totals:
                kept[tap.ifname] = now, totals
        self._counted = kept
        return found

    async def _show(self) -> None:
        views = await self.look()
        if self._as_json:
            print_json_line(_report(views))
        else:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _ENDLESS
            show([time.strftime("%F %T"), *_text(views, width)])


def _report(views: list[View]) -> dict[str, object]:
    return {"time": int(time.time()), "networks": [plain(each) for each in views]}


def _text(views: list[View], width: int) -> list[str]:
    """Every network, with an empty line between two."""
    found: list[str] = []
    for each in views:
        found += ["", *lines(each, width)] if found else lines(each, width)
    return found or [_NOTHING]


@cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


async def _ask() -> tuple[NetworkInfo, ...]:
    async with await BrokerClient.connect() as client:
        return await client.networks()


async def _print_names(kind: str) -> int:
    """Print the names of one type, one a line.

    A name that is not one line of print is none that the broker gives, and is left out: a reader
    would take it for two, or show it to a terminal.

    :raise BrokerUnavailableError: also where there is no answer in time.
    """
    networks = await in_time(_ask())
    # To root everybody's private network has one name.
    for name in dict.fromkeys(network.name for network in networks if network.type == kind):
        if name.isprintable():
            print(name)
    return status.OK

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine whose devices come and go, in a program of an ordinary user's.

``python3 hotplug_job.py XML paused|running``: starts it by the installed package, says so, and
carries out a line of standard input each, answered by a line of JSON: ``attach ADDRESS``,
``detach WHICH SECONDS``, ``resume``, ``end``. It knows nothing of the tests, whose directory it
need not see.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from sessionvirt.driver.domain import Settings, VirtualMachine
from sessionvirt.errors import SessionvirtError
from sessionvirt.model.addresses import PciAddress
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.hostdev import Hostdev, HostPlace
from sessionvirt.states import DomainState


async def obey(vm: VirtualMachine, verb: str, *words: str) -> str:
    """Carry out one line."""
    match verb:
        case "attach":
            host = PciAddress.parse(words[0])
            source = HostPlace(
                domain=host.domain, bus=host.bus, slot=host.slot, function=host.function
            )
            return await vm.attach(Hostdev(managed=True, source=source))
        case "detach":
            await vm.detach(words[0], patience=float(words[1]))
        case "resume":
            await vm.resume()
    return ""


async def main(document: bytes, how: str) -> None:
    domain = parse_domain(document).value
    async with VirtualMachine(domain, Settings(interactive=False)) as vm:
        await vm.start(paused=how == "paused")
        line = "start"
        while line and line != "end":
            answer: dict[str, Any] = {"pid": vm.pid}
            try:
                answer["said"] = await obey(vm, *line.split())
            except SessionvirtError as error:
                answer["error"] = [type(error).__name__, error.cause, error.evidence, error.advice]
                if vm.state is DomainState.CRASHED:
                    outcome = await vm.wait()
                    answer["outcome"] = [str(outcome), outcome.stderr]
            answer["devices"] = [[one.id, str(one.host), one.grant] for one in vm.devices]
            print(json.dumps(answer), flush=True)
            line = (await asyncio.to_thread(sys.stdin.readline)).strip()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_bytes(), sys.argv[2]))

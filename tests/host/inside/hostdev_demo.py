# SPDX-License-Identifier: LGPL-2.1-or-later
"""The steps of ``./dev demo --pci``, in the test host. Each prints itself as JSON.

``python3 -m host.inside.hostdev_demo look|plan|guest|afterwards``: title, commands with what they
said, and claims with whether they hold and the evidence.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from host.inside import machines
from host.inside.hostdevs import NIC, comes_back, driver, frame_passes, node, opened, with_ids
from host.inside.lookout import look_around
from lab.report import Step
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Callable

USER = "user1"


def look(card: str) -> Step:
    step = Step("An ordinary user looks at the host's devices")
    step.claim(
        f"{USER} is in no group but his own", User.named(USER).groups == [User.named(USER).gid]
    )
    said = step.run(User.named(USER), "sessionvirt", "devices").stdout
    root = Path("/sys/block/vda/device").resolve().parent.name
    step.claim(
        "the controller of the root disk is refused, with the reason",
        f"refused: {root}: file system / on /dev/vda" in said,
        said,
    )
    step.claim(f"the network card {card} is free to assign", f"{card}  Intel" in said, said)
    return step


def plan(card: str) -> Step:
    step = Step("What it would change, and whether somebody would be asked")
    boot = ["--network=none", f"--pci={card}", "--kernel=/srv/guest/vmlinuz"]
    said = step.run(User.named(USER), "sessionvirt", "plan", *boot).stdout
    step.claim("an administrator would be asked, by name and address", f"({card})" in said, said)
    step.claim("nothing has changed", driver(card) == "e1000e")
    return step


def guest(card: str) -> Step:
    step = Step("A guest of that user's has the card (an administrator's rule says yes)")
    with machines.permitted():
        said, meanwhile, status = look_around(User.named(USER), card)
    step.show(f"{USER}$ sessionvirt run --network=none --pci={card} ...", said)
    step.claim("the guest lists the card, 8086:10d3", "GUEST: has 0x8086:0x10d3" in said, said)
    step.claim("meanwhile vfio-pci had it on the host", meanwhile == "vfio-pci", meanwhile)
    step.claim("the command ended well", status == 0, str(status))
    return step


def afterwards(card: str) -> Step:
    step = Step("Afterwards")
    comes_back(card, "e1000e")
    step.claim("its former driver has it again", driver(card) == "e1000e")
    with opened(USER, node(card)) as said:
        step.claim(f"{USER} can open no device of VFIO", said != "open", said)
    step.claim("a frame passes by it", frame_passes(*with_ids(NIC)))
    leases = step.run(User.named(USER), "sessionvirt", "leases").stdout
    step.claim("nothing is held", not leases.strip(), leases)
    return step


STEPS: dict[str, Callable[[str], Step]] = {
    "look": look, "plan": plan, "guest": guest, "afterwards": afterwards,
}  # fmt: skip


def main(name: str) -> None:
    print(json.dumps(asdict(STEPS[name](with_ids(NIC)[0]))))


if __name__ == "__main__":
    main(sys.argv[1])

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The steps of ``./dev demo --pci``, in the test host. Each prints itself as JSON.

``python3 -m host.inside.hostdev_demo look|plan|guest|afterwards``: title, commands with what they
said, and claims with whether they hold and the evidence.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host.inside import machines
from host.inside.hostdevs import NIC, comes_back, driver, frame_passes, node, opened, with_ids
from host.inside.lookout import look_around
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Callable

USER = "user1"


class Step:
    """What is printed."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.commands: list[tuple[str, str]] = []
        self.claims: list[tuple[str, bool, str]] = []

    def run(self, *argv: str) -> str:
        """A command of the user's."""
        done = User.named(USER).run(list(argv))
        self.commands.append((shlex.join(argv), done.stdout + done.stderr))
        return done.stdout

    def claim(self, sentence: str, holds: object, evidence: str = "") -> None:
        self.claims.append((sentence, bool(holds), evidence))


def look(card: str) -> Step:
    step = Step("An ordinary user looks at the host's devices")
    step.claim(
        f"{USER} is in no group but his own", User.named(USER).groups == [User.named(USER).gid]
    )
    said = step.run("sessionvirt", "devices")
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
    said = step.run(
        "sessionvirt", "plan", "--network=none", f"--pci={card}", "--kernel=/srv/guest/vmlinuz"
    )
    step.claim("an administrator would be asked, by name and address", f"({card})" in said, said)
    step.claim("nothing has changed", driver(card) == "e1000e")
    return step


def guest(card: str) -> Step:
    step = Step("A guest of that user's has the card (an administrator's rule says yes)")
    with machines.permitted():
        said, meanwhile, status = look_around(User.named(USER), card)
    step.commands.append((f"sessionvirt run --network=none --pci={card} ...", said))
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
    leases = step.run("sessionvirt", "leases")
    step.claim("nothing is held", not leases.strip(), leases)
    return step


STEPS: dict[str, Callable[[str], Step]] = {
    "look": look, "plan": plan, "guest": guest, "afterwards": afterwards,
}  # fmt: skip


def main(name: str) -> None:
    found: dict[str, Any] = vars(STEPS[name](with_ids(NIC)[0]))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two users' machines that run while the host is turned upside down from outside.

Both are on a network, and one has a network card of the host's.

``python3 -m host.inside.upheaval begin`` starts them, as services of the host's, so that they
belong to nobody's login and to no test; ``look`` prints what they have, as JSON; ``end`` ends them.
``tests/host/test_upheavals.py`` says what happens in between.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from host.inside import bootdisk, machines, units
from host.inside.hostdevs import NIC, driver, node, override, with_ids
from host.inside.sessions import until
from lab.button import RUNNING, boot_sector
from lab.users import User

if TYPE_CHECKING:
    from pathlib import Path

#: The users, and their machines' names.
OWNERS = {"user1": "left", "user2": "right"}
#: The one with the card.
WITH_CARD = "left"


@dataclass(frozen=True)
class Service:
    """``sessionvirt run`` of one user, in a unit of its own."""

    user: User
    name: str

    @property
    def unit(self) -> str:
        return f"testhost-{self.name}.service"

    @property
    def disk(self) -> Path:
        return self.user.home / f"{self.name}.img"

    def start(self) -> None:
        """Start it; it runs when this returns."""
        self.disk.write_bytes(boot_sector().ljust(1 << 20, b"\0"))
        os.chown(self.disk, self.user.uid, self.user.gid)
        begun = units.now()
        run = ["systemd-run", "--quiet", "--collect", f"--unit={self.unit}"]
        run += [f"--uid={self.user.name}", f"--setenv=HOME={self.user.home}"]
        vm = bootdisk.Machine(self.name, self.disk)
        card = [f"--pci={_card()}"] if self.name == WITH_CARD else []
        command = vm.command("run", "--network=default", "--no-ask-password", *card)
        subprocess.run([*run, *command], check=True)
        said = f"--unit={self.unit}"
        until(lambda: RUNNING in "\n".join(units.journal_since(begun, said)), said)

    def end(self) -> None:
        """End it, as its user would, and forget its disk."""
        subprocess.run(["systemctl", "stop", self.unit], check=False, capture_output=True)
        self.disk.unlink(missing_ok=True)


def _card() -> str:
    return with_ids(NIC)[0]


def card() -> dict[str, Any]:
    """Who has the card, as the kernel sees it."""
    subprocess.run(["udevadm", "settle"], check=True)
    address = _card()
    return {
        "driver": driver(address),
        "override": override(address),
        "node": node(address).exists(),
    }


def services() -> list[Service]:
    return [Service(User.named(user), name) for user, name in OWNERS.items()]


def begin() -> None:
    """Let polkit say yes, and start the machines."""
    machines.permit()
    for service in services():
        service.start()


def look() -> dict[str, Any]:
    """What the machines have of the host, and what the broker says that they hold."""
    with machines.Holder("root") as root:
        leases = {
            lease["vm"]: {"lease": lease["lease"], "uid": lease["uid"], "state": lease["state"]}
            for lease in root.leases()
        }
    return {
        **machines.network(),
        "card": card(),
        "leases": leases,
        "qemus": {service.name: units.show(service.unit, "MainPID") for service in services()},
        "broker": units.main_pid(),
    }


def end() -> None:
    """As it was before :func:`begin`."""
    for service in services():
        service.end()
    machines.RULES.unlink(missing_ok=True)


if __name__ == "__main__":
    print(json.dumps({"begin": begin, "look": look, "end": end}[sys.argv[1]]()))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest beside another firewall: what it gets, what doctor says, and its commands carried out.

The guest's network is ``default``. What doctor says is said to a user; the commands are root's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from host.inside.readme import blocks
from lab import frames, host
from lab.outside import ADDRESS4, PORT
from lab.stage import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.tap import Tap
    from lab.users import User

__all__ = [
    "BRIDGE", "complaints", "gets_an_address", "gets_out", "mend", "of_page", "rules_of_others",
]  # fmt: skip

PAGE = ROOT / "docs/firewall.rst"

BRIDGE = "svn_default"
GATEWAY = "10.213.80.1"
SYN_ACK = 0x12
#: Each connection is a new one to whoever counts them.
_ports = iter(range(41000, 60000))


def of_page(program: str) -> list[str]:
    """The commands of a program that docs/firewall.rst shows, as they stand, in order."""
    lines = [line.strip() for block in blocks(PAGE) for line in block.commands]
    found = [line for line in lines if line.split()[0] == program]
    assert found
    return found


def gets_out(tap: Tap) -> bool:
    """Whether the guest's connection to the world outside is answered."""
    port = next(_ports)
    tap.send(tap.tcp4(tap.ask_arp(GATEWAY), ADDRESS4, (port, PORT)))
    # Of earlier connections, which nobody ended, answers are repeated for a minute.
    return not tap.silent(lambda p: p.ports == (PORT, port) and p.flags == SYN_ACK)


def gets_an_address(tap: Tap, seconds: float = 0.5) -> bool:
    """Whether DHCP offers what was granted; dnsmasq must be there."""
    message = frames.dhcp4(frames.DISCOVER, tap.mac, {55: b"\x01\x03\x06"})
    segment = frames.udp("0.0.0.0", "255.255.255.255", (68, 67), message)
    packet = frames.ipv4("0.0.0.0", "255.255.255.255", frames.UDP, segment)
    tap.send(frames.ethernet(frames.BROADCAST, tap.mac, frames.IPV4, packet))
    try:
        answer = tap.until(lambda p: p.ports == (67, 68), timeout=seconds)[-1]
    except TimeoutError:
        return False
    return frames.read_dhcp4(answer.payload)[0] == tap.ipv4


def complaints(user: User, vm: str, name: str = "firewall-rules") -> list[dict[str, Any]]:
    """What doctor says to *user* of rules that stop the machine *vm*; or by another *name*."""
    command = shutil.which("sessionvirt")
    assert command is not None
    # In this PATH is no QEMU to be asked what it can do, which takes longer than all the rest.
    done = user.run([command, "doctor", "--json", vm], environment={"PATH": "/nonexistent"})
    checks = json.loads(done.stdout)["checks"]
    assert any(one["name"] == "firewall-rules" for one in checks), checks  # the broker was asked
    return [one for one in checks if one["name"] == name and one["level"] != "ok"]


def mend(found: list[dict[str, Any]], words: str, *commands: str) -> None:
    """Run every command that doctor names, which are these, each once.

    :param found: its complaints.
    :param words: what each of them has in it.
    """
    assert all(words in one["found"] for one in found), found
    assert {one["advice"].partition("   (")[0] for one in found} == set(commands)
    for command in commands:
        subprocess.run(["bash", "-ec", command], check=True, capture_output=True)


@contextmanager
def rules_of_others() -> Iterator[None]:
    """Whatever tables come are deleted, but ours."""
    before = set(host.tables())
    try:
        yield
    finally:
        for one in set(host.tables()) - before:
            if one.split()[1] != "sessionvirt":
                host.nft("delete", "table", *one.split())

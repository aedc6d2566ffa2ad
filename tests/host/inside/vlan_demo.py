# SPDX-License-Identifier: LGPL-2.1-or-later
"""The steps of ``./dev demo --network`` that need a kernel whose bridges filter VLANs.

``python3 -m host.inside.vlan_demo`` prints them as JSON, in the test host. Where a machine's own
kernel can, ``demo_network_lab.py`` has the same steps in its namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lab import host
from lab.attended import SCRIPT, Attended
from lab.guest import Guest
from lab.lan import lan_bridge
from lab.neighbour import Neighbour
from lab.report import Step
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

BRIDGE, OWN, OTHER = "br0", 42, 43
CONFIGURATION = Path("/etc/sessionvirt/broker.toml")
#: The guest's, and this host's in the other VLAN; the neighbours' end with their VLAN.
LAN, GUEST, HOST = "192.168.77", "192.168.77.7", "192.168.77.5"


def filters_vlans() -> bool:
    """Whether bridges of this kernel filter VLANs, tried in a network namespace of its own."""
    script = "ip link add b type bridge vlan_filtering 1 && ip link add link b v type vlan id 2"
    argv = ["unshare", "--net", "sh", "-c", script]
    return subprocess.run(argv, stderr=subprocess.DEVNULL, check=False).returncode == 0


@contextlib.contextmanager
def _offered(text: str) -> Iterator[None]:
    """broker.toml, for a while; there is none before and afterwards."""
    CONFIGURATION.write_text(text)
    try:
        yield
    finally:
        CONFIGURATION.unlink()


@contextlib.contextmanager
def _host_in(vlan: int) -> Iterator[None]:
    """This host has an address in a VLAN of the bridge."""
    name = f"{BRIDGE}.{vlan}"
    own = ["dev", BRIDGE, "vid", str(vlan), "self"]
    subprocess.run(["bridge", "vlan", "add", *own], check=True)
    host.ip("link", "add", "link", BRIDGE, "name", name, "type", "vlan", "id", str(vlan))
    try:
        host.ip("address", "add", f"{HOST}/24", "dev", name)
        host.ip("link", "set", name, "up")
        yield
    finally:
        host.ip("link", "delete", name)
        subprocess.run(["bridge", "vlan", "delete", *own], check=True)


def steps(user: User, stranger: User, guest: Guest) -> list[Step]:
    """A guest of *user*'s in one VLAN, with a host in it and a host in another.

    :param stranger: whom broker.toml does not name.
    :param guest: with :data:`lab.attended.SCRIPT`.
    """
    offer = f'[bridge.{BRIDGE}]\nusers = ["{user.name}"]\nvlans = [{OWN}]\n'
    with (
        lan_bridge(BRIDGE, "vlan_filtering", "1"),
        Neighbour(BRIDGE, "port42", f"{LAN}.{OWN}/24", OWN) as same,
        Neighbour(BRIDGE, "port43", f"{LAN}.{OTHER}/24", OTHER) as other,
        _offered(offer),
    ):
        return [
            _who_may(offer, user, stranger, guest, other),
            _at_work(user, guest, same, other),
        ]


def _who_may(offer: str, user: User, stranger: User, guest: Guest, neighbour: Neighbour) -> Step:
    step = Step(f"One VLAN of a LAN bridge, which the administrator permits to {user.name}")
    step.show("broker.toml:", offer)
    with _host_in(OTHER):
        ping = ["busybox", "ping", "-c", "2", "-W", "5", neighbour.address]
        done = subprocess.run(ping, capture_output=True, text=True, check=False)
        step.claim(
            f"hosts are on two ports of {BRIDGE}, in VLAN {OWN} and {OTHER}; from this one"
            f" {neighbour.address} answers in {OTHER}",
            done.returncode == 0,
            done.stdout + done.stderr,
        )
    boot = [f"--kernel={guest.kernel}", "--name=desk"]
    plan = ["sessionvirt", "plan", f"--bridge={BRIDGE},vlan={OWN}", *boot]
    said = step.run(user, *plan).stdout
    step.claim(f"{user.name} would be asked nothing", "without a question" in said, said)
    said = stranger.run(plan).stdout
    step.claim(
        f"for {stranger.name} an administrator would be asked", "be asked (org." in said, said
    )
    done = step.run(user, "sessionvirt", "plan", f"--bridge={BRIDGE},vlan={OTHER}", *boot)
    step.claim(f"VLAN {OTHER} is not offered: exit status 3", done.returncode == 3)
    return step


def _at_work(user: User, guest: Guest, same: Neighbour, other: Neighbour) -> Step:
    step = Step(f"A guest in VLAN {OWN}, on Linux {os.uname().release}")
    option = f"--bridge={BRIDGE},vlan={OWN}"
    with Attended(user, "desk", [option], guest) as desk:
        step.show(f"{user.name}$ sessionvirt run --name=desk {option} ...", "")
        desk.wait_until_up()
        desk.does(f"ip addr add {GUEST}/24 dev eth0")
        show = ["bridge", "-compressvlans", "vlan", "show"]
        ports = subprocess.run(show, stdout=subprocess.PIPE, text=True, check=True).stdout
        step.show(f"root# {' '.join(show)}", ports)
        step.run(user, "sessionvirt", "leases")
        step.claim(f"it reaches {same.address} in VLAN {OWN}", desk.reaches(same.address))
        step.claim(f"it does not reach {other.address} in VLAN {OTHER}", desk.misses(other.address))
        heard = [one.run(["ip", "neigh", "show", GUEST]) for one in (same, other)]
        step.claim(
            f"{same.address} has heard of it, {other.address} has not",
            ["lladdr" in each for each in heard] == [True, False],
            str(heard),
        )
        status = desk.end()
    step.claim("the guest powers off: exit status 0", status == 0, str(status))
    return step


def in_test_host() -> list[Step]:
    """The steps, with the guest that is there and users with homes that are gone afterwards."""
    place = Path("/srv/guest")
    with tempfile.TemporaryDirectory(dir=place) as name:
        directory = Path(name)
        directory.chmod(0o755)
        user = _at_home(User.named("user1"), directory / "home1")
        stranger = _at_home(User.named("user2"), directory / "home2")
        guest = Guest(place / "vmlinuz", place / "initrd")
        return steps(user, stranger, guest.with_script(SCRIPT, directory / "initrd"))


def _at_home(user: User, home: Path) -> User:
    home.mkdir(mode=0o700)
    return replace(user, home=user.own(home))


if __name__ == "__main__":
    print(json.dumps([asdict(one) for one in in_test_host()]))

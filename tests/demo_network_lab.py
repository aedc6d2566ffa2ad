# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of ``./dev demo --network`` takes place in namespaces: two users' guests, real packets.

Real parts throughout, as in demo.py: bus, polkit, broker, the command, QEMU, a Debian kernel, and
the network's other hosts with a kernel's network of their own. Each user has his own private
network, both are on the managed network ``default``, and alice is on the LAN's bridge; a VLAN of
it, too, where this kernel's bridges can filter VLANs.

usage: demo_network_lab.py [--counts FD]    FD: for how many steps there were and what held, as JSON

Exit status 0: everything that is printed as "ok" or "FAILED" was "ok". 1: something was not.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from host.inside import vlan_demo
from lab import leaks, namespaces
from lab.attended import SCRIPT, Attended, GuestEndedError
from lab.broker import CONFIGURATION, Broker
from lab.bus import SystemBus
from lab.daemon import DaemonError, log_of
from lab.guest import Guest, GuestError, fetch_kernel
from lab.lan import lan_bridge
from lab.neighbour import Neighbour
from lab.outside import ADDRESS4, PORT, UPLINK4, Outside
from lab.polkit import Polkit
from lab.report import Report
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: Seconds after which it gives up; it takes about thirty.
DEADLINE = 150
EXAMPLE_RULE = "share/doc/sessionvirt/sessionvirt.rules.example"
BRIDGE = "br0"
OFFER = f"""\
[bridge.{BRIDGE}]
users = ["alice"]
"""


@dataclass
class Stage:
    """Everybody who takes part."""

    report: Report
    broker: Broker
    guest: Guest
    alice: User
    bob: User
    before: leaks.Snapshot
    running: dict[str, Attended] = field(default_factory=dict)

    @contextmanager
    def boots(self, *wanted: tuple[User, str, str]) -> Iterator[list[Attended]]:
        """Guests of (user, name, option), side by side; at the end they power off."""
        with ExitStack() as stack:
            guests = []
            for user, name, option in wanted:
                one = Attended(user, name, [option], self.guest)
                self.report.note(f"{user.name}$ sessionvirt run {shlex.join(one.options)} ...")
                guests.append(stack.enter_context(one))
            for one in guests:
                one.wait_until_up()
            up = "a Debian kernel is" if len(guests) == 1 else f"{len(guests)} Debian kernels are"
            self.report.note(f"{up} up")
            yield guests
            ended = {one.name: one.end() for one in guests}
            self.report.check(
                "they power off: exit status 0", holds=not any(ended.values()), evidence=str(ended)
            )
            self.broker.wait_until_idle()

    def shows(self, user: User, *argv: str) -> str:
        """What a command of the user's says."""
        done = user.run(list(argv))
        self.report.note(f"{user.name}$ {shlex.join(argv)}")
        self.report.quote(done.stdout + done.stderr)
        return done.stdout + done.stderr

    def claims_answer(self, guest: Attended, address: str, whose: str, *, answers: bool) -> None:
        """Whether a guest reaches an address."""
        verb = "reaches" if answers else "does not reach"
        got = guest.reaches(address) if answers else not guest.misses(address)
        self.report.check(
            f"{label(guest)} {verb} {whose}, {address}",
            holds=got == answers,
            evidence=f"its ping is {'answered' if got else 'not answered'}",
        )


def label(guest: Attended) -> str:
    return f"{guest.user.name}'s {guest.name}"


def dhcp(stage: Stage, guest: Attended) -> tuple[str, str]:
    """Its address and its gateway, by DHCP."""
    said = guest.does("dhcp").text
    got = re.search(r"address ([\d.]+) via ([\d.]*)", said)
    stage.report.check(
        f"{label(guest)} has an address by DHCP: {got[1] if got else 'none'}",
        holds=got is not None,
        evidence=said,
    )
    return (got[1], got[2]) if got else ("0.0.0.0", "0.0.0.0")


def leases_of(user: User) -> dict[str, dict[str, Any]]:
    """What the user's machines hold, by their names."""
    done = user.run(["sessionvirt", "leases", "--json"])
    listed = json.loads(done.stdout)["leases"] if done.returncode == 0 else []
    return {lease["vm"]: lease for lease in listed}


# The acts


def private(stage: Stage) -> None:
    """A network for each user: names, addresses, and nobody else."""
    report = stage.report
    report.step("Each user has a private network")
    wanted = (
        (stage.alice, "web", "--network=private"),
        (stage.alice, "desk", "--network=private"),
        (stage.bob, "web", "--network=private"),
    )
    with stage.boots(*wanted) as (web, desk, bobs):
        addresses = [dhcp(stage, guest) for guest in (web, desk, bobs)]
        (address, gateway), (_, same), (bobs_address, bobs_gateway) = addresses
        report.check(
            "alice's two guests have one gateway, bob's has another",
            holds=gateway == same != bobs_gateway,
            evidence=str(addresses),
        )
        stage.shows(stage.alice, "sessionvirt", "networks", "private")
        stage.claims_answer(desk, address, "alice's web", answers=True)
        for guest, server, expected in (
            (desk, gateway, address),
            (bobs, bobs_gateway, bobs_address),
        ):
            said = guest.does(f"nslookup web {server}").text
            report.note(f"{label(guest)}# nslookup web {server}")
            report.check(
                f"there the name web is {expected}", holds=expected in found(said), evidence=said
            )
        stage.claims_answer(bobs, address, "alice's web", answers=False)
        stage.claims_answer(web, bobs_address, "bob's web", answers=False)
        stage.claims_answer(bobs, bobs_gateway, "its own gateway", answers=True)
        seen = desk.does(f"ask {ADDRESS4} {PORT} /").text
        report.check(
            f"alice's desk reaches the outside, which sees the host's address {UPLINK4}: NAT",
            holds=seen == UPLINK4,
            evidence=seen,
        )
        others = leases_of(stage.bob)
        report.check(
            "bob sees his own machine and none of alice's",
            holds=set(others) == {"web"} and others["web"]["uid"] == stage.bob.uid,
            evidence=str(others),
        )


def found(said: str) -> set[str]:
    """The addresses that nslookup found; the first that it shows is the server's."""
    return set(re.findall(r"^Address(?: \d+)?: +([\d.]+)$", said, re.MULTILINE))


def shared(stage: Stage) -> None:
    """One managed network for both, on which they do not meet."""
    report = stage.report
    report.step("Two users on one managed network")
    wanted = (
        (stage.alice, "shop", "--network=default"),
        (stage.bob, "guest", "--network=default"),
    )
    with stage.boots(*wanted) as (shop, bobs):
        address, gateway = dhcp(stage, shop)
        bobs_address, same = dhcp(stage, bobs)
        report.check("they have one gateway", holds=gateway == same, evidence=f"{gateway} {same}")
        for guest in (shop, bobs):
            stage.claims_answer(guest, gateway, "it", answers=True)
            seen = guest.does(f"ask {ADDRESS4} {PORT} /").text
            report.check(
                f"{label(guest)} reaches the outside", holds=seen == UPLINK4, evidence=seen
            )
        stage.claims_answer(bobs, address, "alice's shop", answers=False)
        stage.claims_answer(shop, bobs_address, "bob's guest", answers=False)
        stage.shows(stage.alice, "sessionvirt", "networks", "default")
        stage.shows(stage.bob, "sessionvirt", "leases")
        drops = [leases_of(user).get(name, {}).get("drops", {}) for user, name in
                 ((stage.alice, "shop"), (stage.bob, "guest"))]  # fmt: skip
        report.check(
            "what each sent to the other was dropped and counted: peer",
            holds=all(counts.get("peer", 0) for counts in drops),
            evidence=str(drops),
        )


def lan(stage: Stage) -> None:
    """alice's guest is a host of the LAN; bob's would be one if an administrator said so."""
    report = stage.report
    report.step("A bridge of the LAN, which the administrator permits to alice")
    report.note("Another host is on a cable to br0; it is the LAN's DHCP server. broker.toml:")
    report.quote(OFFER)
    stage.broker.configure(OFFER)
    with lan_bridge(BRIDGE), Neighbour(BRIDGE, "port0", "192.168.77.1/24") as other:
        other.give_addresses("192.168.77.100", "192.168.77.199")
        _who_may(stage)
        with stage.boots((stage.alice, "host", f"--bridge={BRIDGE}")) as (guest,):
            _host_of_the_lan(stage, guest, other)
            stage.shows(stage.alice, "sessionvirt", "leases")
    CONFIGURATION.unlink()


def _who_may(stage: Stage) -> None:
    """Before anything happens it can be seen who would be asked."""
    check = stage.report.check
    boot = [f"--bridge={BRIDGE}", f"--kernel={stage.guest.kernel}", "--name=host"]
    said = stage.shows(stage.alice, "sessionvirt", "plan", *boot)
    check("alice would be asked nothing", holds="without a question" in said)
    said = stage.shows(stage.bob, "sessionvirt", "plan", *boot)
    check("for bob an administrator would be asked", holds="would be asked (" in said)
    refused = stage.bob.run(["sessionvirt", "run", "--no-ask-password", *boot])
    stage.report.note(f"bob$ sessionvirt run --no-ask-password {shlex.join(boot)}")
    stage.report.quote(refused.stderr)
    check(
        f"refused: exit status {refused.returncode}",
        holds=refused.returncode == 5,
        evidence="5 was expected",
    )


def _host_of_the_lan(stage: Stage, guest: Attended, other: Neighbour) -> None:
    """Each of the two hosts sees the other as it is."""
    check = stage.report.check
    address, _ = dhcp(stage, guest)
    check("that is the LAN's", holds=address.startswith("192.168.77.1"), evidence=address)
    stage.claims_answer(guest, other.address, "the other host", answers=True)
    seen = guest.does(f"ask {other.address} {PORT} /").text
    check(f"the other host sees {address} itself: no NAT", holds=seen == address, evidence=seen)
    lease = leases_of(stage.alice).get(guest.name)
    mac = lease["grants"][0]["mac"] if lease else "there is no lease"
    known = other.run(["ip", "neigh", "show", address])
    stage.report.note(f"other host# ip neigh show {address}")
    stage.report.quote(known)
    check("and the guest's own MAC address", holds=mac in known, evidence=mac)
    got = other.run(["busybox", "ping", "-c", "1", "-W", "20", address], check=False)
    check("the other host reaches the guest", holds=", 0% packet loss" in got, evidence=got)


# Before and after


def _prepare(report: Report, stack: ExitStack) -> Stage:
    directory = namespaces.LAB / "guest"
    guest = Guest.make().with_script(SCRIPT, directory / "attended-initrd")
    stack.enter_context(Outside())
    stack.enter_context(SystemBus())
    polkit = stack.enter_context(Polkit())
    broker = stack.enter_context(Broker())
    polkit.rules((namespaces.PREFIX / EXAMPLE_RULE).read_text())
    report.note("system bus, polkitd, the broker, and an outside world: ready")
    report.note("alice and bob are ordinary users, in the group sessionvirt, to which the example")
    report.note("rule of polkit permits managed networks. What they run is a Debian kernel:")
    report.note("... is --kernel=vmlinuz --initrd=initrd --append='console=ttyS0 ...'")
    alice, bob = User.named("alice"), User.named("bob")
    return Stage(report, broker, guest, alice, bob, leaks.snapshot(privileged=True))


def perform(report: Report, *, vlans: bool) -> None:
    """All of it, inside the lab."""
    leaks.adopt_orphans()
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.alarm(DEADLINE)
    with ExitStack() as stack:
        stage = _prepare(report, stack)
        private(stage)
        shared(stage)
        lan(stage)
        if vlans:
            for step in vlan_demo.steps(stage.alice, stage.bob, stage.guest):
                report.tell(step)
        report.step("Afterwards")
        left = leaks.left_behind(stage.before, leaks.snapshot(privileged=True))
        report.check(
            "no interface, nft element, process or file is left",
            holds=not left,
            evidence="\n".join(left),
        )
    signal.alarm(0)
    if report.failed:
        report.step("What the broker said")
        report.quote(log_of("sessionvirt-broker").read_text()[-4000:])


def _time_is_up(signum: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"not done after {DEADLINE} s")


def main(arguments: list[str]) -> int:
    report = Report()
    try:
        fetch_kernel()  # there is no way to the archive from inside
        vlans = vlan_demo.filters_vlans()
        namespaces.enter()
        namespaces.enter_processes()
        namespaces.install()
        perform(report, vlans=vlans)
    except (DaemonError, GuestError, GuestEndedError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if arguments:
        with os.fdopen(int(arguments[1]), "w") as counts:
            json.dump([report.steps, report.held, report.failed], counts)
    else:
        report.total()
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

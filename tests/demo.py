# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev demo``: an ordinary user's guest on a network that the broker makes, and proof.

Real parts throughout: Debian's system bus and polkitd, the broker as it would be installed, the
``sessionvirt`` command run by an unprivileged user, QEMU, a Debian kernel. All of them live in
mount, network and process namespaces of the demo's own; the host is not changed, and what is left
when it ends the kernel takes away.

Exit status 0: everything that is printed as "ok" or "FAILED" was "ok". 1: something was not.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lab import leaks, namespaces
from lab.broker import USER, Broker
from lab.bus import SystemBus
from lab.daemon import DaemonError, log_of
from lab.guest import CMDLINE, Guest, GuestError, fetch_kernel
from lab.outside import ADDRESS4, PORT, UPLINK4, Outside
from lab.polkit import Polkit
from lab.report import Report
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

#: Seconds after which the demo gives up; it takes about ten.
DEADLINE = 90
EXAMPLE_RULE = "share/doc/sessionvirt/sessionvirt.rules.example"
#: Its own MAC address, and one that it was not given.
MAC, FORGED_MAC = "52:54:00:aa:00:01", "52:54:00:66:66:66"

DEFINITION = """\
<domain type='kvm'>
  <name>demo</name>
  <memory unit='MiB'>192</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features>
    <acpi/>
  </features>
  <devices>
    <interface type='network'>
      <source network='default'/>
      <mac address='{mac}'/>
      <model type='virtio'/>
    </interface>
    <serial type='pty'/>
  </devices>
</domain>
"""

#: What the guest does. The gateway's MAC is pinned, so that the forged packets themselves reach the
#: filter and not only the question for an address before them; and pinned again after each change
#: of the guest's own MAC, which flushes the permanent neighbours too (neigh_changeaddr() in
#: net/core/neighbour.c).
SCRIPT = f"""\
dhcp
gateway=$(cat /gateway) address=$(cat /address)
reach gateway "$gateway"
say "outside saw $(ask {ADDRESS4} {PORT} /)"
gateway_mac=$(mac_of "$gateway")
pin() {{ ip neigh replace "$gateway" lladdr "$gateway_mac" dev eth0 nud permanent; }}
ip link set eth0 address {FORGED_MAC}
pin
reach forged-mac "$gateway"
ip link set eth0 address {MAC}
pin
forged=${{address%.*}}.253
ip addr add "$forged/32" dev eth0
reach forged-ip "$gateway" "$forged"
ip addr del "$forged/32" dev eth0
reach honest-again "$gateway"
ask {ADDRESS4} {PORT} /hold >/dev/null
"""


@dataclass
class Stage:
    """Everybody who takes part."""

    report: Report
    outside: Outside
    polkit: Polkit
    broker: Broker
    alice: User
    definition: Path
    before: leaks.Snapshot


# The acts


def without_permission(stage: Stage) -> None:
    """polkit says no, and the message helps."""
    report = stage.report
    report.step("An ordinary user, without permission")
    report.note("Nobody has a login session here, so for polkit nobody is at the machine.")
    report.note("alice$ sessionvirt run guest.xml")
    done = stage.alice.run(["sessionvirt", "run", str(stage.definition)])
    report.quote(done.stderr)
    report.check(
        f"refused: exit status {done.returncode}",
        holds=done.returncode in (4, 5),
        evidence=f"4 or 5 was expected\n{done.stdout}",
    )
    report.check(
        "the message says what to do",
        holds="what to do:" in done.stderr and "sessionvirt.rules.example" in done.stderr,
        evidence=done.stderr,
    )
    _nothing_left(stage, "nothing was made")


def with_permission(stage: Stage) -> None:
    """The guest runs, is honest, forges, and is honest again; the counters tell."""
    report = stage.report
    report.step("The documented example rule, in this demo's own /etc")
    rule = (namespaces.PREFIX / EXAMPLE_RULE).read_text()
    stage.polkit.rules(rule)
    report.quote("\n".join(line for line in rule.splitlines() if line[:2] != "//" and line))
    report.note("alice is in the group sessionvirt.")

    report.step("The same command, with permission: a Debian kernel boots")
    report.note("alice$ sessionvirt run guest.xml")
    argv = ["sessionvirt", "run", str(stage.definition)]
    log = stage.alice.home / "stderr"
    with log.open("wb") as stderr, stage.alice.popen(argv, stderr=stderr) as command:
        said = _listen(stage, command)
        if said is not None:
            _judge_guest(stage, said)
            _show_leases(stage, said)
        stage.outside.release()
        assert command.stdout is not None
        command.stdout.read()
        status = command.wait(timeout=60)
    report.step("The guest powers off")
    report.check("exit status 0", holds=status == 0, evidence=f"it was {status}\n{log.read_text()}")
    stage.broker.wait_until_idle()
    report.note("Compared with before: interfaces, nft elements and tables, processes, network")
    report.note("namespaces, and every file below /run.")
    _nothing_left(stage, "no interface, nft element, process or file is left")


def _listen(stage: Stage, command: subprocess.Popen[bytes]) -> dict[str, str] | None:
    """Show what the guest says until it holds; None where it ended before."""
    assert command.stdout is not None
    said: dict[str, str] = {}
    for raw in command.stdout:
        text = raw.decode(errors="replace").strip()
        if not text.startswith("GUEST: "):
            continue
        text = text.removeprefix("GUEST: ")
        stage.report.quote(f"guest: {text}")
        first, _, rest = text.partition(" ")
        said[first] = rest
        if first == "honest-again":
            return said
    command.wait(timeout=60)
    log = (stage.alice.home / "stderr").read_text()
    stage.report.check("the guest reports", holds=False, evidence=log)
    return None


def _judge_guest(stage: Stage, said: Mapping[str, str]) -> None:
    check = stage.report.check
    got = re.fullmatch(r"([\d.]+) via ([\d.]+)", said.get("address", ""))
    evidence = "\n".join(f"{first} {rest}" for first, rest in said.items())
    check("it has an address by DHCP", holds=got is not None, evidence=evidence)
    check("it reaches its gateway", holds=said.get("gateway") == "answers", evidence=evidence)
    check(
        f"it reaches the outside, which sees the host's address {UPLINK4}: NAT",
        holds=said.get("outside") == f"saw {UPLINK4}",
        evidence=evidence,
    )
    for first, what in (("forged-mac", "MAC"), ("forged-ip", "IP address")):
        check(
            f"with a forged {what} nobody answers",
            holds=said.get(first) == "is silent",
            evidence=evidence,
        )
    check(
        "with its own it is answered again",
        holds=said.get("honest-again") == "answers",
        evidence=evidence,
    )


def _show_leases(stage: Stage, said: Mapping[str, str]) -> None:
    report, alice = stage.report, stage.alice
    report.step("While it runs: what is held, and what was dropped")
    report.note("alice$ sessionvirt leases")
    report.quote(alice.run(["sessionvirt", "leases"]).stdout)
    done = alice.run(["sessionvirt", "leases", "--json"])
    leases = json.loads(done.stdout)["leases"] if done.returncode == 0 else []
    report.check("one lease, alice's", holds=len(leases) == 1, evidence=done.stdout + done.stderr)
    lease = leases[0] if leases else {"grants": [{}], "drops": {}}
    address = said.get("address", "").partition(" ")[0]
    report.check(
        "the guest's address is the one that was granted",
        holds=lease["grants"][0].get("ipv4") == [address],
        evidence=f"the guest has {address}; granted: {lease['grants']}",
    )
    for reason, what in (("mac", "MAC"), ("ipv4", "IP address")):
        count = lease["drops"].get(reason, 0)
        report.check(
            f"frames with a forged {what} dropped: {count}",
            holds=count > 0,
            evidence=json.dumps(lease["drops"]),
        )
    for reason in ("mac", "ipv4"):
        show = ["nft", "list", "set", "bridge", "sessionvirt", f"dropped_{reason}"]
        listing = subprocess.run(show, stdout=subprocess.PIPE, text=True, check=False).stdout
        report.note(f"root# {' '.join(show)}")
        report.quote("\n".join(re.findall(r"elements = .*", listing)))
    bob = User.named("bob").run(["sessionvirt", "leases", "--json"])
    report.check(
        "another user does not see it",
        holds=bob.returncode == 0 and json.loads(bob.stdout)["leases"] == [],
        evidence=bob.stdout + bob.stderr,
    )


def _nothing_left(stage: Stage, sentence: str) -> None:
    after = leaks.snapshot(privileged=True)
    left = leaks.left_behind(stage.before, after)
    stage.report.check(sentence, holds=not left, evidence="\n".join(left))


# Before and after


def _prepare(report: Report, stack: ExitStack) -> Stage:
    guest = Guest.make()
    alice = User.named("alice")
    scripted = guest.with_script(SCRIPT, namespaces.LAB / "guest/demo-initrd")
    text = DEFINITION.format(
        kernel=scripted.kernel, initrd=scripted.initrd, cmdline=CMDLINE, mac=MAC
    )
    definition = alice.write("guest.xml", text)
    outside = stack.enter_context(Outside())
    stack.enter_context(SystemBus())
    polkit = stack.enter_context(Polkit())
    broker = stack.enter_context(Broker())
    report.note("system bus, polkitd, the broker, and an outside world: ready")
    before = leaks.snapshot(privileged=True)
    stage = Stage(report, outside, polkit, broker, alice, definition, before)
    _judge_broker(stage)
    return stage


def _judge_broker(stage: Stage) -> None:
    """Root's powers without root's uid, from the first moment on."""
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{stage.broker.daemon.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    uid = User.named(USER).uid
    capabilities = int(status["CapEff"], 16).bit_count()
    stage.report.check(
        f"the broker is not root: user {USER}, {capabilities} capabilities",
        holds=status["Uid"].split() == [str(uid)] * 4 and 0 < capabilities <= 5,
        evidence=f"Uid {status['Uid']}, CapEff {status['CapEff']}",
    )


def perform() -> int:
    """The whole demo, inside the lab; its exit status."""
    report = Report()
    print(report.paint("sessionvirt demo", 1), flush=True)
    report.note("All of it happens in namespaces of its own: this machine is not changed.")
    leaks.adopt_orphans()
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.alarm(DEADLINE)
    with ExitStack() as stack:
        stage = _prepare(report, stack)
        without_permission(stage)
        with_permission(stage)
    signal.alarm(0)
    if report.failed:
        report.step("What the broker said")
        report.quote(log_of("sessionvirt-broker").read_text()[-4000:])
    report.total()
    return 1 if report.failed else 0


def _time_is_up(signum: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"not done after {DEADLINE} s")


def main() -> int:
    if os.geteuid():
        print("demo: needs root; ./dev demo gets it through sudo", file=sys.stderr)
        return 1
    try:
        fetch_kernel()  # there is no way to the archive from inside
        namespaces.enter()
        namespaces.enter_processes()
        namespaces.install()
        return perform()
    except (DaemonError, GuestError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Virtual machines of the tests: the real command as a user, and holders that need no QEMU.

A holder is this process with a connection that the bus takes for the user's (``lab.rawbus``): it
has the TAP's fd in its hands, so that a test can see frames pass. :func:`works` is the whole of
what a network is for: the gateway answers ARP, and dnsmasq gives the address that was granted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from dbus_fast import Variant

from host.inside import units
from lab import frames, host, rawbus
from lab.tap import Tap
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

__all__ = [
    "GATEWAY",
    "RECORDS",
    "RULES",
    "Held",
    "Holder",
    "Running",
    "dhcp4",
    "network",
    "permit",
    "permitted",
    "wait_for_rule",
    "works",
]

GATEWAY = "10.213.80.1"
SECONDS = 90.0
RECORDS = Path("/run/sessionvirt-broker/records")

RULES = Path("/etc/polkit-1/rules.d/10-sessionvirt-test.rules")
RULE = """\
polkit.addRule(function (action, subject) {
    if (action.id.indexOf("org.sessionvirt.broker1.") === 0) { return polkit.Result.YES; }
    return polkit.Result.NOT_HANDLED;
});
"""
POLKIT = "org.freedesktop.PolicyKit1"

#: A boot sector that says "x" on the first serial port and stops for good:
#: mov al,'x'; mov dx,0x3f8; out dx,al; mov al,'\\n'; out dx,al; cli; hlt.
SECTOR = bytes.fromhex("b078baf803eeb00aeefaf4").ljust(510, b"\0") + b"\x55\xaa"

XML = """\
<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>32</memory>
  <os><type machine='q35'>hvm</type><boot dev='hd'/></os>
  <devices>
    <disk type='file'><driver type='raw'/><source file='{disk}'/><target dev='sda'/></disk>
    <interface type='network'><source network='default'/><model type='virtio'/></interface>
    <serial type='pty'/>
  </devices>
</domain>
"""


def permit() -> None:
    """Have polkit say yes to everybody, as by an administrator's rule: nobody here is logged in."""
    RULES.write_text(RULE)
    wait_for_rule("bridge-attach", "yes")


@contextlib.contextmanager
def permitted() -> Iterator[None]:
    """polkit says yes to everybody for a while."""
    try:
        permit()
        yield
    finally:
        RULES.unlink()
        wait_for_rule("bridge-attach", "no")


def wait_for_rule(action: str, answer: str, **details: str) -> None:
    """Until polkitd, which watches the directory, decides so for a user who is not logged in."""
    with rawbus.Client() as root, rawbus.Client(User.named("user1")) as user:
        root.bus_call("AddMatch", "s", f"type='signal',sender='{POLKIT}',member='Changed'")
        subject = ["system-bus-name", {"name": Variant("s", user.name)}]
        deadline = time.monotonic() + SECONDS
        while True:
            ((authorised, _, _),) = root.call(
                "CheckAuthorization",
                subject,
                f"org.sessionvirt.broker1.{action}",
                details,
                0,
                "",
                signature="(sa{sv})sa{ss}us",
                destination=POLKIT,
                path="/org/freedesktop/PolicyKit1/Authority",
                interface=f"{POLKIT}.Authority",
                timeout=SECONDS,
            )
            if authorised == (answer == "yes"):
                return
            while root.receive(deadline - time.monotonic()).message.member != "Changed":
                pass


class Holder(rawbus.Client):
    """A user's connection. It starts the broker, whose answers may take as long as that."""

    def __init__(self, user: str) -> None:
        super().__init__(User.named(user))

    def ask_for(self, member: str, *body: Any, **header: Any) -> list[Any]:
        """A method of the contract; its descriptors are not kept."""
        return self.call(member, *body, timeout=SECONDS, **header)

    def take(self, *requests: Sequence[Any], vm: str = "vm") -> Held:
        """Acquire; without *requests* one TAP of the network default."""
        wanted = list(requests) or [rawbus.tap()]
        answer = self.answer(self.ask("Acquire", wanted, rawbus.options(vm=vm)), SECONDS)
        path, hold, grants = answer.body
        fds, answer.fds = answer.fds, []
        return Held(self, path, fds[hold], _taps(grants, fds))

    def leases(self) -> list[dict[str, Any]]:
        """ListLeases, without the D-Bus types."""
        rows = self.ask_for("ListLeases", {})[0]
        return [{key: value.value for key, value in row.items()} for row in rows]

    def settle(self) -> None:
        """Return when the broker has dealt with what the kernel has told it so far."""
        self.leases()
        self.leases()


@dataclass
class Held:
    """A lease with its descriptors; a context manager that gives it back and closes them."""

    holder: Holder
    path: str
    hold: int
    taps: list[Tap]

    @property
    def id(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def tap(self) -> Tap:
        """The only one."""
        (tap,) = self.taps
        return tap

    def add(self, *requests: Sequence[Any]) -> list[Tap]:
        """Lease.Add."""
        serial = self.holder.ask("Add", list(requests), {}, path=self.path, interface=rawbus.LEASE)
        answer = self.holder.answer(serial, SECONDS)
        grants = answer.body[0]
        fds, answer.fds = answer.fds, []
        added = _taps(grants, fds)
        self.taps += added
        return added

    def drop(self, *ids: str) -> None:
        """Lease.Drop."""
        self.holder.ask_for("Drop", list(ids), {}, path=self.path, interface=rawbus.LEASE)

    def release(self) -> None:
        """Lease.Release; the descriptors stay open."""
        self.holder.ask_for("Release", {}, path=self.path, interface=rawbus.LEASE)

    def close(self) -> None:
        """Close every descriptor, as the end of QEMU would."""
        if self.hold >= 0:
            os.close(self.hold)
            self.hold = -1
        for tap in self.taps:
            tap.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with contextlib.suppress(rawbus.BusError):
                self.release()
        finally:
            self.close()


def _taps(grants: list[dict[str, Variant]], fds: list[int]) -> list[Tap]:
    taps = []
    for grant in grants:
        facts = {key: value.value for key, value in grant.items()}
        taps.append(Tap([fds[index] for index in facts.pop("fds")], facts))
    return taps


def network() -> dict[str, object]:
    """All that machines have of the host: interfaces, rules, addresses, and who serves them."""
    return {
        "links": {name: host.link(name)["ifindex"] for name in host.ours()},
        "macs": sorted(map(str, host.elements("bridge", "macs"))) if host.tables() else [],
        "forwarding": {name: host.forwarding(name) for name in host.ours()},
        "dnsmasq": units.main_pid(units.DNSMASQ),
        "holds": sorted(one.name for one in (RECORDS.parent / "holds").iterdir()),
    }


def exchange(tap: Tap, question: bytes, ports: tuple[int, int], mark: bytes) -> frames.Packet:
    """Ask until a datagram with *mark* in it comes back: dnsmasq may still be starting."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        tap.send(question)
        with contextlib.suppress(TimeoutError):
            return tap.until(lambda p: p.ports == ports and mark in p.payload, timeout=0.5)[-1]
    raise TimeoutError("dnsmasq never answered")


def dhcp4(tap: Tap) -> str:
    """The address that DHCP offers."""
    message = frames.dhcp4(frames.DISCOVER, tap.mac, {55: b"\x01\x03\x06"})
    segment = frames.udp("0.0.0.0", "255.255.255.255", (68, 67), message)
    packet = frames.ipv4("0.0.0.0", "255.255.255.255", frames.UDP, segment)
    question = frames.ethernet(frames.BROADCAST, tap.mac, frames.IPV4, packet)
    answer = exchange(tap, question, (67, 68), frames.mac_bytes(tap.mac))
    return frames.read_dhcp4(answer.payload)[0]


def works(lease: Held) -> bool:
    """Whether its guest reaches the host, and gets the address that was granted."""
    lease.tap.attentive = True
    return bool(lease.tap.ask_arp(GATEWAY)) and dhcp4(lease.tap) == lease.tap.ipv4


class Running:
    """``sessionvirt run`` of a user, with a guest that halts at once and never ends by itself.

    A context manager; inside of it QEMU runs and has its TAP.
    """

    def __init__(self, user: str, name: str) -> None:
        self.user = User.named(user)
        self.name = name
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            place = self.user.home / self.name
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            place.mkdir()
            self.user.own(place)
            disk = self.user.write(f"{self.name}/disk.img", SECTOR.ljust(1 << 20, b"\0"))
            text = XML.format(name=self.name, disk=disk)
            argv = ["sessionvirt", "run", "--no-ask-password"]
            argv.append(str(self.user.write(f"{self.name}/domain.xml", text)))
            self.process = stack.enter_context(
                self.user.popen(
                    argv, stderr=subprocess.STDOUT, environment={"XDG_CACHE_HOME": str(place)}
                )
            )
            self._wait_for_guest()
            self._stack = stack.pop_all()
        return self

    def _wait_for_guest(self) -> None:
        assert self.process.stdout is not None
        said = []
        while line := self.process.stdout.readline():
            said.append(line)
            if line.strip() == b"x":
                return
        pytest.fail(f"sessionvirt run: {b''.join(said).decode()}", pytrace=False)

    @property
    def qemu(self) -> int:
        """QEMU's process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (pid,) = children.read_text().split()
        return int(pid)

    def lease(self) -> dict[str, Any]:
        """What the broker says that it holds."""
        with Holder(self.user.name) as client:
            (lease,) = [one for one in client.leases() if one["vm"] == self.name]
        return lease

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The clients of other people, as Debian packages them, against the installed broker.

Each is a process of user1's. The broker does not run: the first question has the bus and systemd
start it. What they can do is what docs/broker-api.rst says.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.users import User

pytestmark = pytest.mark.host

NAME = "org.sessionvirt.Broker1"
OBJECT = "/org/sessionvirt/Broker1"
GDBUS = ["gdbus", "call", "--system", "--dest", NAME, "--object-path", OBJECT, "--method"]
BUSCTL = ["busctl", "--system", "--timeout=infinity"]
REQUEST = "[('tap', {'network': <'default'>})]"
BUSCTL_REQUEST = [
    "a(sa{sv})a{sv}",
    "1",
    "tap",
    "1",
    "network",
    "s",
    "default",
    "1",
    "vm",
    "s",
    "one",
]
#: An emulated machine, beside others; each call starts a program, the first the broker, too.
SECONDS = 120


@pytest.fixture
def user1() -> Iterator[User]:
    """user1, to whom polkit says yes; the broker does not run."""
    from host.inside import units
    from host.inside.machines import permitted
    from lab.users import User

    with permitted():
        units.stop()
        yield User.named("user1")
        from lab.rawbus import Client

        with Client() as root:
            assert root.leases() == [], "a client that has ended holds nothing"


def said(user: User, *argv: str) -> str:
    """What a program prints, which must succeed."""
    done = user.run(list(argv), timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def started_by_the_bus() -> bool:
    """Whether systemd has started the broker."""
    from host.inside import units

    return units.show(units.BROKER, "ActiveState", "BusName") == {
        "ActiveState": "active",
        "BusName": NAME,
    }


def test_three_clients_ask_questions(user1: User) -> None:
    """gdbus, busctl and pydbus; the first has the bus and systemd start the broker.

    In one test, because they have the broker in common, whose start is the longest part.
    """
    assert not started_by_the_bus()
    gdbus_asks_questions(user1)
    assert started_by_the_bus()
    busctl_asks_questions(user1)
    pydbus_asks_questions(user1)


def gdbus_asks_questions(user1: User) -> None:
    """All questions; what it acquires ends with it."""
    plan = said(user1, *GDBUS, f"{NAME}.Plan", REQUEST, "{'vm': <'one'>}")
    assert "'verdict': <'yes'>" in plan
    assert "org.sessionvirt.broker1.network-attach" in plan
    assert "'name': <'default'>" in said(user1, *GDBUS, f"{NAME}.ListNetworks", "{}")
    assert said(user1, *GDBUS, f"{NAME}.ListLeases", "{}") == "(@aa{sv} [],)\n"
    assert "'polkit': <'running'>" in said(user1, *GDBUS, f"{NAME}.Diagnose", "{}")
    refused = user1.run([*GDBUS, f"{NAME}.Plan", REQUEST, "{}"], timeout=SECONDS)
    assert "org.freedesktop.DBus.Error.InvalidArgs: options.vm: is missing" in refused.stderr
    shown = said(user1, *GDBUS[:1], "introspect", *GDBUS[2:-1])
    assert "Acquire(in  a(sa{sv}) arg_0," in shown
    argv = [*GDBUS[:2], "--timeout=2147483", *GDBUS[2:], f"{NAME}.Acquire"]
    with held_for_a_moment():
        acquired = said(user1, *argv, REQUEST, "{'vm': <'one'>}")
        assert f"(objectpath '{OBJECT}/lease/" in acquired
        assert "handle 0" in acquired


@contextlib.contextmanager
def held_for_a_moment() -> Iterator[None]:
    """What happens in it gets one lease, which ends by itself: nobody has kept its descriptors."""
    from host.inside.units import journal_since, now
    from lab.broker import RUNTIME
    from lab.files import wait_until_empty

    begun = now()
    yield
    wait_until_empty(RUNTIME / "records", SECONDS)
    events = [line for line in journal_since(begun) if line.startswith("event=")]
    assert [line.split()[0] for line in events] == ["event=grant", "event=release"]
    # The kernel closes a process's descriptors one by one: the broker may hear of either first.
    assert any(f'why="the {one} is gone"' in events[1] for one in ("holder", "TAP"))


def busctl_asks_questions(user1: User) -> None:
    """All questions, in both of its forms of output; what it acquires ends with it."""
    call = [*BUSCTL, "call", NAME, OBJECT, NAME]
    assert '"verdict" s "yes"' in said(user1, *call, "Plan", *BUSCTL_REQUEST)
    for member in ("ListNetworks", "ListLeases", "Diagnose"):
        said(user1, *call, member, "a{sv}", "0")
    as_json = said(
        user1, BUSCTL[0], "--json=short", *BUSCTL[1:], *call[3:], "Diagnose", "a{sv}", "0"
    )
    assert '"polkit":{"type":"s","data":"running"}' in as_json
    assert "method" in said(user1, *BUSCTL, "introspect", NAME, OBJECT)
    said(user1, *BUSCTL, "call", NAME, f"{OBJECT}/lease/0", "org.freedesktop.DBus.Peer", "Ping")
    with held_for_a_moment():
        assert f'ohaa{{sv}} "{OBJECT}/lease/' in said(user1, *call, "Acquire", *BUSCTL_REQUEST)
    # Nobody looks at what others say.
    monitor = user1.run([*BUSCTL, "monitor", NAME], timeout=SECONDS)
    assert monitor.returncode != 0
    assert "denied" in monitor.stderr.lower()


PYDBUS = """
from gi.repository import GLib
from pydbus import SystemBus, Variant
broker = SystemBus().get("org.sessionvirt.Broker1", "/org/sessionvirt/Broker1")
request = [("tap", {"network": Variant("s", "default")})]
print("plan", broker.Plan(request, {"vm": Variant("s", "one")})["verdict"])
print("networks", [network["name"] for network in broker.ListNetworks({})])
print("leases", broker.ListLeases({}))
print("facts", broker.Diagnose({})["polkit"])
try:
    broker.Plan(request, {})
except GLib.Error as error:
    print(error.message)
"""


PYDBUS_ACQUIRES = """
import sys
from pydbus import SystemBus, Variant
broker = SystemBus().get("org.sessionvirt.Broker1", "/org/sessionvirt/Broker1")
request = [("tap", {"network": Variant("s", "default")})]
lease, hold, grants = broker.Acquire(request, {"vm": Variant("s", "one")})
print(hold, grants[0]["fds"], flush=True)
sys.stdin.read()
"""


def pydbus_asks_questions(user1: User) -> None:
    """All questions, by the interface that introspection describes.

    It gets numbers for descriptors, and throws the descriptors away: a lease ends at once, though
    the program goes on.
    """
    assert said(user1, "python3", "-c", PYDBUS).splitlines() == [
        "plan yes",
        "networks ['default', 'private']",
        "leases []",
        "facts running",
        "GDBus.Error:org.freedesktop.DBus.Error.InvalidArgs: options.vm: is missing",
    ]
    acquire = ["python3", "-c", PYDBUS_ACQUIRES]
    with user1.popen(acquire, stdin=subprocess.PIPE) as process, held_for_a_moment():
        assert process.stdout
        assert process.stdout.readline() == b"0 [1]\n"
        assert process.poll() is None


DBUS_NEXT = """
import asyncio, os, sys
from dbus_next import BusType, Variant
from dbus_next.aio import MessageBus
from dbus_next.errors import DBusError

sys.path.insert(0, "/srv/sessionvirt/tests")
from lab import frames
from lab.tap import Tap

NAME, OBJECT = "org.sessionvirt.Broker1", "/org/sessionvirt/Broker1"
SENDER, PEER = "52:54:00:0d:b5:01", "52:54:00:0d:b5:02"

async def main():
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    tree = await bus.introspect(NAME, OBJECT)
    broker = bus.get_proxy_object(NAME, OBJECT, tree).get_interface(NAME)
    requests = [["tap", {"network": Variant("s", "default"), "mac": Variant("s", mac)}]
                for mac in (SENDER, PEER)]
    options = {"vm": Variant("s", "one")}
    print("plan", (await broker.call_plan(requests, options))["verdict"].value)
    print("facts", (await broker.call_diagnose({}))["polkit"].value)
    lease, hold, grants = await broker.call_acquire(requests, options)
    print("lease", lease.startswith(OBJECT + "/lease/"), os.readlink(f"/proc/self/fd/{hold}")[:5])
    taps = []
    for grant in grants:
        facts = {key: value.value for key, value in grant.items()}
        taps.append(Tap(facts.pop("fds"), facts))
    sender, peer = taps
    honest = sender.udp4(peer.mac, peer.ipv4, (4000, 4000), b"hello")
    forged = honest.replace(frames.mac_bytes(SENDER), frames.mac_bytes("52:54:00:0d:b5:03"), 1)
    print("honest", sender.reaches(peer, honest), "forged", sender.reaches(peer, forged))
    (listed,) = await broker.call_list_leases({})
    print("dropped", listed["drops"].value["mac"])
    tree = await bus.introspect(NAME, lease)
    held = bus.get_proxy_object(NAME, lease, tree).get_interface(NAME + ".Lease")
    await held.call_drop(["tap1"], {})
    (listed,) = await broker.call_list_leases({})
    print("left", [grant["id"].value for grant in listed["grants"].value])
    await held.call_release({})
    for call in (held.call_release({}), held.call_drop(["tap0"], {})):
        try:
            await call
        except DBusError as error:
            print("again", error.type)

asyncio.run(main())
"""


def test_dbus_next_holds_a_lease(user1: User) -> None:
    """A whole lease in a library that is not ours: two TAPs, frames, Drop, Release."""
    assert not started_by_the_bus()
    assert said(user1, "python3", "-c", DBUS_NEXT).splitlines() == [
        "plan yes",
        "facts running",
        "lease True /run/",
        "honest True forged False",
        "dropped 1",
        "left ['tap0']",
        "again org.sessionvirt.Broker1.Error.NotFound",
        "again org.sessionvirt.Broker1.Error.NotFound",
    ]
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True)
    assert "svt" not in links.stdout

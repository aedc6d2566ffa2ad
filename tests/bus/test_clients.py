# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interoperability: the clients that desktop programs use, against the broker as it is installed.

gdbus and busctl ask questions only: they end with the descriptors that they receive, and so does a
lease of theirs.
dbus-next, the library of many Python programs, gets a lease with everything in it.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from lab.rawbus import Client

if TYPE_CHECKING:
    import subprocess

    from lab.broker import Broker
    from lab.polkit import Polkit
    from lab.users import User

pytestmark = pytest.mark.bus

ADDRESS = ["--dest", "org.sessionvirt.Broker1", "--object-path", "/org/sessionvirt/Broker1"]
BUSCTL = ["busctl", "--system", "call", "org.sessionvirt.Broker1", "/org/sessionvirt/Broker1"]
IFACE = "org.sessionvirt.Broker1"


def need(program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"needs {program}: ./dev test installs it")


def gdbus(user: User, member: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = ["gdbus", "call", "--system", *ADDRESS, "--method", f"{IFACE}.{member}", *arguments]
    return user.run(call)


def test_gdbus_plans_lists_and_diagnoses(broker: Broker, polkit: Polkit, alice: User) -> None:
    need("gdbus")
    request = "[('tap', {'network': <'default'>})]"
    plan = gdbus(alice, "Plan", request, "{'vm': <'one'>}")
    assert plan.returncode == 0, plan.stderr
    assert "'verdict': <'ask'>" in plan.stdout
    assert "org.sessionvirt.broker1.network-attach" in plan.stdout
    for member in ("ListNetworks", "ListLeases", "Diagnose"):
        done = gdbus(alice, member, "{}")
        assert done.returncode == 0, done.stderr
    refused = gdbus(alice, "Plan", request, "{}")
    assert "org.freedesktop.DBus.Error.InvalidArgs: options.vm: is missing" in refused.stderr
    shown = alice.run(["gdbus", "introspect", "--system", *ADDRESS])
    assert "Acquire(in  a(sa{sv}) arg_0," in shown.stdout


def test_busctl_plans_lists_and_diagnoses(broker: Broker, polkit: Polkit, alice: User) -> None:
    need("busctl")
    request = ["a(sa{sv})a{sv}", "1", "tap", "1", "network", "s", "default", "1", "vm", "s", "one"]
    plan = alice.run([*BUSCTL, IFACE, "Plan", *request])
    assert plan.returncode == 0, plan.stderr
    assert '"verdict" s "ask"' in plan.stdout
    for member in ("ListNetworks", "ListLeases", "Diagnose"):
        done = alice.run([*BUSCTL, IFACE, member, "a{sv}", "0"])
        assert done.returncode == 0, done.stderr
    # Two flags at once, which not every library can read.
    flags = ["--allow-interactive-authorization=yes", "--auto-start=no"]
    done = alice.run([BUSCTL[0], *flags, *BUSCTL[1:], IFACE, "Diagnose", "a{sv}", "0"])
    assert done.returncode == 0, done.stderr
    refused = alice.run([*BUSCTL, IFACE, "Acquire", *request])
    assert refused.returncode != 0


DBUS_NEXT = """
import asyncio, os, sys
from dbus_next import BusType, Variant
from dbus_next.aio import MessageBus
from dbus_next.errors import DBusError

async def main():
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    name, path = "org.sessionvirt.Broker1", "/org/sessionvirt/Broker1"
    tree = await bus.introspect(name, path)
    broker = bus.get_proxy_object(name, path, tree).get_interface(name)
    requests = [["tap", {"network": Variant("s", "default")}]]
    options = {"vm": Variant("s", "one")}
    plan = await broker.call_plan(requests, options)
    print("plan", plan["verdict"].value)
    print("networks", len(await broker.call_list_networks({})))
    print("facts", (await broker.call_diagnose({}))["polkit"].value)
    lease, hold, grants = await broker.call_acquire(requests, options)
    (tap,) = grants[0]["fds"].value
    print("lease", lease.startswith(path + "/lease/"), os.readlink(f"/proc/self/fd/{tap}"))
    os.write(hold, b"x")
    print("leases", len(await broker.call_list_leases({})))
    tree = await bus.introspect(name, lease)
    interface = name + ".Lease"
    held = bus.get_proxy_object(name, lease, tree).get_interface(interface)
    await held.call_release({})
    try:
        await held.call_release({})
    except DBusError as error:
        print("again", error.type)

asyncio.run(main())
"""


def test_dbus_next_holds_a_lease(broker: Broker, polkit: Polkit, alice: User) -> None:
    dbus_next = pytest.importorskip("dbus_next", reason="needs dbus-next: ./dev test installs it")
    # Where alice can read it; she cannot read a virtual environment below /root.
    library = alice.home / "lib"
    shutil.copytree(os.path.dirname(dbus_next.__file__), library / "dbus_next")
    polkit.answer("org.sessionvirt.broker1.*", "yes", user="alice")
    done = alice.run(
        ["/usr/bin/python3", "-c", DBUS_NEXT], environment={"PYTHONPATH": str(library)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "plan yes",
        "networks 2",
        "facts running",
        "lease True /dev/net/tun",
        "leases 1",
        "again org.sessionvirt.Broker1.Error.NotFound",
    ]
    with Client() as root:
        assert root.leases() == []

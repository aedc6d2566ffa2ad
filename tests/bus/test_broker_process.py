# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker's process is, what it inherits, and what it cannot get beyond its five powers."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dbus_fast import Message, MessageType, Variant

from lab.broker import NAME, USER
from lab.bus import ENVIRONMENT
from lab.polkit import AUTHORITY, INTERFACE
from lab.polkit import NAME as POLKIT
from lab.rawbus import BusError, Client
from lab.stage import Flavour

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.bus import SystemBus
    from lab.polkit import Polkit

pytestmark = pytest.mark.bus

#: linux/capability.h
FIVE = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_KILL": 5,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_RESOURCE": 24,
}

#: The top-level packages beside the standard library that the broker may load, late imports too.
PACKAGES = {"sessionvirt_broker", "dbus_fast", "pyroute2", "nftables"}
#: What the interpreter brings along itself: its main module, Debian's hook, Cython's runtime.
INTERPRETER = {"__main__", "__mp_main__", "sitecustomize", "_distutils_hack", "cython_runtime"}
#: Of the standard library, what would open a door that nobody needs; all of pyroute2 would bring
#: the second half.
NEVER = {"smtplib", "ftplib", "xmlrpc", "webbrowser", "pdb", "ensurepip", "pip"} | {
    *("http.server", "sqlite3", "pyroute2.ndb"),
}


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("broker", Flavour, indirect=True)
def test_the_broker_is_its_own_user_with_five_capabilities_at_most(broker: Broker) -> None:
    found = status(broker.daemon.pid)
    user = pwd.getpwnam(USER)
    assert found["Uid"].split() == [str(user.pw_uid)] * 4
    assert found["Gid"].split() == [str(user.pw_gid)] * 4
    assert found["Groups"] == ""
    assert found["NoNewPrivs"] == "1"
    allowed = sum(1 << bit for bit in FIVE.values())
    for field in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
        mask = int(found[field], 16)
        assert mask & ~allowed == 0, field
        assert mask & 1 << FIVE["CAP_NET_ADMIN"]
    arguments = Path(f"/proc/{broker.daemon.pid}/cmdline").read_bytes().split(b"\0")
    assert arguments[:4] == [b"/usr/bin/python3", b"-IB", b"-m", b"sessionvirt_broker"]


@contextmanager
def started_badly(broker: Broker, tmp_path: Path) -> Iterator[int]:
    """The broker, started by a root who has lost his way; the number of an fd that he left open."""
    evil = tmp_path / "evil"
    evil.mkdir()
    for name in ("sitecustomize", "usercustomize", "dbus_fast", "asyncio"):
        (evil / f"{name}.py").write_text("raise SystemExit('somebody else runs')\n")
    environment = {
        "PYTHONPATH": str(evil),
        "PYTHONHOME": "/nonexistent",
        "PYTHONSTARTUP": str(evil / "sitecustomize.py"),
        "PYTHONINSPECT": "1",
        "PYTHONMALLOC": "debug",
        "LD_PRELOAD": str(evil / "evil.so"),
        "LD_LIBRARY_PATH": str(evil),
        "LC_ALL": "tr_TR.ISO-8859-9",
        "HOME": str(evil),
        "DBUS_STARTER_ADDRESS": "unix:path=/nonexistent",
        "NOTIFY_SOCKET": "",
    }
    broker.stop()
    before, broker.daemon.environment = broker.daemon.environment, {**ENVIRONMENT, **environment}
    directory, mask = os.getcwd(), os.umask(0)
    left_open = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(left_open, True)  # noqa: FBT003  (its signature)
    spawn = broker.daemon.spawn
    broker.daemon.spawn = lambda *, pass_fds=(): spawn(pass_fds=(left_open,))  # type: ignore[method-assign]
    try:
        os.chdir(evil)
        broker.start()
        yield left_open
    finally:
        os.close(left_open)
        os.umask(mask)
        os.chdir(directory)
        broker.daemon.spawn = spawn  # type: ignore[method-assign]
        broker.daemon.environment = before


def test_g81_nothing_of_where_it_was_started_reaches_the_broker(
    broker: Broker, tmp_path: Path
) -> None:
    with started_badly(broker, tmp_path):
        pid = broker.daemon.pid
        children = [
            int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
        keepers = children or _keepers()
        assert keepers
        for process in (pid, *keepers):
            assert Path(f"/proc/{process}/environ").read_bytes() == b""
            assert os.readlink(f"/proc/{process}/cwd") == "/"
            targets = [os.readlink(one) for one in Path(f"/proc/{process}/fd").iterdir()]
            assert "/etc/passwd" not in targets, process
            maps = Path(f"/proc/{process}/maps").read_text()
            assert str(tmp_path) not in maps
        assert status(pid)["Umask"] == "0077"
        with Client() as client:
            assert client.call("ListNetworks", {})[0][0]["name"].value == "default"


def _keepers() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if b"sessionvirt_broker.keeper" in path.read_bytes():
            found.append(int(path.parent.name))
    return found


IMPORTS = """
import sys
import sessionvirt_broker.__main__, sessionvirt_broker.daemon, sessionvirt_broker.keeper
from sessionvirt_broker.netlink import Links
from sessionvirt_broker.firewall import Firewall
links, firewall = Links(), Firewall()
links.by_name("lo"); links.uplinks()
firewall.state()
links.close()
print("isolated", sys.flags.isolated, sys.flags.no_user_site, sys.flags.ignore_environment)
print(*sorted(name for name, module in sys.modules.items() if module is not None))
"""


@pytest.mark.parametrize("broker", Flavour, indirect=True)
def test_g82_only_what_it_needs_is_loaded(broker: Broker) -> None:
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", IMPORTS],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    flags, names = done.stdout.splitlines()
    assert flags == "isolated 1 1 1"
    modules = set(names.split())
    roots = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    cython = {root for root in roots if root.startswith(("_cython_", "_sysconfigdata"))}
    assert roots - INTERPRETER - cython <= PACKAGES
    assert roots >= PACKAGES
    assert modules & NEVER == set()


# What it cannot ask for


@contextmanager
def as_broker() -> Iterator[Client]:
    """A connection of the broker's uid, as a broker that somebody else has taken over."""
    with Client(pwd.getpwnam(USER).pw_uid) as client:
        yield client


def test_the_broker_cannot_own_another_name(broker: Broker) -> None:
    for name in ("org.freedesktop.PolicyKit1", "org.freedesktop.systemd1", f"{NAME}.More", "a.b"):
        with as_broker() as client, pytest.raises(BusError) as refused:
            client.bus_call("RequestName", "su", name, 2)
        assert refused.value.short == "AccessDenied", name


@pytest.mark.parametrize(
    ("interface", "member", "signature", "body"),
    [
        ("org.freedesktop.DBus", "UpdateActivationEnvironment", "a{ss}", [{"LD_PRELOAD": "x"}]),
        ("org.freedesktop.DBus.Monitoring", "BecomeMonitor", "asu", [[], 0]),
        ("org.freedesktop.DBus.Debug.Stats", "GetStats", "", []),
        ("org.freedesktop.systemd1.Activator", "ActivationRequest", "s", ["x"]),
    ],
)
def test_the_broker_has_no_powers_over_the_bus(
    broker: Broker, interface: str, member: str, signature: str, body: list[object]
) -> None:
    with as_broker() as client:
        error = client.error(
            member,
            *body,
            signature=signature,
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface=interface,
        )
        assert error.short == "AccessDenied"


def ask_polkit(client: Client, subject: str, action: str, details: dict[str, str]) -> int:
    """CheckAuthorization, as the broker would send it; the call's serial."""
    return client.ask(
        "CheckAuthorization",
        ["system-bus-name", {"name": Variant("s", subject)}],
        action,
        details,
        0,
        "",
        signature="(sa{sv})sa{ss}us",
        destination=POLKIT,
        path=AUTHORITY,
        interface=INTERFACE,
    )


def check(client: Client, subject: str, action: str, details: dict[str, str]) -> list[object]:
    """The same, and polkit's answer."""
    return client.answer(ask_polkit(client, subject, action, details)).body


def test_the_broker_may_ask_polkit_about_others_for_its_own_actions_only(
    broker: Broker, polkit: Polkit
) -> None:
    own, foreign = "org.sessionvirt.broker1.network-attach", "org.freedesktop.policykit.exec"
    with Client() as other, as_broker() as client:
        assert check(client, other.name, own, {"vm": "x"})
        with pytest.raises(BusError) as refused:
            check(client, other.name, foreign, {"vm": "x"})
        assert refused.value.name == "org.freedesktop.PolicyKit1.Error.NotAuthorized"
        with pytest.raises(BusError):
            check(client, other.name, foreign, {})
        # An agent's answer is for polkit's own helper to give.
        error = client.error(
            "AuthenticationAgentResponse2",
            0,
            "cookie",
            ["unix-user", {"uid": Variant("u", 0)}],
            signature="us(sa{sv})",
            destination=POLKIT,
            path=AUTHORITY,
            interface=INTERFACE,
        )
        assert error.short in ("AccessDenied", "Failed", "NotAuthorized")


SYSTEMD_POLICY = Path("/usr/share/dbus-1/system.d/lab.systemd1.conf")


@contextmanager
def systemd_on(bus: SystemBus) -> Iterator[Client]:
    """systemd's name, owned by root; see :func:`serve_as_systemd`."""
    SYSTEMD_POLICY.write_text(
        '<busconfig><policy user="root"><allow own="org.freedesktop.systemd1"/></policy>'
        '<policy context="default"><allow send_destination="org.freedesktop.systemd1"/></policy>'
        "</busconfig>"
    )
    bus.reload()
    try:
        with Client() as systemd:
            systemd.bus_call("RequestName", "su", "org.freedesktop.systemd1", 4)
            yield systemd
    finally:
        SYSTEMD_POLICY.unlink()
        bus.reload()


def start_transient(client: Client) -> int:
    return client.ask(
        "StartTransientUnit",
        "evil.service",
        "fail",
        [],
        [],
        signature="ssa(sv)a(sa(sv))",
        destination="org.freedesktop.systemd1",
        path="/org/freedesktop/systemd1",
        interface="org.freedesktop.systemd1.Manager",
    )


def polkit_says_yes(systemd: Client, sender: str) -> bool:
    """Ask as systemd does; polkit 126 asks systemd back which unit the subject belongs to."""
    serial = ask_polkit(systemd, sender, "org.freedesktop.systemd1.manage-units", {})
    while (came := systemd.receive()).message.reply_serial != serial:
        came.close()  # it says by pidfd whom it means
        if came.message.message_type is MessageType.METHOD_CALL:
            name = "org.freedesktop.systemd1.NoUnitForPID"
            reply = Message.new_error(came.message, name, "none")
            reply.serial = systemd.next_serial()
            systemd.send(reply)
    return bool(came.body[0][0])


def serve_as_systemd(systemd: Client) -> None:
    """Decide one StartTransientUnit as systemd's bus_verify_polkit() does: root may, others ask."""
    while True:
        message = systemd.receive().message
        if message.member == "StartTransientUnit":
            break
    sender = str(message.sender)
    (credentials,) = systemd.bus_call("GetConnectionCredentials", "s", sender)
    allowed = credentials["UnixUserID"].value == 0
    if not allowed:
        allowed = polkit_says_yes(systemd, sender)
    if allowed:
        reply = Message.new_method_return(message, "o", ["/job"])
    else:
        reply = Message.new_error(message, "org.freedesktop.DBus.Error.AccessDenied", "no")
    assert reply.message_type is (MessageType.METHOD_RETURN if allowed else MessageType.ERROR)
    reply.serial = systemd.next_serial()
    systemd.send(reply)


def test_systemd_starts_nothing_for_the_brokers_user(
    broker: Broker, polkit: Polkit, bus: SystemBus
) -> None:
    """A service of uid 0 with the same sandbox would have been given a unit with every capability.

    systemd is played by a connection that decides as it does; bus, polkit and its rules are real.
    """
    with systemd_on(bus) as systemd:
        with as_broker() as client:
            serial = start_transient(client)
            serve_as_systemd(systemd)
            assert client.answer(serial).error.short == "AccessDenied"
        # The same call by root is granted: it is the uid that decides.
        with Client() as root:
            serial = start_transient(root)
            serve_as_systemd(systemd)
            assert root.answer(serial).body == ["/job"]


def test_started_with_too_much_or_too_little_it_does_not_run(broker: Broker) -> None:
    user = pwd.getpwnam(USER)
    base = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    command = ["/usr/bin/python3", "-IB", "-m", "sessionvirt_broker"]
    for more, words in (
        (["--inh-caps=+chown,+net_admin", "--ambient-caps=+chown,+net_admin"], "beyond its own"),
        (["--inh-caps=-all", "--ambient-caps=-all"], "started without"),
    ):
        done = subprocess.run(
            [*base, *more, "--", *command],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
            timeout=10,
            check=False,
        )
        assert done.returncode == 1
        assert words in done.stderr

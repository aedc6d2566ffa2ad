# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab is what its users take it for: private, with an outside world and ordinary users."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.namespaces import install, system_users
from lab.outside import ADDRESS4, ADDRESS6, PORT, UPLINK4, UPLINK6
from lab.stage import Flavour

if TYPE_CHECKING:
    from lab.outside import Outside
    from lab.users import User

pytestmark = pytest.mark.kernel


def test_nothing_of_the_hosts_network_is_seen() -> None:
    assert os.listdir("/sys/class/net") == ["lo"]


def test_the_outside_sees_the_uplinks_address(outside: Outside) -> None:
    for address, seen in ((ADDRESS4, UPLINK4), (f"[{ADDRESS6}]", UPLINK6)):
        with urllib.request.urlopen(f"http://{address}:{PORT}/", timeout=5) as answer:
            assert answer.read().decode().strip() == seen


def test_the_outside_has_no_route_back_to_a_guest(outside: Outside) -> None:
    assert "default" not in outside.run(["ip", "route"])


def test_an_ordinary_user_has_no_capability_and_the_groups_of_a_login(
    alice: User, carol: User
) -> None:
    assert "CapEff:\t0000000000000000" in alice.run(["cat", "/proc/self/status"]).stdout
    assert alice.run(["id", "-Gn"]).stdout == "alice sessionvirt\n"
    assert carol.run(["id", "-Gn"]).stdout == "carol\n"


def test_an_ordinary_user_cannot_read_anothers_home(alice: User, bob: User) -> None:
    alice.write("secret", "x")
    assert bob.run(["cat", str(alice.home / "secret")]).returncode == 1


def test_the_projects_system_users_are_there() -> None:
    passwd = Path("/etc/passwd").read_text()
    assert len(system_users()) == 2
    assert all(f"\n{name}:x:" in passwd for name in system_users())


@pytest.mark.parametrize("flavour", Flavour)
def test_an_ordinary_user_can_import_what_is_installed(alice: User, flavour: Flavour) -> None:
    install(flavour)
    program = "import dbus_fast, pyroute2, qemu.qmp, sessionvirt, sessionvirt_broker as b\n"
    program += "print(dbus_fast.__file__, pyroute2.__file__, b.__file__)"
    done = alice.run(["/usr/bin/python3", "-I", "-c", program])
    assert done.returncode == 0, done.stderr
    homes = {Path(name).parts[1:3] for name in done.stdout.split()}
    local, debian = ("usr", "local"), ("usr", "lib")
    assert homes == ({local} if flavour is Flavour.PYPI else {local, debian})

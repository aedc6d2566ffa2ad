# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real guest on a user-mode network, with neither broker nor bus: by passt, and by QEMU."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from lab import namespaces
from lab.guest import CMDLINE
from lab.outside import PORT, UPLINK4

if TYPE_CHECKING:
    from lab.guest import Guest
    from lab.outside import Outside
    from lab.users import User

pytestmark = pytest.mark.qemu

#: Beyond the gateway: to passt and QEMU the gateway's own address means this host.
FAR = "198.51.100.1"
#: Not ask(): it says first that it will send no more, and then the passt of Debian 12 (2023-03-09)
#: sends what it has sent again and again, under new numbers.
SCRIPT = f"""\
dhcp
request() {{ printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 3; }}
say "outside saw $(request | nc -w 5 {FAR} {PORT} | tail -n 1)"
"""


@pytest.mark.parametrize("backend", ["passt", "QEMU's own"])
def test_a_guest_gets_an_address_and_reaches_the_outside(
    alice: User, guest: Guest, outside: Outside, backend: str
) -> None:
    path = alice.environment["PATH"]
    if backend == "passt":
        if not shutil.which("passt", path=path):
            pytest.skip("passt is not installed: ./dev installs it")
    else:
        # passt is not in this one, and setpriv and a shell are.
        only = alice.home / "bin"
        only.mkdir()
        for name in ("qemu-system-x86_64", "setpriv", "sh", "unshare", "true"):
            (only / name).symlink_to(str(shutil.which(name, path=path)))
        path = str(only)
    outside.run(["ip", "address", "add", f"{FAR}/32", "dev", "out0"])
    scripted = guest.with_script(SCRIPT, namespaces.LAB / "guest/user-network-initrd")
    done = alice.run(
        [
            "/usr/local/bin/sessionvirt", "run", "--verbose", "--memory", "192", "--timeout", "90",
            "--kernel", str(scripted.kernel), "--initrd", str(scripted.initrd),
            "--append", CMDLINE,
        ],
        environment={"PATH": path, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"},
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    # That of Debian 12 says no version; in a chroot nobody may make the namespace it needs. In both
    # cases it is passed over, for QEMU has a network of its own.
    sound = "unknown version" not in alice.run(["passt", "--version"]).stdout
    sound = sound and alice.run(["unshare", "--user", "true"]).returncode == 0
    used = '"type":"stream"' in done.stderr
    assert used == (backend == "passt" and sound), done.stderr
    assert "GUEST: address " in done.stdout
    assert f"GUEST: outside saw {UPLINK4}" in done.stdout, done.stdout

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real guest that serves a port, which is published: at its start, and by another process."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from lab import namespaces
from lab.guest import CMDLINE
from lab.outside import UPLINK4

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.guest import Guest
    from lab.outside import Outside
    from lab.polkit import Polkit
    from lab.users import User

pytestmark = pytest.mark.qemu

#: Three callers, and that is all.
SCRIPT = """\
dhcp
say serving
for caller in 1 2 3; do echo "hello $caller" | nc -l -p 80; done
"""


def test_a_guest_is_reached_from_outside(
    alice: User, guest: Guest, outside: Outside, broker: Broker, polkit: Polkit
) -> None:
    polkit.answer("org.sessionvirt.broker1.*", "yes", user="alice")
    scripted = guest.with_script(SCRIPT, namespaces.LAB / "guest/published-port-initrd")
    argv = [
        *("sessionvirt", "run", "--network", "default", "--publish", "8080:80"),
        *("--name", "server", "--memory", "192", "--timeout", "90", "--append", CMDLINE),
        *("--kernel", str(scripted.kernel), "--initrd", str(scripted.initrd)),
    ]
    with alice.popen(argv) as process:
        assert process.stdout is not None
        said: list[bytes] = []
        while not said or b"GUEST: serving" not in said[-1]:
            said.append(process.stdout.readline())
            assert said[-1], b"".join(said)
        assert outside.ask("tcp", UPLINK4, 8080) == "hello 1"
        done = alice.run(["sessionvirt", "publish", "server", "127.0.0.1:8081:80"])
        assert done.returncode == 0, done.stderr
        address = re.fullmatch(r"sessionvirt: server: 127.0.0.1:8081 -> (.*):80/tcp\n", done.stderr)
        assert address, done.stderr
        listed = alice.run(["sessionvirt", "leases"]).stdout
        assert f"*:8080 -> {address[1]}:80/tcp" in listed
        done = alice.run(["sessionvirt", "unpublish", "server", "8080"])
        assert done.returncode == 0, done.stderr
        assert outside.ask("tcp", UPLINK4, 8080) == "ConnectionRefusedError"
        again = alice.run(["sessionvirt", "unpublish", "server", "8080"])
        assert (again.returncode, "127.0.0.1:8081" in again.stderr) == (3, True)
        process.kill()
    broker.wait_until_idle()

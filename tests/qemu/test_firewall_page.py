# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/firewall.rst, followed to the letter: each command of ours, in order, by an ordinary user.

Those of other programs are run beside these, in tests/kernel/test_other_firewalls.py, which takes
them from the page.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from lab.doctoring import of_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.outside import Outside
    from lab.polkit import Polkit
    from lab.users import User

pytestmark = pytest.mark.qemu

DISK = "debian.qcow2"
#: Says "x" on the first serial port and stops: mov al,'x'; mov dx,0x3f8; out dx,al; mov al,'\n';
#: out dx,al; cli; hlt.
SECTOR = bytes.fromhex("b078baf803eeb00aeefaf4").ljust(510, b"\0") + b"\x55\xaa"


@contextlib.contextmanager
def machine(alice: User, line: str) -> Iterator[None]:
    with alice.popen(shlex.split(line)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"x" in process.stdout.readline(), process.stderr.read().decode()
        try:
            yield
        finally:
            process.kill()


def test_the_page(alice: User, outside: Outside, broker: Broker, polkit: Polkit) -> None:
    polkit.answer("org.sessionvirt.broker1.*", "yes", user="alice")
    raw = alice.write("disk.raw", SECTOR.ljust(1 << 20, b"\0"))
    convert = ["qemu-img", "convert", "-O", "qcow2", str(raw), str(alice.home / DISK)]
    subprocess.run(convert, check=True)
    (alice.home / DISK).chmod(0o666)
    seen = set()
    with contextlib.ExitStack() as running:
        for line in of_page("sessionvirt"):
            verb = line.split()[1]
            seen.add(verb)
            if verb == "run":
                running.close()
                broker.wait_until_idle()
                running.enter_context(machine(alice, line))
            else:
                done = alice.run(shlex.split(line))
                assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert seen == {"run", "publish", "unpublish", "leases", "filter", "limit", "doctor"}
    broker.wait_until_idle()

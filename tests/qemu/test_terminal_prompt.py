# SPDX-License-Identifier: LGPL-2.1-or-later
"""polkit's prompt on a terminal: real pkttyagent, real polkitd, real PAM, a real password."""

from __future__ import annotations

import ctypes
import os
import pty
import select
import termios
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.polkit import Polkit
    from lab.users import User

pytestmark = pytest.mark.qemu

ACTION = "org.sessionvirt.broker1.network-attach"
PASSWORD = "right horse"
XML = """\
<domain type='qemu'>
  <name>guest</name><memory unit='MiB'>64</memory>
  <os><type machine='q35'>hvm</type></os>
  <devices>
    <interface type='network'><source network='default'/><model type='virtio'/></interface>
  </devices>
</domain>
"""


@pytest.fixture
def password() -> Iterator[None]:
    """alice has one, in the lab's own /etc/shadow."""
    libcrypt = ctypes.CDLL("libcrypt.so.1")
    libcrypt.crypt.restype = ctypes.c_char_p
    hashed = libcrypt.crypt(PASSWORD.encode(), b"$6$laboratory$").decode()
    shadow = Path("/etc/shadow")
    before = shadow.read_text()
    shadow.write_text(f"{before}alice:{hashed}:20000:0:99999:7:::\n")
    yield
    shadow.write_text(before)


@contextmanager
def prompted(alice: User) -> Iterator[tuple[subprocess.Popen[bytes], int, bytes]]:
    """``sessionvirt run`` on a terminal of its own, at the prompt: it, and what it showed."""
    guest = alice.write("guest.xml", XML)
    ours, theirs = pty.openpty()
    # A session whose terminal it is, as a login would make it.
    argv = ["setsid", "--ctty", "--wait", "sessionvirt", "run", "-v", str(guest)]
    try:
        with alice.popen(argv, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            try:
                prompt = read_until(ours, b"Password: ")
                # It asks first and then turns the echo off, throwing away what was typed before.
                while termios.tcgetattr(theirs)[3] & termios.ECHO:
                    select.select([], [], [], 0.01)
                yield process, ours, prompt
            finally:
                process.kill()
        assert termios.tcgetattr(theirs)[3] & termios.ECHO, "nobody put the terminal back"
    finally:
        os.close(ours)
        os.close(theirs)


def read_until(terminal: int, words: bytes) -> bytes:
    """What the terminal shows, up to ``words``."""
    seen = b""
    while words not in seen:
        assert select.select([terminal], [], [], 30)[0], seen
        seen += os.read(terminal, 4096)
    return seen


@pytest.mark.usefixtures("password")
def test_the_right_password_is_a_yes(alice: User, broker: Broker, polkit: Polkit) -> None:
    polkit.answer(ACTION, "auth_self", user="alice")
    with prompted(alice) as (process, terminal, prompt):
        assert b'connect the virtual machine "guest" to the network "default"' in prompt
        os.write(terminal, PASSWORD.encode() + b"\n")
        read_until(terminal, b"QEMU is process")
        os.write(terminal, b"\x03\x03")  # it has no operating system to power down
        read_until(terminal, b"asking the guest")
        os.write(terminal, b"\x03")
        assert process.wait(30) == 130
    broker.wait_until_idle()


@pytest.mark.usefixtures("password")
def test_a_wrong_password_is_a_no(alice: User, broker: Broker, polkit: Polkit) -> None:
    polkit.answer(ACTION, "auth_self", user="alice")
    with prompted(alice) as (process, terminal, _):
        os.write(terminal, b"wrong horse\n")
        read_until(terminal, b"what to do:")
        assert process.wait(30) == 4
    broker.wait_until_idle()


def test_an_interrupt_at_the_prompt_ends_the_command(
    alice: User, broker: Broker, polkit: Polkit
) -> None:
    polkit.answer(ACTION, "auth_self", user="alice")
    with prompted(alice) as (process, terminal, _):
        os.write(terminal, b"\x03")
        assert process.wait(30) == 130
    broker.wait_until_idle()

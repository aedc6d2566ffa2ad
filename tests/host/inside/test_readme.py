# SPDX-License-Identifier: LGPL-2.1-or-later
"""README.rst, followed to the letter by somebody who has just installed Debian.

Every command and every file that it shows is used as it stands, in order, by an ordinary user at a
terminal, but for those that :data:`NOT_HERE` names with the reason. "alice" is the account of this
host that may use sudo. A machine that has been written down gets a network and an address. At the
end the host is as it was before the packages came.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from host.inside.readme import Block
    from host.inside.sessions import Session, Terminal

pytestmark = pytest.mark.host

README = Path("/srv/sessionvirt/README.rst")
PACKAGES = Path("/srv/packages")
GUEST = Path("/srv/guest")
#: Who reads it; in the group sudo.
READER = "admin"
VT = 9
#: A Debian kernel unpacks itself and boots in an emulated machine's emulated machine: 220 s.
SECONDS = 540.0

#: Commands that are not run in the host, and why.
NOT_HERE = {
    "./dev demo": "the checkout's own lab, in namespaces; ./dev test has its test",
    "./dev test": "this is it",
    "./dev deb": "needs Debian's archive; the host's packages were built by it, outside",
    "PYTHONPATH=src .venv/bin/python -m sessionvirt run disk.qcow2": "is of the checkout",
}
#: Blocks that are no commands.
DRAWINGS = {"Who trusts whom"}
#: Commands that ask at the terminal, the end of their question, and what is typed then. Not before:
#: sudo throws away what was typed ahead when it makes a terminal of its own. apt install asks only
#: where other packages come along; here they are all there.
ANSWERS = {"sudo apt purge": ("[Y/n] ", "y\n")}
#: The reader's own files, below the home; the last is a note of sudo's.
MADE = ("disk.qcow2", "guest.xml", "program.py", ".sudo_as_admin_successful")
#: Of the tests, below /var: what is kept for every session, and what failed.
OF_THE_TESTS = ("/var/lib/testhost", "/var/cache/testhost", "/var/log")

#: A boot sector that powers off: mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt (ACPI's S5 on q35).
OFF = bytes.fromhex("ba0406 b80020 ef f4 ebfd").ljust(510, b"\0") + b"\x55\xaa"
#: What the Debian guest does; it stays until a line is typed.
SCRIPT = "dhcp\nreach gateway $(cat /gateway)\nsay waits\nread line\n"


@pytest.fixture
def reader() -> Iterator[Session]:
    """Somebody at the machine, in the active session, whose sudo asks for no password."""
    from host.inside.sessions import Session

    rule = Path("/etc/sudoers.d/testhost")
    rule.write_text(f"{READER} ALL=(ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    try:
        with Session.open(READER, vt=VT, active=True) as session:
            home = Path(session.home)
            (home / "dist").symlink_to(PACKAGES)
            try:
                yield session
            finally:
                for name in (*MADE, "dist"):
                    (home / name).unlink(missing_ok=True)
    finally:
        rule.unlink()


@pytest.fixture
def bare(reader: Session) -> Iterator[None]:
    """The host without our packages; afterwards they are there again."""
    subprocess.run(
        ["apt-get", "purge", "--yes", *installed()], check=True, stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        names = sorted(str(path) for path in PACKAGES.glob("*.deb"))
        subprocess.run(
            ["apt-get", "install", "--yes", *names], check=True, stdout=subprocess.DEVNULL
        )


def installed() -> list[str]:
    """Our packages, as dpkg has them in whatever state."""
    query = ["dpkg-query", "--show", "--showformat=${Package}\\n", "sessionvirt*"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()


def test_the_readme(reader: Session, bare: None, tmp_path: Path) -> None:
    """From ``apt install`` to a machine with an address, and back."""
    from host.inside import state
    from host.inside.readme import blocks

    before = state.snapshot()
    pages = before_packages()
    walk = Walk(reader, tmp_path)
    for block in blocks(README):
        walk.through(block)
    assert walk.left_out == set(NOT_HERE), "a command of NOT_HERE is no longer in the page"
    assert walk.address, "no machine had a network"
    for name in MADE:
        (Path(reader.home) / name).unlink(missing_ok=True)
    state.settle()
    assert state.differences(before, state.snapshot()) == []
    assert installed() == []
    assert before_packages() == pages


def before_packages() -> list[str]:
    """Everything that is called as we are, beside the tests and what is to be installed."""
    argv = ["find", "/etc", "/usr", "/var", "/run", "-xdev", "-iname", "*sessionvirt*"]
    names = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()
    return sorted(name for name in names if not name.startswith(OF_THE_TESTS))


class Walk:
    """The reader's way through the page."""

    def __init__(self, reader: Session, scratch: Path) -> None:
        self.reader = reader
        self.home = Path(reader.home)
        self.scratch = scratch
        self.left_out: set[str] = set()
        #: What DHCP gave to the machine.
        self.address = ""
        self._machine: Terminal | None = None
        #: What its guest has said.
        self._talk = ""
        self._files = {"xml": "guest.xml", "python": "program.py"}
        self._looks: dict[str, Callable[[str], None]] = {
            "sessionvirt doctor": self._doctor,
            "sessionvirt plan disk.qcow2 --network default": self._plan,
            "sessionvirt leases": self._leases,
        }

    def through(self, block: Block) -> None:
        """Do what a block says."""
        if block.section in DRAWINGS:
            return
        if block.language:
            text = block.text.replace("/home/alice/", f"{self.home}/")
            (self.home / self._files[block.language]).write_text(text + "\n")
            if block.language == "python":
                self._disk_that_powers_off()
                self._run("python3 program.py")
            return
        with contextlib.ExitStack() as stack:
            for command in block.commands:
                if command in NOT_HERE:
                    self.left_out.add(command)
                elif command == "sessionvirt run guest.xml":
                    self._disk_with_debian()
                    self._machine = stack.enter_context(self._start(command))
                    # Whoever types what comes next sees that it runs.
                    self._talk = self._machine.expect("GUEST: waits", seconds=SECONDS)
                else:
                    if "disk.qcow2" in command:
                        self._disk_that_powers_off()
                    said = self._run(command)
                    if look := self._looks.get(command):
                        look(said)
            if self._machine is not None:
                self._end_of_machine()
        if block.section == "Permission":
            self._permission()

    def _start(self, command: str) -> Terminal:
        """A command at a terminal, in a shell, as it stands but for the reader's name."""
        line = re.sub(r"\balice\b", READER, command)
        return self.reader.terminal(["bash", "-c", line], environment={"TERM": "dumb"})

    def _run(self, command: str) -> str:
        """Run it to its end, which must be a good one; what it said."""
        with self._start(command) as terminal:
            for beginning, (question, answer) in ANSWERS.items():
                if command.startswith(beginning):
                    terminal.expect(question, seconds=SECONDS)
                    terminal.press(answer)
            status = terminal.end(SECONDS)
            assert status == 0, f"{command}: status {status}\n{terminal.seen}"
            return terminal.seen

    # What is to be seen

    def _doctor(self, said: str) -> None:
        assert "0 problems" in said, said
        assert re.search(r"ok +broker +version", said), said

    def _plan(self, said: str) -> None:
        assert "svn_default" in said, said
        assert not Path("/sys/class/net/svn_default").exists()

    def _leases(self, said: str) -> None:
        """On another terminal: its address, while the machine runs."""
        match = re.search(r"GUEST: address (\S+) via (\S+)", self._talk)
        assert match, self._talk
        self.address, gateway = match.groups()
        assert gateway == "10.213.80.1"
        assert "GUEST: gateway answers" in self._talk
        assert self.address.partition("/")[0] in said, said
        assert "first" in said, said

    def _end_of_machine(self) -> None:
        machine, self._machine = self._machine, None
        assert machine is not None
        machine.press("\n")
        status = machine.end(SECONDS)
        assert status == 0, f"status {status}\n{machine.seen}"

    def _permission(self) -> None:
        """A new login of the reader's, not at the machine, is asked no more."""
        from host.inside.sessions import Session

        with Session.open(READER) as session:
            done = session.run(
                ["sessionvirt", "plan", "--json", "disk.qcow2", "--network", "default"]
            )
        assert done.returncode == 0, done.stderr
        assert '"verdict": "yes"' in done.stdout, done.stdout

    # Disks

    def _disk_that_powers_off(self) -> None:
        """disk.qcow2, as small as a machine that ends by itself can be."""
        self._convert(OFF.ljust(1 << 20, b"\0"))

    def _disk_with_debian(self) -> None:
        """disk.qcow2, with the tiny guest on it."""
        from host.inside.readme import bootable
        from lab.guest import CMDLINE, Guest

        guest = Guest(GUEST / "vmlinuz", GUEST / "initrd")
        guest = guest.with_script(SCRIPT, self.scratch / "initrd")
        self._convert(bootable(self.scratch, guest.kernel, guest.initrd, CMDLINE).read_bytes())

    def _convert(self, content: bytes) -> None:
        raw, disk = self.scratch / "disk.raw", self.home / "disk.qcow2"
        raw.write_bytes(content)
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, disk], check=True)
        shutil.chown(disk, READER, READER)

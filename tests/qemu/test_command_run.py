# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt run`` as a person or a script meets it: console, signals, exit status."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import button

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.outside import Outside

pytestmark = pytest.mark.qemu

SOURCE = Path(__file__).resolve().parents[2] / "src"

#: A boot sector: writes a line to the first serial port, then does as the byte after it says.
#: Real mode, loaded at 0x7C00. mov si,text; loop: lodsb; or al,al; jz end; mov dx,0x3f8; out dx,al;
#: jmp loop.
PRINT = bytes.fromhex("be1e7c ac 08c0 7406 baf803 ee ebf5".replace(" ", ""))
HALT = bytes.fromhex("f4ebfd")  # hlt; jmp to it
#: Power off by writing S5 to the PM1a control register of q35 (0x604): mov dx,0x604; mov ax,0x2000.
OFF = bytes.fromhex("ba0406 b80020 ef f4".replace(" ", ""))
#: The text has to be where the first instruction looks for it.
TEXT_AT = 0x1E


def boot_sector(text: bytes, end: bytes) -> bytes:
    code = (PRINT + end).ljust(TEXT_AT, b"\x90") + text + b"\0"
    return code.ljust(510, b"\0") + b"\x55\xaa"


XML = """\
<domain type='qemu'>
  <name>guest</name><memory unit='MiB'>64</memory>
  <os><type machine='q35'>hvm</type><boot dev='hd'/></os>
  <features><acpi/></features>
  <devices>
    <disk type='file'><driver type='raw'/><source file='{disk}'/><target dev='sda'/></disk>
    <serial type='pty'/>{devices}
  </devices>
</domain>
"""


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.getbasetemp() / "cache"
    return {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "XDG_CACHE_HOME": str(cache),
        "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent/bus",
        "TERM": "xterm",
    }


def write_guest(directory: Path, end: bytes, *, devices: str = "") -> Path:
    disk = directory / "disk.img"
    # SeaBIOS reads whole cylinders of small disks.
    disk.write_bytes(boot_sector(b"hello from the guest\r\n", end).ljust(1 << 20, b"\0"))
    path = directory / "guest.xml"
    path.write_text(XML.format(disk=disk, devices=devices))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sessionvirt", *map(str, arguments)]


def run(
    environment: dict[str, str], *arguments: object, check: int | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if check is not None:
        assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


# --- a guest that ends


def test_the_console_is_stdout_and_powering_off_is_success(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = run(environment, "run", "--quiet", write_guest(tmp_path, OFF), check=0)
    assert "hello from the guest" in done.stdout
    assert done.stderr == ""


def test_the_last_words_of_a_guest_are_not_lost(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """They are written a few instructions before the power goes."""
    guest = write_guest(tmp_path, OFF)
    reader, writer = os.pipe()
    with subprocess.Popen(
        command("run", "-q", guest), env=environment, stdin=subprocess.DEVNULL, stdout=writer
    ) as process:
        os.close(writer)
        with os.fdopen(reader, "rb") as output:
            assert b"hello from the guest" in output.read()
        assert process.wait() == 0


def test_time_is_up(tmp_path: Path, environment: dict[str, str]) -> None:
    # A processor that is halted with interrupts off does not see the power button.
    done = run(environment, "run", "--timeout", "0.2", write_guest(tmp_path, b"\xfa" + HALT))
    assert done.returncode == 124
    assert "0.2 s are up" in done.stderr


def test_what_is_not_understood_is_said_and_refused_if_strict(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    guest = write_guest(tmp_path, OFF, devices="<sound model='ac97'/>")
    done = run(environment, "run", guest, check=0)
    assert f"{guest}:7: not understood, has no effect: /domain/devices/sound" in done.stderr
    assert "sound" in run(environment, "run", "--strict", guest, check=2).stderr


# --- signals


@pytest.fixture
def halted(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A machine in the foreground that never ends by itself, whose guest has said hello."""
    with subprocess.Popen(
        command("run", "-v", write_guest(tmp_path, b"\xfa" + HALT)),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "hello" not in process.stdout.readline():
            assert process.poll() is None
        try:
            yield process
        finally:
            process.kill()


def qemu_of(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        (child,) = file.read().split()
    return int(child)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_second_signal_ends_it(
    halted: subprocess.Popen[str], number: signal.Signals, code: int
) -> None:
    assert halted.stderr is not None
    halted.send_signal(number)
    while "asking the guest to power down" not in halted.stderr.readline():
        pass
    halted.send_signal(number)
    assert halted.wait(30) == code


def test_a_qemu_that_is_killed_is_told(halted: subprocess.Popen[str]) -> None:
    os.kill(qemu_of(halted.pid), signal.SIGKILL)
    assert halted.wait(30) == 9
    assert halted.stderr is not None
    assert "QEMU was killed by SIGKILL" in halted.stderr.read()


def test_when_the_command_is_killed_so_is_qemu(halted: subprocess.Popen[str]) -> None:
    qemu = os.pidfd_open(qemu_of(halted.pid))
    halted.kill()
    try:
        assert select.select([qemu], [], [], 10)[0]
    finally:
        os.close(qemu)


# --- a terminal


#: In a session whose terminal it is, as a shell would make it.
ON_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def read_until(terminal: int, words: bytes) -> bytes:
    seen = b""
    while words not in seen:
        assert select.select([terminal], [], [], 30)[0], seen
        seen += os.read(terminal, 4096)
    return seen


def test_on_a_terminal_ctrl_c_is_ours_and_the_settings_come_back(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    guest = write_guest(tmp_path, b"\xfa" + HALT)
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *command("run", guest)],
        env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        try:
            read_until(ours, b"hello from the guest")
            assert not termios.tcgetattr(theirs)[3] & (termios.ICANON | termios.ECHO)
            assert os.getpgid(qemu_of(process.pid)) != os.getpgid(process.pid)
            os.write(ours, b"\x03")
            read_until(ours, b"asking the guest to power down")
            os.write(ours, b"\x03")
            read_until(ours, b"ending the machine")
            assert process.wait(30) == 130
            assert termios.tcgetattr(theirs) == before
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)


def test_a_terminal_that_is_closed_asks_the_guest_to_power_down(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """As where its window is closed: nobody can be told any more, and it ends all the same."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(button.boot_sector().ljust(1 << 20, b"\0"))
    guest = tmp_path / "guest.xml"
    guest.write_text(XML.format(disk=disk, devices=""))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *command("run", guest)],
        env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        try:
            os.close(theirs)
            read_until(ours, button.RUNNING.encode())
            os.close(ours)
            # The guest has done as it was asked: nothing waited for the ten seconds' patience.
            assert process.wait(8) == 128 + signal.SIGHUP
        finally:
            process.kill()


# --- without a guest


def test_a_plan_changes_nothing_and_has_a_command_line(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    guest = write_guest(tmp_path, OFF)
    done = run(environment, "plan", guest, check=0)
    assert "would start without a question" in done.stdout
    assert "Nothing on this host changes" in done.stdout
    plan = json.loads(run(environment, "plan", "--json", guest, check=0).stdout)
    assert set(plan) == {
        "version", "vm", "verdict", "action", "prompt", "requests", "steps", "remarks", "command",
    }  # fmt: skip
    assert plan["remarks"] == []
    assert (plan["version"], plan["vm"], plan["verdict"]) == (1, "guest", "yes")
    assert plan["command"][0].endswith("qemu-system-x86_64")
    dry = run(environment, "run", "--dry-run", guest, check=0)
    assert dry.stdout == done.stdout


LAN = "<interface type='network'><source network='default'/></interface>"


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_what_cannot_start_is_found_before_anybody_is_asked(
    tmp_path: Path, environment: dict[str, str], verb: str
) -> None:
    """There is no bus here: to have asked would be exit status 8."""
    guest = write_guest(tmp_path, OFF, devices=LAN)
    text = guest.read_text()
    guest.write_text(text.replace("<features>", "<cpu><model>i4004</model></cpu><features>"))
    done = run(environment, verb, guest, check=2)
    assert "has no CPU model 'i4004'" in done.stderr
    guest.write_text(text)
    (tmp_path / "disk.img").unlink()
    done = run(environment, verb, guest, check=3)
    assert f"{guest}:6: /domain/devices/disk/source/@file: cannot use {tmp_path}" in done.stderr
    assert "there is no such file" in done.stderr


def test_a_passt_that_fails_is_told(
    tmp_path: Path, environment: dict[str, str], outside: Outside
) -> None:
    """Without a default route, a version or user namespaces it would not even be tried."""
    passt = tmp_path / "bin/passt"
    passt.parent.mkdir()
    passt.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec echo passt 2026\n'
        "echo No routable interface >&2; exit 3\n"
    )
    unshare = passt.with_name("unshare")
    unshare.write_text("#!/bin/sh\n")
    for program in (passt, unshare):
        program.chmod(0o755)
    environment["PATH"] = f"{passt.parent}:{environment['PATH']}"
    guest = write_guest(tmp_path, b"\xfa" + HALT, devices="<interface type='user'/>")
    done = run(environment, "run", guest, check=1)
    assert f"{passt} exited with status 3" in done.stderr
    assert "No routable interface" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "/nonexistent.xml"), 3, "cannot be read"),
        (("run",), 2, "nothing to boot from"),
        (("run", "--network", "default", "--kernel", "/dev/null"), 8, "cannot connect"),
        (("networks",), 8, "what to do: install"),
        (("leases", "--json"), 8, "cannot connect to the system bus"),
        (("plan", "--bridge", "br0", "--kernel", "/dev/null"), 8, "cannot connect"),
        (("run", "--memory", "-1"), 2, "less than 1"),
        (("run", "--memory", "1g"), 2, "'1g' is not a whole number"),
        (("run", "--timeout", "soon"), 2, "'soon' is not a number of seconds"),
        (("run", "--frobnicate"), 2, "unrecognized"),
        ((), 2, "VERB"),
    ],
)
def test_what_goes_wrong_has_its_exit_status(
    environment: dict[str, str], arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = run(environment, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_broken_xml_names_file_and_line(tmp_path: Path, environment: dict[str, str]) -> None:
    broken = tmp_path / "broken.xml"
    broken.write_text("<domain type='kvm'>\n<name>a</label>\n</domain>")
    done = run(environment, "run", broken, check=2)
    assert f"{broken}" in done.stderr
    assert "2" in done.stderr


def test_doctor_works_without_a_broker(environment: dict[str, str]) -> None:
    report = json.loads(run(environment, "doctor", "--json", check=0).stdout)
    assert (report["version"], report["broker"]) == (1, None)
    levels = {check["name"]: check["level"] for check in report["checks"]}
    assert levels["qemu"] == "ok"
    assert levels["broker"] == "warning"
    isolated = any(Path("/sys/kernel/iommu_groups").glob("*"))
    assert levels["iommu"] == ("ok" if isolated else "warning")
    text = run(environment, "doctor", check=0).stdout
    assert "\x1b" not in text
    assert "0 problems" in text


def test_no_room_for_the_output_is_told(environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("doctor", "--json"), env=environment, stdout=full, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_not_open(
    tmp_path: Path, environment: dict[str, str], closed: str
) -> None:
    """What QEMU gets for its console and its monitor is not taken for a stream of ours."""
    line = f"exec {shlex.join(command('run', '-q', write_guest(tmp_path, OFF)))} {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_reader_that_leaves_early_is_no_traceback(environment: dict[str, str]) -> None:
    """It has left before there is anything to read, so that it cannot be too late."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            command("doctor"), env=environment, stdout=writer, stderr=subprocess.PIPE,
            text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")

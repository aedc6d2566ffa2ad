# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt networks NAME``, on a pipe and on a terminal, and its files."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.bus

SOURCE: Final = Path(__file__).resolve().parents[2] / "src"
COMMAND: Final = (sys.executable, "-m", "sessionvirt", "networks")
ENTER, LEAVE = b"\x1b[?1049h\x1b[?7l\x1b[?25l", b"\x1b[?25h\x1b[?7h\x1b[?1049l"
HOME: Final = b"\x1b[H"
XML: Final = (
    "<network><name>Home Net</name><forward mode='nat'/>"
    "<ip address='192.168.122.1' netmask='255.255.255.0'/></network>"
)


def environment(address: str) -> dict[str, str]:
    path = os.pathsep.join((str(SOURCE), os.environ.get("PYTHONPATH", "")))
    names = {"PYTHONPATH": path, "DBUS_SYSTEM_BUS_ADDRESS": address, "TZ": "UTC"}
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**plain, **names, "TERM": "xterm", "NO_COLOR": "1"}


def run(
    address: str, *arguments: str, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(address),
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def test_a_network_and_who_is_on_it(broker: Callable[[str], str]) -> None:
    address = broker("ok")
    done = run(address, "default")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "default: managed network, nat, up"
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("  guest"))
    assert re.fullmatch(r"  guest  \S+ +2023-11-14 22:13:20  -   -    mac 3", row)
    assert "    svt0123 52:54:00:01:02:03 10.213.80.9" in done.stdout
    report = json.loads(run(address, "default", "--json").stdout)
    assert (report["version"], report["networks"][0]["others"]) == (1, None)
    (interface,) = report["networks"][0]["interfaces"]
    assert interface["rates"] is None
    assert interface["drops"] == {"mac": 3, "arp": 0}


def test_a_name_that_is_not_there(broker: Callable[[str], str]) -> None:
    address = broker("names")
    done = run(address, "gone", "--json")
    assert (done.returncode, done.stdout) == (3, "")
    assert "there are: default, two\\nlines, \\x1b[2J, two words, br0" in done.stderr
    assert run(address, "gone", "--watch").returncode == 3
    shown = run(address, "\x1b[2J").stdout
    assert shown.startswith("\\x1b[2J: managed network")


def test_a_network_that_is_called_import(broker: Callable[[str], str], tmp_path: Path) -> None:
    """One word is a name, two are about a file."""
    address = broker("import")
    assert run(address, "import").stdout.startswith("import: managed network")
    assert "<name>import</name>" in run(address, "export", "import").stdout
    file = tmp_path / "net.xml"
    file.write_text(XML)
    done = run(address, "import", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert tomllib.loads(done.stdout) == {
        "network": {"home_net": {"mode": "nat", "ipv4": "192.168.122.1/24"}}
    }


def test_an_import_does_not_ask_the_broker(tmp_path: Path) -> None:
    nobody = f"unix:path={tmp_path}/nothing"
    done = run(nobody, "import", "-", stdin=XML)
    assert "[network.home_net]" in done.stdout
    done = run(nobody, "import", "-", stdin="<domain/>")
    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input:1" in done.stderr
    assert run(nobody, "import", str(tmp_path / "none.xml")).returncode == 3
    assert run(nobody, "export", "default").returncode == 8


def test_an_export(broker: Callable[[str], str]) -> None:
    address = broker("ok")
    done = run(address, "export", "default")
    assert (done.returncode, done.stderr) == (0, "")
    assert "<ip family='ipv4' address='10.9.0.1' prefix='24'/>" in done.stdout
    done = run(address, "export", "gone")
    assert (done.returncode, done.stdout) == (3, "")
    assert "there are: default" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("default", "lab"),
        ("import", "x.xml", "--json"),
        ("import", "x.xml", "--watch"),
        ("export", "default", "--names", "network"),
        ("default", "--names", "network"),
        ("--watch", "--names", "network"),
        ("import", "a.xml", "b.xml"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(f"unix:path={tmp_path}/nothing", *arguments)
    assert (done.returncode, done.stdout) == (2, "")


# -- one look after the other ----------------------------------------------------------------------


def test_each_look_is_a_line_of_json(broker: Callable[[str], str]) -> None:
    command = [*COMMAND, "default", "--watch", "--json"]
    with subprocess.Popen(
        command, env=environment(broker("ok")), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert [look["networks"][0]["name"] for look in looks] == ["default", "default"]
    assert looks[0]["time"] <= looks[1]["time"]


def test_a_reader_that_has_seen_enough_ends_it(broker: Callable[[str], str]) -> None:
    with subprocess.Popen(
        [*COMMAND, "--watch"],
        env=environment(broker("ok")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""


class Window:
    """A terminal of a size, what was shown in it, and the command in a session of its own."""

    def __init__(self, ours: int, theirs: int, process: subprocess.Popen[bytes]) -> None:
        self._ours, self._theirs = ours, theirs
        self.process = process
        self.shown = b""

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def until(self, words: bytes, after: int = 0) -> None:
        deadline = time.monotonic() + 30
        while words not in self.shown[after:]:
            left = max(deadline - time.monotonic(), 0)
            assert select.select([self._ours], [], [], left)[0], self.shown
            assert left, self.shown
            self.shown += os.read(self._ours, 4096)

    def frame(self) -> list[str]:
        """The next whole frame, a string a line, without what clears."""
        begin = len(self.shown)
        self.until(HOME, begin)
        begin = self.shown.index(HOME, begin)
        self.until(b"\x1b[J", begin)
        text = self.shown[begin:].partition(HOME)[2].partition(b"\x1b[J")[0].decode()
        return text.replace("\x1b[K", "").split("\r\n")

    def resize(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, size)

    def echoes(self) -> bool:
        local = termios.tcgetattr(self._theirs)[3]
        return bool(local & termios.ECHO and local & termios.ICANON)


@contextmanager
def window(address: str, *arguments: str, columns: int = 120, lines: int = 40) -> Iterator[Window]:
    ours, theirs = pty.openpty()
    variables = environment(address)
    for name in ("COLUMNS", "LINES"):
        variables.pop(name, None)
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        with subprocess.Popen(
            ["setsid", "--ctty", *COMMAND, *arguments],
            env=variables, stdin=theirs, stdout=theirs, stderr=theirs,
        ) as process:  # fmt: skip
            try:
                yield Window(ours, theirs, process)
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_screen_is_drawn_and_left_as_it_was(broker: Callable[[str], str]) -> None:
    with window(broker("ok"), "default", "--watch") as one:
        one.until(ENTER)
        frame = one.frame()
        assert frame[1] == "default: managed network, nat, up"
        assert frame[-1] == "q or ^C ends it"
        assert not one.echoes()
        one.press(b"xq")
        one.until(LEAVE)
        assert one.process.wait(30) == 0
        assert one.echoes()
    assert one.shown.count(ENTER) == one.shown.count(LEAVE) == 1


def test_the_screen_follows_the_size_of_the_window(broker: Callable[[str], str]) -> None:
    with window(broker("ok"), "--watch") as one:
        wide = one.frame()
        assert any("VM" in line for line in wide)
        one.resize(30, 40)
        one.frame()
        narrow = one.frame()
        assert max(map(len, narrow)) <= 30
        assert any("guest (" in line for line in narrow)
        one.resize(30, 6)
        one.frame()
        low = one.frame()
        assert len(low) == 6
        assert re.fullmatch(r"\.\.\. and \d+ lines more", low[-2])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_terminal_as_it_was(
    broker: Callable[[str], str], number: signal.Signals, code: int
) -> None:
    with window(broker("ok"), "--watch") as one:
        one.frame()
        if number is signal.SIGINT:
            one.press(b"\x03")
        else:
            one.process.send_signal(number)
        one.until(LEAVE)
        assert one.process.wait(30) == code
        assert one.echoes()


@pytest.mark.parametrize("how", ["q", "SIGTERM"])
def test_a_broker_that_does_not_answer_is_not_waited_for(
    broker: Callable[[str], str], how: str
) -> None:
    """It answered the first look, and half of the second, which is the first on the screen."""
    with window(broker("mute=3"), "--watch") as one:
        one.until(ENTER)
        if how == "q":
            one.press(b"q")
        else:
            one.process.send_signal(signal.SIGTERM)
        one.until(LEAVE)
        assert one.process.wait(30) == (0 if how == "q" else 143)
        assert one.echoes()


def test_an_error_is_said_on_the_screen_that_was_there(
    broker: Callable[[str], str],
) -> None:
    """The broker goes away between two looks."""
    with window(broker("looks=4"), "--watch") as one:
        one.until(LEAVE)
        one.until(b"what to do:")
        assert one.process.wait(30) == 8
        assert one.echoes()
    assert one.shown.index(LEAVE) < one.shown.index(b"sessionvirt:")

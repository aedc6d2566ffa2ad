# SPDX-License-Identifier: LGPL-2.1-or-later
"""What bash, zsh and fish offer after ``sessionvirt``: all that the command takes, and nothing that
a name could do.

The shells are the real ones. The command on their PATH is a fake: it answers ``networks --names``
from a file and writes down how else it was called.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import select
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import termios
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from sessionvirt.cli.arguments import parser
from sessionvirt.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.unit

ROOT: Final = Path(__file__).resolve().parents[2]
BASH_COMPLETION: Final = Path("/usr/share/bash-completion/bash_completion")
SHELLS: Final = ("bash", "bash-completion", "zsh", "fish")

#: Each creates the file "pwned" where a shell runs it, or becomes another word where it expands it.
HOSTILE: Final = (
    "$(touch pwned)",
    "`touch pwned`",
    "x;touch pwned",
    "x|touch pwned",
    "x>pwned",
    "${x:=$(touch pwned)}",
    "$((a[$(touch pwned)]))",
    "x'$(touch pwned)'",
    'x"$(touch pwned)"',
    "x\\$(touch pwned)",
    "{a,b}",
    "x\\",
    "*",
    "two words",
    "x=y:z",
    "!!",
    "#x",
    "x[1]",
    "a:b[c]",
)

FAKE: Final = """\
#!/bin/sh
if [ "$1" = networks ]; then
    echo "$*" >>"$HOME/asked"
    cat "$HOME/names-$3"
    echo "an error text" >&2
    exit 8
fi
for each; do printf '%s\\0' "$each"; done >"$HOME/called"
echo "the command"" was called"
"""


class Place:
    """An empty directory; beside it the fake, and the completions as a package has them."""

    def __init__(self, directory: Path) -> None:
        self.home = directory
        self.path = directory / "place"
        self.share = directory / "share"
        bin_directory = directory / "bin"
        for each in (self.path, bin_directory):
            each.mkdir()
        fake = bin_directory / "sessionvirt"
        fake.write_text(FAKE)
        fake.chmod(0o755)
        for source, target in table().items():
            path = directory / target
            path.parent.mkdir(parents=True)
            shutil.copyfile(ROOT / source, path)
        self.environment = {
            "PATH": f"{bin_directory}:/usr/bin:/bin",
            "HOME": str(directory),
            "ZDOTDIR": str(directory),
            "XDG_DATA_DIRS": str(self.share),
            "LC_ALL": "C.UTF-8",
            "TERM": "xterm",
        }
        self.names()

    def names(self, *, network: Sequence[str] = (), bridge: Sequence[str] = ()) -> None:
        """Say what the fake answers."""
        for kind, names in (("network", network), ("bridge", bridge)):
            (self.home / f"names-{kind}").write_text("".join(f"{name}\n" for name in names))

    def called(self) -> list[str]:
        """Return the arguments that the fake was called with."""
        return (self.home / "called").read_bytes().decode().split("\0")[:-1]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def table() -> dict[str, str]:
    """The rows of pyproject.toml that are completions."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    rows: dict[str, str] = wheel["shared-data"]
    return {source: to for source, to in rows.items() if source.startswith("completions/")}


def need(shell: str) -> None:
    """Skip where a shell is missing; a run of CI has them all."""
    there = BASH_COMPLETION.exists() if shell == "bash-completion" else shutil.which(shell)
    if not there:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{shell} is not installed", pytrace=False)
        pytest.skip(f"{shell} is not installed; ./dev test installs it")


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    need(name)
    return name


# A shell at a terminal


class Terminal:
    """An interactive shell at a terminal of its own."""

    def __init__(self, shell: str, place: Place) -> None:
        self.seen = b""
        self._unread = b""
        self._ours, theirs = pty.openpty()
        # So large that no shell asks whether to show so many.
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 100, 300, 0, 0))
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *argv(shell, place)],
            env=place.environment,
            cwd=place.path,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.wait(b"ready>")

    def wait(self, text: bytes) -> None:
        """Read until *text* has come; what comes after it is left."""
        deadline = time.monotonic() + 30
        got = self._unread
        while text not in got:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._ours], [], [], left)[0]:
                pytest.fail(f"no {text!r} in {got!r}", pytrace=False)
            try:
                got += os.read(self._ours, 65536)
            except OSError:
                pytest.fail(f"the shell ended: {got!r}", pytrace=False)
        before, _, self._unread = got.partition(text)
        self.seen += before

    def enter(self, keys: str, until: bytes) -> None:
        """Press keys and Enter; wait for what is said then, and for the next prompt.

        Before the prompt the terminal itself would take a ^U that is meant for the shell.
        """
        os.write(self._ours, keys.encode() + b"\r")
        self.wait(until)
        self.wait(b"ready>")

    def press_tab_after(self, line: str, times: int = 1) -> None:
        """Type a line and TABs, and throw the line away once that is done."""
        tabs = "\t" * times
        self.enter(f'{line}{tabs}\x15echo "all"" done"', b"all done")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


def argv(shell: str, place: Place) -> list[str]:
    """How to start a shell whose prompt is ``ready>``, with the completions found."""
    if shell == "zsh":
        (place.home / ".zshrc").write_text(
            ZSHRC.format(directory=place.share / "zsh/vendor-completions")
        )
        return ["zsh", "-d", "-i"]
    bashrc = BASH_COMPLETION
    if shell == "bash":
        bashrc = place.share / "bash-completion/completions/sessionvirt"
    (place.home / "rc").write_text(f"PS1='ready>'\nsource {bashrc}\n")
    return ["bash", "--noprofile", "--rcfile", str(place.home / "rc"), "-i"]


#: Everything that is offered is written to a file, too: a terminal shows it in columns.
ZSHRC: Final = """\
PS1='ready>'
fpath=({directory} $fpath)
autoload -Uz compinit
compinit -u -D
compadd() {{
  if [[ ${{@[1,(i)(-|--)]}} == *-(O|A|D)\\ * ]]; then
    builtin compadd "$@"
    return
  fi
  local -a hits
  builtin compadd -A hits "$@"
  (( $#hits )) && print -rl -- "${{hits[@]}}" >>~/offered
  builtin compadd "$@"
}}
"""


@contextlib.contextmanager
def terminal(shell: str, place: Place) -> Iterator[Terminal]:
    one = Terminal(shell, place)
    try:
        yield one
    finally:
        one.close()


# What is asked of a shell


def fish(place: Place, script: str, *arguments: str) -> str:
    return subprocess.run(
        ["fish", "-c", script, *arguments],
        env=place.environment,
        cwd=place.path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def offers(shell: str, place: Place, lines: Sequence[str]) -> list[set[str]]:
    """Return what a shell offers for the last word of each line.

    Where it is a file, this is the file ``disk.img`` alone, which is there for it.
    """
    (place.path / "disk.img").touch()
    if shell == "zsh":
        return zsh_offers(place, lines)
    if shell == "fish":
        script = "for line in $argv; complete -C $line; echo =====; end"
        said = fish(place, script, *lines)
        # The word, a tab, the description.
        words = [line.partition("\t")[0] for line in said.splitlines()]
    else:
        words = bash_offers(shell, place, lines).splitlines()
    found: list[set[str]] = [set()]
    for word in words:
        if word == "=====":
            found.append(set())
        else:
            found[-1].add(word)
    return found[:-1]


def bash_offers(shell: str, place: Place, lines: Sequence[str]) -> str:
    """Call the function as readline does; compopt works below readline alone."""
    script = ""
    if shell == "bash-completion":
        script = f"source {BASH_COMPLETION}\n_completion_loader sessionvirt\n"
    script += f"source {place.share}/bash-completion/completions/sessionvirt\n"
    script += 'compopt() { [[ "$*" == "-o default" ]] && COMPREPLY+=(disk.img); }\n'
    for line in lines:
        words = line.split(" ")
        script += f"COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1} COMPREPLY=()\n"
        script += f"_sessionvirt {shlex.join([words[0], words[-1], words[-2]])}\n"
        script += 'printf "%s\\n" "${COMPREPLY[@]}" | grep . ; echo =====\n'
    return subprocess.run(
        ["bash", "--noprofile", "--norc"],
        input=script,
        env=place.environment,
        cwd=place.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def zsh_offers(place: Place, lines: Sequence[str]) -> list[set[str]]:
    found = []
    with terminal("zsh", place) as one:
        for line in lines:
            (place.home / "offered").write_text("")
            one.press_tab_after(line)
            found.append(set((place.home / "offered").read_text().splitlines()))
    return found


def run(shell: str, place: Place, line: str) -> list[str]:
    """Type a line, TAB and Enter, and return what the command was called with."""
    if shell == "fish":
        (found,) = fish(place, "complete --escape -C $argv[1]", line).splitlines()
        before, space, _ = line.rpartition(" ")
        fish(place, "eval $argv[1]", before + space + found.partition("\t")[0])
        return place.called()
    with terminal(shell, place) as one:
        one.enter(f"{line}\t", b"the command was called")
    return place.called()


# The command


def verbs() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def options(one: argparse.ArgumentParser) -> set[str]:
    return {option for action in one._actions for option in action.option_strings}


def values(action: argparse.Action) -> set[str]:
    """What can be offered for the value of an option, or for an argument."""
    if action.dest == "network":
        return {"user", "none", "home", "lab"}
    if action.dest == "bridge":
        return {"br0"}
    if action.choices is not None:
        return {str(choice) for choice in action.choices}
    return {"disk.img"} if action.metavar in ("FILE", "GUEST") else set()


def test_every_verb_and_option_is_offered(shell: str, place: Place) -> None:
    lines = ["sessionvirt ", "sessionvirt -", *(f"sessionvirt {verb} -" for verb in verbs())]
    wanted = [set(verbs()), options(parser()), *map(options, verbs().values())]
    found = offers(shell, place, lines)
    # bash's users do not mind options among the verbs.
    found[0] = {word for word in found[0] if not word.startswith("-")}
    assert dict(zip(lines, found, strict=True)) == dict(zip(lines, wanted, strict=True))


def test_every_value_is_offered_and_nothing_else(shell: str, place: Place) -> None:
    place.names(network=["home", "lab"], bridge=["br0"])
    wanted = {}
    for verb, one in verbs().items():
        for action in one._actions:
            takes_value = action.nargs != 0
            for option in action.option_strings if takes_value else ():
                wanted[f"sessionvirt {verb} {option} "] = values(action)
        arguments = [action for action in one._actions if not action.option_strings]
        wanted[f"sessionvirt {verb} "] = values(arguments[0]) if arguments else set()
    found = offers(shell, place, list(wanted))
    found = [{word for word in words if not word.startswith("-")} for words in found]
    assert dict(zip(wanted, found, strict=True)) == wanted


def test_a_word_that_was_begun(shell: str, place: Place) -> None:
    lines = {
        "sessionvirt ru": {"run"},
        "sessionvirt run --net": {"--network"},
        "sessionvirt run --network u": {"user"},
        "sessionvirt run --network user --ke": {"--kernel"},
        "sessionvirt plan --timeou": set(),
        "sessionvirt run -- --net": set(),
        "sessionvirt nothing ": set(),
    }
    found = offers(shell, place, list(lines))
    found[5] -= {"disk.img"}  # bash leaves the choice among the files to readline
    assert dict(zip(lines, found, strict=True)) == lines


def test_a_value_after_an_equals_sign(shell: str, place: Place) -> None:
    place.names(network=["home"])
    assert run(shell, place, "sessionvirt run --network=h") == ["run", "--network=home"]


@pytest.mark.parametrize("name", ["guest.xml", "two words.img", "$(touch pwned).qcow2"])
def test_a_file(shell: str, place: Place, name: str) -> None:
    (place.path / "files").mkdir()
    (place.path / "files" / name).touch()
    assert run(shell, place, "sessionvirt run files/") == ["run", f"files/{name}"]
    assert run(shell, place, "sessionvirt plan --kernel files/")[2] == f"files/{name}"
    assert not (place.path / "pwned").exists()


# Names are data


def test_a_hostile_name_is_offered_as_it_is_and_runs_nothing(shell: str, place: Place) -> None:
    """Each is the only bridge: TAB puts it onto the line, and Enter gives it to the command."""
    if shell == "fish":
        found = []
        for name in HOSTILE:
            place.names(bridge=[name])
            found.append(run(shell, place, "sessionvirt run --bridge "))
    else:
        found = []
        with terminal(shell, place) as one:
            for name in HOSTILE:
                place.names(bridge=[name])
                one.enter("sessionvirt run --bridge \t", b"the command was called")
                found.append(place.called())
    assert found == [["run", "--bridge", name] for name in HOSTILE]
    assert not (place.path / "pwned").exists()


def test_hostile_names_are_listed_and_run_nothing(shell: str, place: Place) -> None:
    place.names(network=HOSTILE)
    if shell == "fish":
        said = fish(place, "complete -C 'sessionvirt run --network '")
        assert "two words" in said
    else:
        with terminal(shell, place) as one:
            one.press_tab_after("sessionvirt run --network ", times=3)
            assert b"touch" in one.seen
    assert not (place.path / "pwned").exists()


@pytest.mark.parametrize("shell", [name for name in SHELLS if name != "fish"])
def test_a_name_does_not_reach_the_terminal_as_a_control(shell: str, place: Place) -> None:
    need(shell)
    place.names(network=["one\x1b]0;title\x07", "other\x1b[2J"])
    with terminal(shell, place) as one:
        one.press_tab_after("sessionvirt run --network ", times=2)
    assert b"title" in one.seen
    assert b"\x1b]0;title" not in one.seen
    assert b"\x1b[2J" not in one.seen.partition(b"title")[2]


def test_what_the_command_says_of_an_error_is_not_seen(shell: str, place: Place) -> None:
    """No broker: what needs none is offered."""
    if shell == "fish":
        said = fish(place, "complete -C 'sessionvirt run --network '")
    else:
        with terminal(shell, place) as one:
            one.press_tab_after("sessionvirt run --network ", times=2)
        said = one.seen.decode()
    assert "user" in said
    assert "none" in said
    assert "an error text" not in said
    assert (place.home / "asked").read_text().splitlines()[0] == "networks --names network"


# Where they are, and what they ask


def test_they_are_where_the_shells_of_debian_look() -> None:
    need("zsh")
    need("fish")
    need("bash-completion")
    directories = {source: f"/usr/{Path(to).parent}" for source, to in table().items()}
    zsh = subprocess.check_output(["zsh", "-fc", "print -l $fpath"], text=True).splitlines()
    assert directories["completions/zsh/_sessionvirt"] in zsh
    script = "string join \\n $fish_complete_path"
    fish_path = subprocess.check_output(["fish", "-c", script], text=True).splitlines()
    assert directories["completions/fish/sessionvirt.fish"] in fish_path
    assert Path(directories["completions/bash/sessionvirt"]).is_dir()


def ask(bus: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """Ask the real command for names, on a bus."""
    environment = os.environ | {
        "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))),
    }
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "sessionvirt", "networks", "--names", "network"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, time.monotonic() - begin


def test_without_a_bus_there_are_no_names(tmp_path: Path) -> None:
    done, _ = ask(tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (BrokerUnavailableError.exit_status, "")


@pytest.mark.parametrize("backlog", [5, 0], ids=["silent", "full"])
def test_a_bus_that_does_not_answer_is_not_waited_for(tmp_path: Path, backlog: int) -> None:
    """It is there, and accepts nobody; or not even has room for one more to be accepted."""
    path = tmp_path / "bus"
    with socket.socket(socket.AF_UNIX) as bus, socket.socket(socket.AF_UNIX) as first:
        bus.bind(str(path))
        bus.listen(backlog)
        first.connect(str(path))
        done, seconds = ask(path)
    assert (done.returncode, done.stdout) == (BrokerUnavailableError.exit_status, "")
    assert "Traceback" not in done.stderr
    assert seconds < 20

# SPDX-License-Identifier: LGPL-2.1-or-later
"""bash, zsh and fish as a person has them: at a terminal, with the completions where a package puts
them.

The command on their PATH is a fake: it answers ``networks --names`` and ``devices --names`` from
files, complains, and writes down how else it was called.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shlex
import shutil
import struct
import subprocess
import termios
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from lab.stage import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["BASH_COMPLETION", "SHELLS", "Place", "fish", "offers", "run", "table", "terminal"]

#: bash, with nothing but the file itself, and with bash-completion, which loads it.
SHELLS: Final = ("bash", "bash-completion", "zsh", "fish")
BASH_COMPLETION: Final = Path("/usr/share/bash-completion/bash_completion")

FAKE: Final = """\
#!/bin/sh
if [ "$2" = --names ]; then
    echo "$*" >>"$HOME/asked"
    cat "$HOME/names-${3:-$1}"
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

    def names(
        self,
        *,
        network: Sequence[str] = (),
        bridge: Sequence[str] = (),
        devices: Sequence[str] = (),
    ) -> None:
        """Say what the fake answers."""
        for kind, names in (("network", network), ("bridge", bridge), ("devices", devices)):
            (self.home / f"names-{kind}").write_text("".join(f"{name}\n" for name in names))

    def called(self) -> list[str]:
        """Return the arguments that the fake was called with."""
        return (self.home / "called").read_bytes().decode().split("\0")[:-1]


def table() -> dict[str, str]:
    """The rows of pyproject.toml that are completions."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    rows: dict[str, str] = wheel["shared-data"]
    return {source: to for source, to in rows.items() if source.startswith("completions/")}


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

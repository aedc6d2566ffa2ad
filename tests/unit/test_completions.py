# SPDX-License-Identifier: LGPL-2.1-or-later
"""What bash, zsh and fish offer after ``sessionvirt``: all that the command takes, and nothing that
a name could do.

The shells are the real ones, the command on their PATH is a fake (``lab/shells.py``).
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from lab.shells import BASH_COMPLETION, SHELLS, Place, fish, offers, run, table, terminal
from lab.stage import ROOT
from sessionvirt.cli.arguments import parser
from sessionvirt.errors import BrokerUnavailableError

pytestmark = pytest.mark.unit

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


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


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


# The command


def verbs() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def options(one: argparse.ArgumentParser) -> set[str]:
    return {option for action in one._actions for option in action.option_strings}


def values(action: argparse.Action) -> set[str]:
    """What can be offered for the value of an option, or for an argument."""
    if action.dest == "which":
        return {"home", "lab", "br0", "import", "export"}
    if action.dest == "network":
        return {"user", "none", "home", "lab"}
    if action.dest == "bridge":
        return {"br0"}
    if action.dest == "pci":
        return {"0000:03:00.0", "0000:03:00.1"}
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
    devices = ["0000:03:00.0", "0000:03:00.1"]
    place.names(network=["home", "lab"], bridge=["br0"], devices=devices)
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


@pytest.mark.parametrize("begun", ["", "00", "0000:", "0000:0", "0000:0a:", "0000:0a:1f."])
@pytest.mark.parametrize("option", ["--pci ", "--pci="])
def test_an_address_in_the_middle_of_which_words_end(
    shell: str, place: Place, option: str, begun: str
) -> None:
    """They do to readline, at each colon."""
    place.names(devices=["0000:0a:1f.6"])
    line = f"sessionvirt run --network none {option}{begun}"
    wanted = ["run", "--network", "none", *f"{option}0000:0a:1f.6".split(" ")]
    assert run(shell, place, line) == wanted


def test_what_comes_after_import_and_export(shell: str, place: Place) -> None:
    place.names(network=["home", "lab"], bridge=["br0"])
    (place.path / "net.xml").touch()
    lines = {
        "sessionvirt networks e": {"export"},
        "sessionvirt networks export ": {"home", "lab", "br0"},
        "sessionvirt networks --json export l": {"lab"},
        "sessionvirt networks home ": set(),
        "sessionvirt networks export home ": set(),
    }
    found = offers(shell, place, list(lines))
    found = [{word for word in words if not word.startswith("-")} for words in found]
    assert dict(zip(lines, found, strict=True)) == lines
    assert run(shell, place, "sessionvirt networks import net") == ["networks", "import", "net.xml"]


def test_two_addresses(shell: str, place: Place) -> None:
    place.names(devices=["0000:0a:1f.6"])
    line = "sessionvirt run --pci 0000:03:00.0 --pci 0000:0a"
    assert run(shell, place, line)[1:] == ["--pci", "0000:03:00.0", "--pci", "0000:0a:1f.6"]


@pytest.mark.parametrize("name", ["guest.xml", "two words.img", "$(touch pwned).qcow2"])
def test_a_file(shell: str, place: Place, name: str) -> None:
    (place.path / "files").mkdir()
    (place.path / "files" / name).touch()
    assert run(shell, place, "sessionvirt run files/") == ["run", f"files/{name}"]
    assert run(shell, place, "sessionvirt plan --kernel files/")[2] == f"files/{name}"
    assert not (place.path / "pwned").exists()


# Names are data


def test_a_name_that_would_be_a_home_directory(shell: str, place: Place) -> None:
    """It is escaped, or, by fish, which would not do that, not offered."""
    place.names(bridge=["~root"])
    if shell == "fish":
        assert fish(place, "complete --escape -C 'sessionvirt run --bridge '") == ""
    else:
        assert run(shell, place, "sessionvirt run --bridge ") == ["run", "--bridge", "~root"]


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

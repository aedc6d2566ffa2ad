# SPDX-License-Identifier: LGPL-2.1-or-later
"""Children: what they inherit, how their end is seen, that they die with us."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sessionvirt.errors import LaunchError
from sessionvirt.qemu import process
from sessionvirt.qemu.process import STDERR_LIMIT, Child, describe_exit

pytestmark = pytest.mark.unit

SOURCE = Path(__file__).resolve().parents[2] / "src"


def shell(script: str, *arguments: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script, "sh", *arguments)


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -SEGV $$", -signal.SIGSEGV)],
)
def test_its_exit_status_is_seen(script: str, code: int, *, bound: bool) -> None:
    async def run() -> int:
        async with Child.spawn(shell(script), bound=bound) as child:
            assert await child.wait() == code
            return await child.wait()

    assert asyncio.run(run()) == code


def test_the_tail_of_stderr_is_kept_and_bounded() -> None:
    async def run() -> str:
        script = "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo last words >&2"
        async with Child.spawn(shell(script)) as child:
            await child.wait()
            return child.stderr

    text = asyncio.run(run())
    assert len(text) == STDERR_LIMIT
    assert text.endswith("xlast words\n")


def test_a_grandchild_that_keeps_stderr_open_does_not_hold_us_up() -> None:
    async def run() -> str:
        # The grandchild ends when the pipe on its stdin does, which is ours.
        reader, writer = os.pipe()
        try:
            argv = shell("echo one >&2; (read line) & exit 0")
            async with Child.spawn(argv, stdin=reader) as child, asyncio.timeout(20):
                await child.wait()
                return child.stderr
        finally:
            os.close(reader)
            os.close(writer)

    assert asyncio.run(run()) == "one\n"


def test_it_inherits_what_is_named_and_a_constructed_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "not for children")

    async def run() -> str:
        kept, other = os.pipe()
        os.set_inheritable(other, True)  # noqa: FBT003 - positional only
        try:
            script = "test -e /proc/self/fd/$1 && ! test -e /proc/self/fd/$2 && env >&2"
            argv = shell(script, str(kept), str(other))
            environment = {"EXTRA": "yes"}
            async with Child.spawn(argv, pass_fds=(kept,), environment=environment) as child:
                assert await child.wait() == 0
                return child.stderr
        finally:
            os.close(kept)
            os.close(other)

    text = asyncio.run(run())
    assert "SECRET" not in text
    assert "EXTRA=yes" in text
    assert "LC_ALL=C.UTF-8" in text


def test_what_cannot_be_executed_names_itself() -> None:
    async def run() -> None:
        Child.spawn(("/nonexistent/qemu", "-S"), bound=False)

    with pytest.raises(LaunchError, match="cannot execute /nonexistent/qemu") as caught:
        asyncio.run(run())
    assert caught.value.command == ("/nonexistent/qemu", "-S")
    assert caught.value.exit_code is None


def test_leaving_the_context_kills_it() -> None:
    async def run() -> int | None:
        async with Child.spawn(("/bin/sleep", "1000")) as child:
            pass
        return child.returncode

    assert asyncio.run(run()) == -signal.SIGKILL


def test_one_that_ignores_sigterm_is_killed_after_a_while() -> None:
    async def run() -> int:
        reader, writer = os.pipe()
        script = "trap '' TERM; echo ready >/proc/self/fd/$1; exec sleep 1000"
        argv = shell(script, str(writer))
        async with Child.spawn(argv, pass_fds=(writer,)) as child:
            os.close(writer)
            # Ready when it says so: a signal before its trap would end it.
            with os.fdopen(reader) as lines:
                assert await asyncio.to_thread(lines.readline) == "ready\n"
            return await child.terminate(0.1)

    assert asyncio.run(run()) == -signal.SIGKILL


def test_its_own_group_is_out_of_reach_of_ours() -> None:
    async def run() -> tuple[int, int]:
        async with (
            Child.spawn(("/bin/sleep", "1000")) as ours,
            Child.spawn(("/bin/sleep", "1000"), own_group=True) as own,
        ):
            return os.getpgid(ours.pid), os.getpgid(own.pid) - own.pid

    assert asyncio.run(run()) == (os.getpgrp(), 0)


PARENT = """
import asyncio, os, sys
from sessionvirt.qemu.process import Child

async def main():
    child = Child.spawn(
        ("/bin/sleep", "1000"), bound=sys.argv[1] == "bound", held="held" in sys.argv
    )
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""


def start_parent(lifetime: str, *words: str) -> tuple[subprocess.Popen[str], int]:
    """Start a program that runs a child; returns it and a pidfd of the child."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, lifetime, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert parent.stdout is not None
    return parent, os.pidfd_open(int(parent.stdout.readline()))


async def ends(pidfd: int, patience: float) -> bool:
    """Whether a process ends in time."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(patience):
            await ended.wait()
    except TimeoutError:
        return False
    else:
        return True
    finally:
        loop.remove_reader(pidfd)


@pytest.mark.parametrize(("lifetime", "dies"), [("bound", True), ("detached", False)])
def test_a_bound_child_dies_with_a_killed_parent(lifetime: str, *, dies: bool) -> None:
    parent, pidfd = start_parent(lifetime)
    with parent:
        try:
            parent.kill()
            assert asyncio.run(ends(pidfd, 10 if dies else 0.5)) is dies
        finally:
            if not dies:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                assert asyncio.run(ends(pidfd, 10))
            os.close(pidfd)


def test_a_parent_that_is_gone_already_leaves_no_child() -> None:
    """What a parent's death between fork and prctl looks like to the check after it."""
    from sessionvirt.qemu.process import _before

    binding = list(_before(bound=True, gate=None))
    assert binding[-1] == str(os.getpid())
    binding[-1] = "1" if os.getpid() != 1 else "2"
    done = subprocess.run([*binding, "/bin/echo", "alive"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


# -- held back -------------------------------------------------------------------------------------

#: How a child is held: after setpriv, without it, and where it is missing.
WAYS = ("bound", "detached", "no setpriv")


@pytest.fixture(params=WAYS)
def bound(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "no setpriv":
        programs = {"sh": "/bin/sh"}
        monkeypatch.setattr(process, "find_program", programs.get)
    return str(request.param) != "detached"


def told(path: Path) -> tuple[str, ...]:
    """A program that leaves its pid and its limit of locked memory (KiB) in a file."""
    return shell('echo "$$ $(ulimit -l)" >"$1"', str(path))


def test_a_held_child_is_the_same_process_before_and_after(tmp_path: Path, *, bound: bool) -> None:
    """So a limit that is set in between is the program's."""
    path = tmp_path / "ran"

    async def run() -> int:
        async with Child.spawn(told(path), bound=bound, held=True) as child:
            _, hard = resource.prlimit(child.pid, resource.RLIMIT_MEMLOCK)
            resource.prlimit(child.pid, resource.RLIMIT_MEMLOCK, (48 << 10, hard))
            with child.duplicate_pidfd() as pidfd:
                assert not await ends(pidfd.fileno(), 0.3)
                assert not path.exists()
                child.release()
                child.release()
                assert await ends(pidfd.fileno(), 20)
            assert await child.wait() == 0
            child.release()
            return child.pid

    pid = asyncio.run(run())
    assert path.read_text() == f"{pid} 48\n"


def test_a_held_child_that_is_given_up_never_runs(tmp_path: Path, *, bound: bool) -> None:
    path = tmp_path / "ran"

    async def run() -> int | None:
        async with Child.spawn(told(path), bound=bound, held=True) as child:
            pass
        assert child._gate is not None
        assert child._gate.closed
        child.release()
        return child.returncode

    assert asyncio.run(run()) == -signal.SIGKILL
    assert not path.exists()


def test_a_held_child_ends_when_its_pipe_is_closed(tmp_path: Path, *, bound: bool) -> None:
    """As it is when we die, however we do."""
    path = tmp_path / "ran"

    async def run() -> int:
        async with Child.spawn(told(path), bound=bound, held=True) as child:
            assert child._gate is not None
            child._gate.close()
            return await child.wait()

    assert asyncio.run(run()) not in (0, -signal.SIGKILL)
    assert not path.exists()


def test_a_held_child_has_the_descriptors_that_are_named(*, bound: bool) -> None:
    """And the end of a pipe at which nobody writes."""

    async def run() -> tuple[set[str], str]:
        kept, other = os.pipe()
        try:
            # The shell has the directory open while it looks.
            script = (
                'for fd in /proc/$$/fd/*; do test -e $fd && all="$all $fd"; done; echo $all >&2'
            )
            argv = shell(script)
            async with Child.spawn(argv, pass_fds=(kept,), bound=bound, held=True) as child:
                child.release()
                assert await child.wait() == 0
                return {path.rpartition("/")[2] for path in child.stderr.split()}, str(kept)
        finally:
            os.close(kept)
            os.close(other)

    numbers, kept = asyncio.run(run())
    assert {"0", "1", "2", kept} < numbers
    assert len(numbers) == 5


@pytest.mark.parametrize("lifetime", ["bound", "detached"])
def test_a_held_child_dies_with_a_killed_parent(lifetime: str) -> None:
    parent, pidfd = start_parent(lifetime, "held")
    with parent:
        try:
            parent.kill()
            assert asyncio.run(ends(pidfd, 10))
        finally:
            os.close(pidfd)


def test_a_child_that_cannot_be_held_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find_program", lambda _: None)

    async def run() -> None:
        Child.spawn(("/bin/true",), held=True)

    with pytest.raises(LaunchError, match="there is no sh"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with status 0"),
        (-9, "was killed by SIGKILL"),
        (-63, "was killed by signal 63"),
    ],
)
def test_an_exit_status_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words

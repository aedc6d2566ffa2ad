# SPDX-License-Identifier: LGPL-2.1-or-later
"""Child processes: QEMU, and the helpers beside it.

The child is a real child: it stays in the caller's cgroup, namespaces, affinity and process group.
It gets a constructed environment, the descriptors that are named and no other, and a pipe for
stderr of which the last 64 KiB are kept. Its end is seen by pidfd on the event loop: no SIGCHLD,
no thread.

A *bound* child dies with its parent. util-linux' ``setpriv --pdeathsig KILL`` arranges that, and a
line of shell after it compares PPID with ours, so that a parent which died between fork and prctl
leaves no child either. Two things remain. The kernel sends the signal when the *thread* that
spawned ends, so
:meth:`Child.spawn` runs in the thread of the event loop, never in a pool. And a QEMU with file
capabilities or a set-user-ID bit loses the setting at exec.

A *held* child waits before it becomes the program, so that something can be done to the process
that will be it: its pid stays. The same shell reads a line from a pipe of ours first
(:meth:`Child.release`); a pipe that is closed without one, because we ended or gave up, ends it.
The program inherits the reading end, at which nobody writes any more: dash can close no descriptor
above 9.

What this never does: use a shell on anything from outside (the script is constant, the argv are its
positional parameters), or reap a child that is not its own.

Source: PR_SET_PDEATHSIG(2const), setpriv(1), pidfd_open(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final, Self

from sessionvirt.descriptors import Fd
from sessionvirt.errors import LaunchError
from sessionvirt.host.paths import find_program

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

__all__ = ["Child", "base_environment", "describe_exit"]

#: Bytes of stderr that are kept: the last ones.
STDERR_LIMIT: Final = 64 * 1024

#: $0 is the parent's pid. A parent that is gone, or in another pid namespace, is not the one we
#: know.
_CHECK_PARENT: Final = 'test "$PPID" -eq "$0" && '
#: $1 is the pipe. Through /proc, because dash redirects no descriptor above 9; the kernel does not
#: wait for a writer at a pipe without a name (fs/pipe.c, fifo_open).
_AWAIT_LINE: Final = 'read -r go <"/proc/self/fd/$1" && shift && '
_BECOME: Final = 'exec "$@"'

#: What of our environment a child needs to find programs, files and the user's session.
_INHERITED: Final = (
    "HOME", "LOGNAME", "PATH", "TMPDIR", "USER",
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR",
)  # fmt: skip


def base_environment() -> dict[str, str]:
    """Return the environment that every child starts from; messages in English."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C.UTF-8"}


def describe_exit(code: int) -> str:
    """Word an exit status: "exited with status 1", "was killed by SIGSEGV".

    :param code: negative: the number of the signal.
    """
    if code >= 0:
        return f"exited with status {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


class Child:
    """One child process; an async context manager that kills and reaps it.

    Made by :meth:`spawn` alone. Everything runs in the thread of the event loop.
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        command: tuple[str, ...],
        pidfd: Fd,
        gate: Fd | None,
    ) -> None:
        self._popen = popen
        self.command = command
        self._pidfd = pidfd
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._tail = bytearray()
        assert popen.stderr is not None
        self._stderr = Fd(os.dup(popen.stderr.fileno()))
        popen.stderr.close()
        os.set_blocking(self._stderr.fileno(), False)
        self._loop.add_reader(self._stderr.fileno(), self._read_stderr)
        self._loop.add_reader(pidfd.fileno(), self._reap)

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        pass_fds: Iterable[int] = (),
        bound: bool = True,
        held: bool = False,
        own_group: bool = False,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
    ) -> Self:
        """Start a program; returns when it, or what binds it to us, has been executed.

        Needs a running event loop, whose thread has to outlive a bound child.

        :param argv: the program's absolute path and its arguments.
        :param environment: added to :func:`base_environment`.
        :param pass_fds: inherited under the same numbers. They stay the caller's.
        :param bound: end it by SIGKILL when this process ends; without ``setpriv`` it is not.
        :param held: let it wait for :meth:`release` before it is the program.
        :param own_group: lead a process group, out of reach of the terminal's ^C.
        :raise LaunchError: it cannot be executed.
        """
        command = tuple(argv)
        inherited = tuple(pass_fds)
        with contextlib.ExitStack() as stack:
            gate, theirs = _gate(stack) if held else (None, None)
            inherited += () if theirs is None else (theirs,)
            try:
                popen = subprocess.Popen(
                    (*_before(bound=bound, gate=theirs), *command),
                    stdin=stdin,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    pass_fds=inherited,
                    env={**base_environment(), **(environment or {})},
                    bufsize=0,
                    process_group=0 if own_group else None,
                )
            except OSError as error:
                raise LaunchError(
                    f"cannot execute {command[0]}: {error.strerror}",
                    exit_code=None,
                    command=command,
                    stderr="",
                ) from error
            # The pid cannot be re-used before we reap it, so this is the child whatever became of
            # it.
            pidfd = Fd(os.pidfd_open(popen.pid))
            return cls(popen, command, pidfd, None if gate is None else Fd(gate.steal()))

    @property
    def pid(self) -> int:
        """Its process id; somebody else's once :attr:`returncode` is set."""
        return self._popen.pid

    def duplicate_pidfd(self) -> Fd:
        """Return a pidfd of it that is the caller's.

        :raise ValueError: it was reaped; never before the caller has let the event loop run.
        """
        return Fd(os.dup(self._pidfd.fileno()))

    def release(self) -> None:
        """Let a held child become its program. Once, or again and again; also if it has ended."""
        if self._gate is not None and not self._gate.closed:
            with self._gate, contextlib.suppress(BrokenPipeError):
                os.write(self._gate.fileno(), b"\n")

    @property
    def returncode(self) -> int | None:
        """Its exit status; negative: the signal; ``None`` while it runs."""
        return self._exited.result() if self._exited.done() else None

    @property
    def stderr(self) -> str:
        """What it wrote so far, at most the last 64 KiB."""
        return self._tail.decode("utf-8", "replace")

    async def wait(self) -> int:
        """Wait for its end; returns :attr:`returncode`. Several tasks may wait."""
        return await asyncio.shield(self._exited)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if not self._pidfd.closed:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd.fileno(), number)

    async def close(self) -> None:
        """Kill it if it runs, reap it, close what belongs to it. Again and again if you like."""
        self.send_signal(signal.SIGKILL)
        await self.wait()

    async def terminate(self, patience: float) -> int:
        """Ask it to end by SIGTERM; after ``patience`` seconds, SIGKILL."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience):
                await self.wait()
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
        return await self.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _read_stderr(self) -> None:
        """Take what is there, bounded for each turn so that a flood starves nobody."""
        try:
            data = os.read(self._stderr.fileno(), STDERR_LIMIT)
        except BlockingIOError:
            return
        if not data:
            self._close_stderr()
            return
        self._tail += data
        del self._tail[:-STDERR_LIMIT]

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd.fileno())
        self._pidfd.close()
        if self._gate is not None:
            self._gate.close()
        code = self._popen.wait()
        # What it wrote last is in the pipe by now. Not until end of file: a grandchild may hold it.
        for _ in range(2):
            if not self._stderr.closed:
                self._read_stderr()
        self._close_stderr()
        if not self._exited.done():
            self._exited.set_result(code)

    def _close_stderr(self) -> None:
        if not self._stderr.closed:
            self._loop.remove_reader(self._stderr.fileno())
            self._stderr.close()


def _gate(stack: contextlib.ExitStack) -> tuple[Fd, int]:
    """Make the pipe of a held child: its writing end, and the number of the one it inherits.

    :param stack: closes both, but for what was taken away.
    """
    theirs, ours = os.pipe()
    stack.enter_context(Fd(theirs))
    return stack.enter_context(Fd(ours)), theirs


def _before(*, bound: bool, gate: int | None) -> tuple[str, ...]:
    """Return the argv that binds its argument to this process, and holds it at a gate.

    It binds nothing where ``setpriv`` or the shell is missing.

    :raise LaunchError: it is to be held, and there is no shell.
    """
    setpriv, shell = find_program("setpriv"), find_program("sh")
    if gate is not None and shell is None:
        raise LaunchError("there is no sh to start it", exit_code=None, command=(), stderr="")
    bound = bound and setpriv is not None
    if shell is None or not (bound or gate is not None):
        return ()
    script, arguments = _BECOME, [str(os.getpid())]
    if gate is not None:
        script = _AWAIT_LINE + script
        arguments.append(str(gate))
    if not bound or setpriv is None:
        return (shell, "-c", script, *arguments)
    death = (setpriv, "--pdeathsig", "KILL", "--")
    return (*death, shell, "-c", _CHECK_PARENT + script, *arguments)

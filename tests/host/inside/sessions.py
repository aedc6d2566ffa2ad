# SPDX-License-Identifier: LGPL-2.1-or-later
"""People who are logged in: real sessions of logind, by PAM, in the foreground of seat0 or not.

A session's leader is the main process of a unit with ``PAMName=login``, as getty's is: pam_systemd
registers it, and logind moves it into the session's scope (systemd.exec(5), PAMName=). Where the
unit has a virtual terminal the session is on seat0, and active while that terminal is in the
foreground; without one it has no seat, like one over SSH, and counts for nobody who sits
at the machine. Commands are forked, moved into the scope by cgroup.procs, and become the user with
the environment that PAM made: to logind and polkit they are the session's.

The virtual terminals used are above those that logind starts gettys on (``NAutoVTs=`` is 6).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pwd
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

__all__ = ["Session", "Terminal", "foreground", "processes", "properties", "until"]

CGROUPS = Path("/sys/fs/cgroup")
#: What programs keep for the next time; of a user who is here for the tests only, it may stay.
CACHES = Path("/var/cache/testhost")
#: As chvt(1) does it (ioctl_vt(2)).
VT_ACTIVATE, VT_WAITACTIVE = 0x5606, 0x5607
#: For what takes a moment; a machine that is emulated, beside others, has long ones.
SECONDS = 60.0
#: What a terminal adds for the eye: colours, the cursor's moves.
CONTROLS = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>c78]|\r")

_numbers = itertools.count(1)


def until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Return once *condition* is true: for states of which nothing gives notice.

    :raise AssertionError: it is not, after *seconds*.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"after {seconds:g} s not yet: {what}", pytrace=False)
        time.sleep(0.05)


def properties(kind: str, name: str) -> dict[str, str]:
    """What logind says of a ``session`` or a ``user``; nothing of one that is gone."""
    argv = ["loginctl", f"show-{kind}", name]
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {key: value for key, _, value in pairs}


def foreground(vt: int | None = None) -> int:
    """The virtual terminal in the foreground.

    :param vt: bring that one there first.
    """
    if vt is not None:
        console = os.open("/dev/tty0", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(console, VT_ACTIVATE, vt)
            fcntl.ioctl(console, VT_WAITACTIVE, vt)
        finally:
            os.close(console)
    return int(Path("/sys/class/tty/tty0/active").read_text().strip().removeprefix("tty"))


def processes(*names: str) -> list[str]:
    """The command lines of all processes that were executed by one of these names."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (directory / "cmdline").read_bytes().split(b"\0")
            if os.path.basename(words[0].decode(errors="replace")) in names:
                found.append(b" ".join(words).decode(errors="replace"))
    return found


class Session:
    """One session, from the login to the last process of it; a context manager."""

    def __init__(self, user: str, unit: str, vt: int | None) -> None:
        entry = pwd.getpwnam(user)
        self.user = user
        self.uid, self.gid, self.home = entry.pw_uid, entry.pw_gid, entry.pw_dir
        self.unit, self.vt = unit, vt
        self._before = foreground()
        shown = ["systemctl", "show", "--value", "--property=MainPID", unit]
        self.leader = int(subprocess.run(shown, capture_output=True, check=True).stdout)
        raw = Path(f"/proc/{self.leader}/environ").read_text()
        self.environment = dict(one.split("=", 1) for one in raw.split("\0") if one)
        cache = CACHES / user
        cache.mkdir(parents=True, exist_ok=True)
        os.chown(cache, self.uid, self.gid)
        self.environment |= {"XDG_CACHE_HOME": str(cache), "LC_ALL": "C.UTF-8"}
        self.id = self.environment["XDG_SESSION_ID"]
        cgroup = Path(f"/proc/{self.leader}/cgroup").read_text().partition("0::/")[2].strip()
        self.scope = cgroup.rpartition("/")[2]
        self.cgroup = CGROUPS / cgroup
        assert self.scope == f"session-{self.id}.scope", "logind has not taken the leader over"

    @classmethod
    def open(cls, user: str, *, vt: int | None = None, active: bool = False) -> Self:
        """Log in.

        :param vt: on this virtual terminal of seat0; None: without a seat.
        :param active: bring it to the foreground.
        """
        unit = f"testhost-login-{next(_numbers)}.service"
        lines = ["PAMName=login", f"User={user}", "WorkingDirectory=~", "UtmpIdentifier=test"]
        if vt is not None:
            lines += [f"TTYPath=/dev/tty{vt}", "StandardInput=tty", "TTYVTDisallocate=yes"]
        words = [f"--property={line}" for line in lines]
        argv = ["systemd-run", "--quiet", "--collect", f"--unit={unit}", "--service-type=exec"]
        subprocess.run([*argv, *words, "sleep", "infinity"], check=True, timeout=SECONDS)
        session = cls(user, unit, vt)
        try:
            if active:
                session.activate()
        except BaseException:
            session.close()
            raise
        return session

    def activate(self) -> None:
        """Bring it to the foreground of the seat."""
        assert self.vt is not None, "a session without a seat is in no foreground"
        foreground(self.vt)
        until(lambda: self.show("Active") == "yes", f"session {self.id} is active")

    def deactivate(self) -> None:
        """Bring another virtual terminal, which nobody is logged in on, to the foreground."""
        foreground(1 if self._before == self.vt else self._before)
        until(lambda: self.show("Active") == "no", f"session {self.id} is inactive")

    def show(self, name: str) -> str:
        """A property of it; empty once it is gone."""
        return properties("session", self.id).get(name, "")

    def processes(self) -> list[int]:
        """What runs in it."""
        try:
            return [int(pid) for pid in (self.cgroup / "cgroup.procs").read_text().split()]
        except FileNotFoundError:
            return []

    # Programs in it

    def _enter(self) -> None:
        """Between fork and exec: into the scope, then the user."""
        (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))
        os.initgroups(self.user, self.gid)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)

    def popen(
        self, argv: Sequence[str], *, environment: Mapping[str, str] | None = None, **more: Any
    ) -> subprocess.Popen[str]:
        """Start a program; without a terminal it has no standard input.

        :param more: as :class:`subprocess.Popen` takes it.
        """
        more = {"stdin": subprocess.DEVNULL, "process_group": 0, "text": True} | more
        return subprocess.Popen(
            argv,
            cwd=self.home,
            env={**self.environment, **(environment or {})},
            preexec_fn=self._enter,
            **more,
        )

    @contextlib.contextmanager
    def running(self, argv: Sequence[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
        """A program that is killed at the end, if nothing has ended it before."""
        with self.popen(argv, **more) as child:
            try:
                yield child
            finally:
                child.kill()

    def run(
        self, argv: Sequence[str], *, timeout: float = SECONDS, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; its status, output and errors."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.popen(argv, **pipes, **more) as child:
            try:
                output, errors = child.communicate(timeout=timeout)
            except BaseException:
                child.kill()
                raise
        return subprocess.CompletedProcess(list(argv), child.returncode, output, errors)

    def terminal(self, argv: Sequence[str], **more: Any) -> Terminal:
        """Start a program at a terminal of its own, in its foreground."""
        return Terminal(self, argv, **more)

    # The end

    def log_out(self) -> None:
        """End the leader, as a shell's ``exit`` does; what else runs in the session stays."""
        subprocess.run(["systemctl", "stop", self.unit], check=False, capture_output=True)

    def close(self) -> None:
        """End everything in it, and wait until it is gone; with the last one goes the user."""
        if self.vt is not None and foreground() == self.vt:
            foreground(1 if self._before == self.vt else self._before)
        for pid in self.processes():
            # "(sd-pam)" ends the session with PAM when the leader has ended.
            with contextlib.suppress(OSError):
                if pid != self.leader and "(sd-pam)" not in Path(f"/proc/{pid}/comm").read_text():
                    os.kill(pid, signal.SIGKILL)
        self.log_out()
        until(lambda: not properties("session", self.id), f"session {self.id} is gone")
        if not self._others():
            # At once, and not after UserStopDelaySec=.
            terminate = ["loginctl", "terminate-user", self.user]
            subprocess.run(terminate, check=False, capture_output=True)
            until(lambda: not properties("user", self.user), f"{self.user} is gone")

    def _others(self) -> list[str]:
        """The user's other sessions; the user manager's own (class "manager") is none."""
        names = properties("user", self.user).get("Sessions", "").split()
        classes = {name: properties("session", name).get("Class", "") for name in names}
        return [name for name, kind in classes.items() if kind and not kind.startswith("manager")]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Terminal:
    """A program at a pseudo-terminal of its own: what it says, and keys for it."""

    def __init__(self, session: Session, argv: Sequence[str], **more: Any) -> None:
        self._ours, theirs = os.openpty()
        # Wide, so that no prompt is broken into lines.
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 400, 0, 0))
        os.fchown(theirs, session.uid, -1)
        # setsid makes a session of the kernel's, with the terminal as its own: ^C is a signal.
        leader = ["setsid", "--ctty", "--wait", *argv]
        self.process = session.popen(
            leader, stdin=theirs, stdout=theirs, stderr=theirs, process_group=None, **more
        )
        os.close(theirs)
        self._raw = b""
        self._taken = 0

    @property
    def seen(self) -> str:
        """Everything that it has said, without what is for the eye."""
        return CONTROLS.sub(b"", self._raw).decode(errors="replace")

    def expect(self, *texts: str, seconds: float = SECONDS) -> str:
        """Wait for one of *texts* in what was not yet waited for.

        :return: what was said up to its end.
        """
        deadline = time.monotonic() + seconds
        while True:
            fresh = self.seen[self._taken :]
            found = [fresh.index(text) + len(text) for text in texts if text in fresh]
            if found:
                self._taken += min(found)
                return fresh[: min(found)]
            if not self._read(deadline):
                pytest.fail(f"none of {texts} on the terminal:\n{self.seen}", pytrace=False)

    def _read(self, deadline: float) -> bool:
        """More of what it says; false: there is none, or not in time."""
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._ours], [], [], left)[0]:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # the last one that had it open is gone
            return False
        self._raw += data
        return bool(data)

    def press(self, keys: str) -> None:
        """Press keys: a line ends with ``\\n``; ``\\x03`` is ^C, ``\\x04`` the end of file."""
        os.write(self._ours, keys.encode())

    def echoes(self) -> bool:
        """Whether keys are shown; not while a password is typed."""
        return bool(termios.tcgetattr(self._ours)[3] & termios.ECHO)

    def end(self, seconds: float = SECONDS) -> int:
        """Wait for its end; its exit status, as a shell has it."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return self.process.wait(max(1.0, deadline - time.monotonic()))

    def hang_up(self) -> None:
        """Close the terminal, as when its window is closed."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

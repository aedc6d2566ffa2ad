# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that its user attends to: ``sessionvirt run`` on a terminal, where somebody types.

What is typed the guest's shell does (:data:`SCRIPT`), and says with what status. So the guest can
be told what nobody knew when it booted: another guest's address.
"""

from __future__ import annotations

import os
import pty
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, Self

from lab.guest import CMDLINE

if TYPE_CHECKING:
    from types import TracebackType

    from lab.guest import Guest
    from lab.users import User

__all__ = ["SCRIPT", "Attended", "GuestEndedError", "Said"]

SCRIPT = """\
stty -echo
say "status 0"
while read -r line; do
    eval "$line"
    say "status $?"
done
"""
_STATUS = re.compile(r"GUEST: status (\d+)")


class GuestEndedError(Exception):
    """It ended while something was expected of it; the text has what was said."""


class Said(NamedTuple):
    """What came of a line that was typed."""

    status: int
    text: str


class Attended:
    """The guest, as a context manager; inside of it it boots, or runs.

    :param options: of ``sessionvirt run``, beside what it boots.
    :param guest: with :data:`SCRIPT`; the user must be able to read it.
    """

    def __init__(self, user: User, name: str, options: list[str], guest: Guest) -> None:
        self.user = user
        self.name = name
        self.options = [f"--name={name}", *options]
        self._argv = ["sessionvirt", "run", "--quiet", "--no-ask-password", "--memory=128"]
        self._argv += [f"--kernel={guest.kernel}", f"--initrd={guest.initrd}"]
        self._argv += [f"--append={CMDLINE}", *self.options]
        self._stack = ExitStack()
        self._left = b""
        self._heard: list[str] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._terminal, slave = pty.openpty()
            stack.callback(os.close, self._terminal)
            try:
                # Keys go to the guest from a terminal in whose foreground the command is only.
                self._process = stack.enter_context(
                    self.user.popen(
                        ["setsid", "--ctty", "--wait", *self._argv],
                        stdin=slave,
                        stdout=slave,
                        stderr=slave,
                    )
                )
            finally:
                os.close(slave)
            self._stack = stack.pop_all()
        return self

    def wait_until_up(self) -> None:
        """Until it reads what is typed.

        :raise GuestEndedError: it never will.
        """
        self._listen()

    def does(self, line: str) -> Said:
        """Type a line of shell.

        :raise GuestEndedError: it did not survive that.
        """
        os.write(self._terminal, f"{line}\n".encode())
        return self._listen()

    def reaches(self, address: str) -> bool:
        """Whether *address* answers a ping: however late, for the machine may be busy."""
        return self.does(f"ping -c 1 -W 20 {address}").status == 0

    def misses(self, address: str) -> bool:
        """Whether *address* lets two pings go unanswered."""
        return self.does(f"ping -c 2 -W 1 {address}").status != 0

    def end(self) -> int:
        """Have it power off; the command's status."""
        os.write(self._terminal, b"poweroff -f\n")
        while self._line() is not None:
            pass
        return self._process.wait()

    def _listen(self) -> Said:
        """What it says until it has done what was typed."""
        lines: list[str] = []
        while (line := self._line()) is not None:
            if match := _STATUS.search(line):
                return Said(int(match[1]), "\n".join(lines))
            lines.append(line.removeprefix("GUEST: "))
        said = "\n".join(self._heard[-30:])
        raise GuestEndedError(f"{self.name} has ended, status {self._process.wait()}:\n{said}")

    def _line(self) -> str | None:
        """The next; None where nobody is left to say one."""
        while b"\n" not in self._left:
            try:
                data = os.read(self._terminal, 4096)
            except OSError:  # EIO: no process has the other end
                data = b""
            if not data:
                return None
            self._left += data
        line, _, self._left = self._left.partition(b"\n")
        self._heard.append(line.decode(errors="replace").strip())
        return self._heard[-1]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run programs as an ordinary user: no capability, the groups of a login, a clean environment."""

from __future__ import annotations

import os
import pwd
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["User"]


@dataclass(frozen=True)
class User:
    """A user of the lab.

    :param home: 0700 and theirs; what a test gives them lies below it.
    """

    name: str
    uid: int
    gid: int
    home: Path

    @classmethod
    def named(cls, name: str) -> User:
        """The user *name* of the lab's /etc/passwd.

        :raise KeyError: there is none.
        """
        entry = pwd.getpwnam(name)
        return cls(name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))

    @property
    def groups(self) -> list[int]:
        """What a login would set. polkit of Debian 13 goes by these, not by /etc/group."""
        return os.getgrouplist(self.name, self.gid)

    @property
    def environment(self) -> dict[str, str]:
        """What a login without a session would set."""
        return {
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "LOGNAME": self.name,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "USER": self.name,
            "XDG_RUNTIME_DIR": f"/run/user/{self.uid}",
        }

    def own(self, path: Path) -> Path:
        """Give *path* to this user."""
        os.chown(path, self.uid, self.gid)
        return path

    def write(self, name: str, content: str | bytes) -> Path:
        """Make a file of theirs below their home."""
        path = self.home / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self.own(path)

    def run(
        self,
        argv: list[str],
        *,
        timeout: float = 60,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* to its end, with standard input closed.

        :param timeout: seconds; then it is killed and subprocess.TimeoutExpired is raised.
        :param environment: set beside :attr:`environment`.
        :return: exit status, standard output and standard error, as text.
        """
        return subprocess.run(
            argv,
            cwd=self.home,
            env={**self.environment, **(environment or {})},
            user=self.uid,
            group=self.gid,
            extra_groups=self.groups,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextmanager
    def popen(
        self,
        argv: list[str],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.PIPE,
        environment: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run *argv* inside of the ``with``, in a process group of its own; killed at its end."""
        child = subprocess.Popen(
            argv,
            cwd=self.home,
            env={**self.environment, **(environment or {})},
            user=self.uid,
            group=self.gid,
            extra_groups=self.groups,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            process_group=0,
        )
        with child:
            try:
                yield child
            finally:
                child.kill()

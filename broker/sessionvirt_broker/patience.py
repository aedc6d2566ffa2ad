# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel may take its time over in sysfs: a disposable child each, with a deadline.

To unbind a driver waits for whoever uses the device, and some drivers wait for ever; all that time
the kernel holds the device's lock, and whoever so much as looks at its ``driver_override`` waits,
too. So the write is tee(1)'s and the look cat(1)'s, in a process of its own: what hangs there hangs
nobody else. A child that is late is left alone, for the kernel would not let it go anyway; as long
as it is there, nothing else is done to that device, by this broker or by the next, which finds it
in /proc by its environment.

The paths are of PCI functions that sysfs listed, the texts are theirs or constants: nothing of a
caller's is in the argv. Used on the worker thread, which waits.

Why no fork: docs/adr/0007-children-that-write.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import Busy

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEADLINE_SECONDS", "Patience", "StuckError"]

#: What a driver that lets go takes is milliseconds, a graphics card's a few seconds.
DEADLINE_SECONDS = 10.0
_TEE, _CAT = "/usr/bin/tee", "/usr/bin/cat"


@contextlib.contextmanager
def _holding(text: bytes) -> Iterator[int]:
    """The end to read from of a pipe that has ``text`` in it, and then its end."""
    reader, writer = os.pipe()
    try:
        try:
            os.write(writer, text)  # a pipe holds more than what is written here
        finally:
            os.close(writer)
        yield reader
    finally:
        os.close(reader)


def _ends(pid: int, seconds: float) -> bool:
    """Wait for the end of a child, which is not reaped here.

    By its pidfd: subprocess would look again by the clock, and later each time.
    """
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(pidfd)


class StuckError(Busy):
    """Not done in time; the process that waits for the kernel is still there."""


class Patience:
    """The children, and which of them are late."""

    def __init__(self, proc: Path = Path("/proc"), seconds: float = DEADLINE_SECONDS) -> None:
        self._proc = proc
        self._seconds = seconds
        self._late: list[tuple[str, subprocess.Popen[bytes]]] = []
        #: Of a broker before this one: device and pid. None: not looked for yet.
        self._former: list[tuple[str, int]] | None = None

    def write(self, device: str, path: Path, text: str) -> None:
        """Write ``text`` to ``path``, which is about ``device``, in one write(2).

        :raise StuckError: not done in time, or something earlier for this device is not.
        :raise OSError: the kernel refused (its errno is not known here: EIO).
        """
        self._run([_TEE, "--", str(path)], device, text.encode("ascii"))

    def read(self, device: str, path: Path) -> str:
        """The text of ``path``, without the blanks around it.

        :raise StuckError, OSError: likewise.
        """
        return self._run([_CAT, "--", str(path)], device, b"").decode(errors="replace").strip()

    def waits_for(self, device: str) -> bool:
        """Whether a child still waits for the kernel to let go of a device."""
        if self._former is None:
            self._former = list(self._left_by_others())
        self._late = [(of, child) for of, child in self._late if child.poll() is None]
        self._former = [(of, pid) for of, pid in self._former if self._device_of(pid) == of]
        return any(of == device for of, _ in (*self._late, *self._former))

    def _run(self, argv: list[str], device: str, text: bytes) -> bytes:
        if self.waits_for(device):
            raise StuckError(f"the kernel has still not let go of {device}")
        with contextlib.ExitStack() as stack:
            # PRIVILEGE: CAP_DAC_OVERRIDE, inherited; many files of sysfs are root's alone.
            child = subprocess.Popen(
                argv,
                stdin=stack.enter_context(_holding(text)),
                stdout=subprocess.PIPE if argv[0] == _CAT else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={"LC_ALL": "C", "DEVICE": device},  # for the next broker, if this one dies
                cwd="/",
            )
            for stream in filter(None, (child.stdout, child.stderr)):
                stack.enter_context(stream)
            if not _ends(child.pid, self._seconds):
                self._late.append((device, child))
                raise StuckError(f"the kernel has not let go of {device} in {self._seconds:.0f} s")
            # It has ended, so there is an end of what it said; and a page fits into a pipe.
            said = child.stdout.read() if child.stdout else b""
            complaint = child.stderr.read() if child.stderr else b""
        if child.wait():
            raise OSError(errno.EIO, complaint.decode(errors="replace").strip(), argv[-1])
        return said

    def _left_by_others(self) -> list[tuple[str, int]]:
        pids = [int(entry.name) for entry in self._proc.iterdir() if entry.name.isdigit()]
        mine = {child.pid for _, child in self._late}
        found = ((self._device_of(pid), pid) for pid in pids if pid not in mine)
        return [(device, pid) for device, pid in found if device]

    def _device_of(self, pid: int) -> str:
        """What a child of a broker waits for; empty: it is none."""
        with contextlib.suppress(OSError):
            # Others' are not looked at: their memory may be such that the look never ends.
            if os.stat(self._proc / str(pid)).st_uid != os.geteuid():
                return ""
            command = (self._proc / f"{pid}/cmdline").read_bytes().split(b"\0")
            if command[0] in (_TEE.encode(), _CAT.encode()):
                for word in (self._proc / f"{pid}/environ").read_bytes().split(b"\0"):
                    if word.startswith(b"DEVICE="):
                        return os.fsdecode(word.removeprefix(b"DEVICE="))
        return ""

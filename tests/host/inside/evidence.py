# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a failure leaves for a person: the journal since the test began, the host's state, captures.

It goes below :data:`DIRECTORY`, in a directory named for the test; ``host/forward.py`` brings that
out to ``dist/testhost/``. A test that captures packets writes to :func:`capture_path`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

__all__ = ["begin", "capture_path", "journal", "keep"]

DIRECTORY = Path("/var/lib/testhost/evidence")
#: What the running test has captured; gone with the next.
CAPTURES = Path("/var/lib/testhost/captures")

#: Each with the file that its output goes to.
LOOKS = {
    "links": ("ip", "-details", "address"),
    "nft": ("nft", "--handle", "list", "ruleset"),
    "units": ("systemctl", "list-units", "--all", "--no-pager", "sessionvirt*", "dbus*", "polkit*"),
    "processes": ("ps", "-eo", "pid,ppid,user,unit,lstart,args"),
    "sessions": ("loginctl", "--no-pager"),
    "leases": ("find", "/run/sessionvirt-broker", "-ls"),
    "kernel": ("dmesg",),
}

_cursor = ""


def _output(*argv: str) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode(errors="replace")


def begin() -> None:
    """A test begins: the journal of a failure begins here."""
    global _cursor
    shutil.rmtree(CAPTURES, ignore_errors=True)
    CAPTURES.mkdir(parents=True)
    _cursor = (
        _output("journalctl", "--lines=0", "--show-cursor").partition("-- cursor: ")[2].strip()
    )


def journal(*matches: str) -> str:
    """The journal since the test began.

    :param matches: as journalctl takes them: ``--unit=sessionvirt-broker``.
    """
    after = [f"--after-cursor={_cursor}"] if _cursor else ["--boot"]
    return _output("journalctl", "--no-pager", "--output=short-monotonic", *after, *matches)


def capture_path(name: str) -> Path:
    """Where a capture goes that is to be seen if the test fails."""
    return CAPTURES / f"{name}.pcap"


def keep(test: str) -> Path:
    """Write down what there is to see now.

    :return: the directory.
    """
    directory = DIRECTORY / re.sub(r"[^\w.-]+", "_", test.rpartition("/")[2])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "journal").write_text(journal())
    for name, argv in LOOKS.items():
        (directory / name).write_text(_output(*argv))
    for capture in CAPTURES.glob("*.pcap"):
        shutil.copy(capture, directory)
    return directory

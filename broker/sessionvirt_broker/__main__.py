# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program: become the broker's user, take the lock, and run (``daemon.py``).

Root's stage, where there is no systemd, is only as long as it takes to leave root: nothing of the
broker proper is imported before.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .privileges import PrivilegeError, become_broker, check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .host import Paths

log = logging.getLogger("sessionvirt_broker")

IDLE_SECONDS = 30.0
#: Of the kernel that runs.
_MODULES = Path("/lib/modules") / os.uname().release
#: How long the next broker waits for the last one to be done.
_LOCK_SECONDS = 10.0


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="sessionvirt-broker", description=__doc__)
    parser.add_argument("--runtime", type=Path, default=Path("/run/sessionvirt-broker"))
    parser.add_argument("--config", type=Path, default=Path("/etc/sessionvirt/broker.toml"))
    parser.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    parser.add_argument(
        "--return-leases", action="store_true", help="end every lease, do not serve, and exit"
    )
    parser.add_argument("--keeper", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(format="<3>%(name)s: %(message)s", level=logging.WARNING)
    os.umask(0o077)
    # One descriptor a lease; the unit's (or the launcher's) hard limit is the bound.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.chdir("/")
    try:
        if os.geteuid() == 0:
            become_broker(arguments.runtime)
        check()
    except PrivilegeError as error:
        log.error("%s", error)
        return 1
    return _act(arguments)


def _act(arguments: argparse.Namespace) -> int:
    """The broker proper."""
    from .dnsmasq import Keeper
    from .errors import BrokerError
    from .host import Paths

    # In the unit the file is elsewhere. Whoever starts a privileged program says its environment.
    aliases = Path(os.environ.get("SESSIONVIRT_MODULES_ALIAS", _MODULES / "modules.alias"))
    paths = Paths(arguments.runtime, arguments.config, Path("/proc/sys/net"), aliases)
    keeper = None
    if arguments.keeper is not None:
        keeper = Keeper(socket.socket(fileno=arguments.keeper))
    try:
        if arguments.return_leases:
            from .eviction import evict

            with _locked(paths, patience=0):
                return evict(paths, keeper)
        from .daemon import run

        with _locked(paths, patience=_LOCK_SECONDS):
            return run(paths, keeper, arguments.idle_seconds)
    except BrokerError as error:
        log.error("%s", error)
        return 1
    finally:
        if keeper is not None:
            keeper.close()


@contextlib.contextmanager
def _locked(paths: Paths, *, patience: float) -> Iterator[None]:
    """The directories, and the lock that one broker at a time holds.

    :param patience: seconds to wait for another's end; 0: it must have ended.
    :raise HostFailure: one of them is somewhere else; what would be removed there is not ours.
    """
    from .errors import HostFailure

    for directory, mode in ((paths.records, 0o700), (paths.holds, 0o700), (paths.networks, 0o755)):
        if directory.is_symlink():
            raise HostFailure(f"{directory} is a symbolic link")
        directory.mkdir(exist_ok=True)
        directory.chmod(mode)
    descriptor = os.open(paths.runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if patience:
            signal.signal(signal.SIGALRM, lambda *_: sys.exit("another broker holds the lock"))
            signal.setitimer(signal.ITIMER_REAL, patience)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sys.exit("the broker is running; stop it first: systemctl stop sessionvirt-broker")
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())

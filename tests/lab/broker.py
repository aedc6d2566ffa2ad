# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real broker on the lab's bus: started by root, as where there is no systemd."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lab.bus import ENVIRONMENT, wait_for_owner
from lab.daemon import Daemon, DaemonError
from lab.files import wait_until_empty
from lab.namespaces import install
from lab.stage import Flavour

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["CONFIGURATION", "NAME", "RUNTIME", "USER", "Broker"]

NAME = "org.sessionvirt.Broker1"
USER = "sessionvirt-broker"
CONFIGURATION = Path("/etc/sessionvirt/broker.toml")
#: The journal, the FIFOs, and what dnsmasq reads.
RUNTIME = Path("/run/sessionvirt-broker")
#: As the activation file says it.
COMMAND = ["/usr/bin/python3", "-IB", "-m", "sessionvirt_broker"]
DYING = Path(__file__).with_name("dying_broker.py")


class Broker:
    """The broker, as a context manager: it runs inside of the ``with``, unless a test stops it.

    The bus must be there and the project installed.

    :param flavour: whose libraries it runs with.
    """

    def __init__(self, flavour: Flavour = Flavour.PYPI) -> None:
        self.flavour = flavour
        self.daemon = Daemon("sessionvirt-broker", COMMAND, ENVIRONMENT)

    @property
    def running(self) -> bool:
        """Whether :meth:`start` was the last word; a crash does not change it."""
        return self.daemon.process is not None

    def start(self) -> None:
        """Start it, and return once it owns its name: old leases have been taken up then.

        :raise DaemonError: it did not, and no longer runs; the text has the end of its log.
        """
        self.daemon.spawn()
        try:
            wait_for_owner(NAME, pid=self.daemon.pid)
        except (DaemonError, TimeoutError) as error:
            self.kill()
            raise DaemonError(self.daemon.account("did not take its name")) from error

    def stop(self) -> int:
        """SIGTERM; its exit status. Leases stay, as when the service is stopped.

        It has as long as the unit's TimeoutStopSec= gives it.
        """
        return self.daemon.stop(timeout=20)

    def start_dying(self, number: int, begin: str) -> None:
        """Start one that dies *number* changes after the first ``Leases.BEGIN``."""
        self.daemon.argv = ["/usr/bin/python3", "-I", str(DYING), str(number), begin]
        self.start()
        self.daemon.argv = COMMAND

    def died(self) -> None:
        """Wait until that one has killed itself."""
        assert self.daemon.wait(5) == -signal.SIGKILL

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.daemon.kill()

    def restart(self) -> None:
        """Crash, and the start after it."""
        self.kill()
        self.start()

    def wait_until_idle(self, timeout: float = 10) -> None:
        """Return once it holds nothing for anybody: the journal is empty, so all has been undone.

        :param timeout: seconds.
        :raise TimeoutError: it still holds something; the text names the records.
        """
        wait_until_empty(RUNTIME / "records", timeout)

    def configure(self, text: str) -> None:
        """Write broker.toml; a running broker finds out by itself."""
        part = CONFIGURATION.with_suffix(".part")
        part.write_text(text)
        part.rename(CONFIGURATION)

    def __enter__(self) -> Self:
        install(self.flavour)
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """End it, if a test has not, with its configuration and rules.

        :raise DaemonError: it ended otherwise than it should.
        """
        CONFIGURATION.unlink(missing_ok=True)
        process = self.daemon.process
        try:
            if process is not None:
                ended = process.poll()
                if status := self.stop() if ended is None else ended:
                    raise DaemonError(self.daemon.account(f"ended with status {status}"))
        finally:
            self.kill()
            forget_rules()


def forget_rules() -> None:
    """Delete the fixed part of the broker's rules, which it keeps by design: no guest is in it."""
    for family in ("bridge", "inet"):
        subprocess.run(
            ["nft", "delete", "table", family, "sessionvirt"],
            stderr=subprocess.DEVNULL,
            check=False,  # there may be none
        )

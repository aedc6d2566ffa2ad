# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker between two tests: the next one may have it, if the last one left it as it was.

A start is a third of a second of a processor, twice that with the end before it, and a test is
often less. Kept is only one that still is the process that was started, with its own command line,
and that holds nothing; any other is ended, and its exit status looked at, where the test has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.broker import COMMAND, CONFIGURATION, RUNTIME, Broker, forget_rules
from lab.bus import ENVIRONMENT
from lab.files import wait_until_empty
from lab.leaks import descendants
from lab.namespaces import install

if TYPE_CHECKING:
    from lab.stage import Flavour

__all__ = ["Standing"]

#: Longer than any run; a test about the idle broker's end starts its own.
_COMMAND = [*COMMAND, "--idle-seconds", "36000"]


class Standing:
    """At most one broker."""

    def __init__(self) -> None:
        self._broker: Broker | None = None
        self._pid = 0

    def lend(self, flavour: Flavour) -> Broker:
        """A broker that runs and holds nothing."""
        broker = self._broker
        if broker is None or broker.flavour is not flavour or not _runs(broker):
            self.end()
            install(flavour)
            broker = Broker(flavour)
            broker.daemon.argv = _COMMAND
            broker.start()
            broker.daemon.argv = COMMAND
            self._pid = broker.daemon.pid
        self._broker = None
        return broker

    def take_back(self, broker: Broker, *, as_it_was: bool) -> None:
        """Keep it for the next test, or end it.

        :param as_it_was: nothing is known against it.
        :raise DaemonError: it ended otherwise than it should.
        """
        same = _runs(broker) and broker.daemon.pid == self._pid
        CONFIGURATION.unlink(missing_ok=True)
        if as_it_was and same and self._holds_nothing():
            forget_rules()
            self._broker = broker
        else:
            _end(broker)

    def processes(self) -> frozenset[int]:
        """The one that is kept, with its children."""
        if self._broker is None:
            return frozenset()
        return descendants(self._pid) | {self._pid}

    def end(self) -> None:
        """End the one that is kept."""
        broker, self._broker = self._broker, None
        if broker is not None:
            _end(broker)

    def _holds_nothing(self) -> bool:
        try:
            wait_until_empty(RUNTIME / "records", 0.3)
        except TimeoutError:
            return False
        return True


def _runs(broker: Broker) -> bool:
    process = broker.daemon.process
    return process is not None and process.poll() is None


def _end(broker: Broker) -> None:
    broker.daemon.argv, broker.daemon.environment = COMMAND, ENVIRONMENT
    broker.end()

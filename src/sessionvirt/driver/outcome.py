# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a run of a virtual machine ended, from what QEMU said and how its process went."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sessionvirt.qemu.process import describe_exit
from sessionvirt.states import DomainState

if TYPE_CHECKING:
    from sessionvirt.qemu.qmp import Event

__all__ = ["Ending", "Outcome", "Witness"]


class Ending(StrEnum):
    """The kinds of end."""

    #: The guest shut itself down, asked by us or not.
    POWERED_OFF = "powered off"
    #: The guest wanted to reboot, and ``on_reboot`` is ``destroy``.
    REBOOTED = "rebooted"
    #: The guest's kernel said that it crashed.
    PANICKED = "panicked"
    #: QEMU was told to end: by us, by a signal, by its monitor.
    KILLED = "killed"
    #: QEMU ended for no reason that anybody gave.
    DIED = "died"


@dataclass(frozen=True)
class Outcome:
    """The end of one run.

    :param exit_code: of QEMU; negative: the signal that ended it.
    :param reason: QEMU's own word for it (``ShutdownCause`` in QMP); may be empty.
    :param stderr: what QEMU wrote, at most the last 64 KiB.
    """

    ending: Ending
    exit_code: int
    reason: str = ""
    stderr: str = ""

    @property
    def state(self) -> DomainState:
        """The state that a domain is in after it."""
        bad = self.ending in (Ending.PANICKED, Ending.DIED)
        return DomainState.CRASHED if bad else DomainState.STOPPED

    def __str__(self) -> str:
        match self.ending:
            case Ending.POWERED_OFF:
                return "the guest powered off"
            case Ending.REBOOTED:
                return "the guest asked for a reboot, and on_reboot is destroy"
            case Ending.PANICKED:
                return "the guest's kernel panicked"
            case Ending.KILLED:
                return f"QEMU was told to end ({self.reason or describe_exit(self.exit_code)})"
            case Ending.DIED:
                return f"QEMU {describe_exit(self.exit_code)}"


class Witness:
    """Collects what tells how a run ends, and says it at the end."""

    def __init__(self) -> None:
        self._reason = ""
        self._panicked = False
        self._killed = False

    def see(self, event: Event) -> None:
        """Note an event of QEMU."""
        if event.name == "SHUTDOWN":
            self._reason = event.text("reason")
        elif event.name == "GUEST_PANICKED":
            self._panicked = True

    def kill(self) -> None:
        """Note that we end it."""
        self._killed = True

    def outcome(self, exit_code: int, stderr: str) -> Outcome:
        """Say how it ended."""
        return Outcome(self._ending(exit_code), exit_code, self._reason, stderr)

    def _ending(self, exit_code: int) -> Ending:
        if self._panicked or self._reason == "guest-panic":
            return Ending.PANICKED
        if self._killed or (exit_code == 0 and self._reason.startswith("host-")):
            return Ending.KILLED
        if exit_code == 0 and self._reason == "guest-reset":
            return Ending.REBOOTED
        if exit_code == 0 and self._reason == "guest-shutdown":
            return Ending.POWERED_OFF
        return Ending.DIED

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can go wrong on the session side, in the words of the person it happens to.

::

    SessionvirtError               cause, evidence, advice; the command's exit status   1
    ├── UsageError                 the command line or an API argument is wrong         2
    ├── DefinitionError            the domain XML is malformed, or refused by --strict  2
    ├── NotFoundError              no such network, bridge, file, lease                 3
    ├── PermissionDeniedError      polkit said no, or the prompt was dismissed          4
    ├── InteractionRequiredError   a prompt is needed and none can be shown             5
    ├── BusyError                  somebody else holds it, or a quota is used up        6
    ├── UnsafeError                the broker will not: it would endanger the host      7
    ├── BrokerUnavailableError     no bus, no broker, or it failed                      8
    ├── LaunchError                QEMU did not start: exit code, command line, stderr  1
    ├── QemuError                  a running QEMU refused a command or went away        1
    ├── StateError                 the domain is not in a state that allows this        1
    └── DeadlineError              it took longer than was allowed                      124

Every class keeps its three parts apart so that a program can use them and the command can lay them
out; ``raise ... from`` keeps the cause. Cancellation is never wrapped.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BrokerUnavailableError",
    "BusyError",
    "DeadlineError",
    "DefinitionError",
    "InteractionRequiredError",
    "LaunchError",
    "NotFoundError",
    "PermissionDeniedError",
    "QemuError",
    "SessionvirtError",
    "StateError",
    "UnsafeError",
    "UsageError",
]


class SessionvirtError(Exception):
    """Root of the tree.

    :param cause: one sentence, without a full stop: what failed.
    :param evidence: what was seen that proves it; may be several lines; may be empty.
    :param advice: what the reader can do; may be empty.
    """

    #: Exit status of the ``sessionvirt`` command for this class; documented in sessionvirt(1).
    exit_status: ClassVar[int] = 1

    def __init__(self, cause: str, *, evidence: str = "", advice: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.evidence = evidence
        self.advice = advice

    def __str__(self) -> str:
        return "\n".join(part for part in (self.cause, self.evidence, self.advice) if part)


class UsageError(SessionvirtError):
    """The command line, or an argument of a public function, is wrong."""

    exit_status = 2


class DefinitionError(SessionvirtError):
    """The domain XML cannot be read, contradicts itself, or has what ``--strict`` refuses."""

    exit_status = 2


class NotFoundError(SessionvirtError):
    """A network, bridge, lease or file that was named does not exist, or not for this user."""

    exit_status = 3


class PermissionDeniedError(SessionvirtError):
    """polkit said no, or the user dismissed the prompt."""

    exit_status = 4


class InteractionRequiredError(SessionvirtError):
    """A prompt is needed, and interaction was not allowed or no agent is there to show it."""

    exit_status = 5


class BusyError(SessionvirtError):
    """Held by somebody else, or a quota is used up."""

    exit_status = 6


class UnsafeError(SessionvirtError):
    """The broker refuses whatever anybody says, because the host would suffer."""

    exit_status = 7


class BrokerUnavailableError(SessionvirtError):
    """No system bus, no broker on it, or the broker failed."""

    exit_status = 8


class LaunchError(SessionvirtError):
    """QEMU did not come up.

    :param exit_code: QEMU's exit status; negative: the signal that ended it; None: it never ran.
    :param command: the argv that was run.
    :param stderr: what QEMU wrote, at most the last 64 KiB.
    """

    def __init__(
        self,
        cause: str,
        *,
        exit_code: int | None,
        command: tuple[str, ...],
        stderr: str,
        advice: str = "",
    ) -> None:
        super().__init__(cause, evidence=stderr.strip(), advice=advice)
        self.exit_code = exit_code
        self.command = command
        self.stderr = stderr


class QemuError(SessionvirtError):
    """A running QEMU refused a command, or went away in the middle of one."""


class StateError(SessionvirtError):
    """The domain is not in a state that allows what was asked."""


class DeadlineError(SessionvirtError):
    """It took longer than the caller allowed."""

    exit_status = 124

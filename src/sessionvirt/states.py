# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of a domain as an enum, and which step may follow which.

::

    DEFINED ──> PREPARING ──> STARTING ──> RUNNING <──> PAUSED
       ^            │             │           │  ╲        │
       └────────────┴─────────────┘           │   ╲       │
            a start that failed               v    v      v
                                          STOPPING ──> STOPPED, CRASHED

A domain object has one setter, which calls :func:`check`; nobody else writes the state. A start
that fails goes back to where it came from, so STOPPED and CRASHED may be started again.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from .errors import StateError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["INACTIVE", "TRANSITIONS", "DomainState", "check", "require"]


class DomainState(enum.Enum):
    """Where a domain is in its life."""

    #: Known, never started.
    DEFINED = "defined"
    #: Taking what the start needs: lease, descriptors, helpers. No QEMU yet.
    PREPARING = "preparing"
    #: QEMU runs, its guest does not.
    STARTING = "starting"
    #: The guest's CPUs run.
    RUNNING = "running"
    #: QEMU holds the guest's CPUs.
    PAUSED = "paused"
    #: The end was asked for or seen; QEMU is still there.
    STOPPING = "stopping"
    #: QEMU ended as it should.
    STOPPED = "stopped"
    #: QEMU, or the guest, ended as it should not.
    CRASHED = "crashed"


#: States without a QEMU.
INACTIVE: Final = frozenset({DomainState.DEFINED, DomainState.STOPPED, DomainState.CRASHED})

_END: Final = frozenset({DomainState.STOPPING, DomainState.STOPPED, DomainState.CRASHED})

#: From each state, those that may follow it.
TRANSITIONS: Final[Mapping[DomainState, frozenset[DomainState]]] = {
    DomainState.DEFINED: frozenset({DomainState.PREPARING}),
    DomainState.PREPARING: INACTIVE | {DomainState.STARTING},
    DomainState.STARTING: INACTIVE | {DomainState.RUNNING, DomainState.PAUSED},
    DomainState.RUNNING: _END | {DomainState.PAUSED},
    DomainState.PAUSED: _END | {DomainState.RUNNING},
    DomainState.STOPPING: frozenset({DomainState.STOPPED, DomainState.CRASHED}),
    DomainState.STOPPED: frozenset({DomainState.PREPARING}),
    DomainState.CRASHED: frozenset({DomainState.PREPARING}),
}


def require(state: DomainState, *allowed: DomainState, what: str) -> None:
    """Check on entry that an operation is possible now.

    :param what: the operation, for the message: "start", "pause".
    :raise StateError: the state is none of those allowed.
    """
    if state not in allowed:
        names = " or ".join(each.value for each in allowed)
        raise StateError(f"cannot {what}: the domain is {state.value}, not {names}")


def check(old: DomainState, new: DomainState) -> None:
    """Check a transition.

    :raise StateError: ``new`` may not follow ``old``.
    """
    if new not in TRANSITIONS[old]:
        raise StateError(f"a domain that is {old.value} cannot become {new.value}")

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Privileged work as data: what will be done, what undoes it, and the doing.

A :class:`Step` is frozen, knows how to describe itself to a person before it is done, and can be
written to the journal and read back by another process. ``execute`` returns the step with what it
learnt (an ifindex); ``undo`` works from what is written, after a crash too, and finds it in order
that the thing was never made or is gone already.

:func:`carry_out` is the one way steps are run: all of them are in the journal before the kernel
hears of the first, and a failure undoes them, last first. So ``undo`` may also be asked of a step
that was never begun.
"""

from __future__ import annotations

import abc
import logging
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Self

from .errors import BrokerError, Busy, HostFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .host import Host

log = logging.getLogger(__name__)

_SCALARS: dict[str, type] = {"str": str, "int": int}
#: Fields that become one part of a path below /run, /sys or /proc.
_NAMES = frozenset({"address", "bridge", "group", "ifname", "physical"})


@dataclass(frozen=True, slots=True)
class Step(abc.ABC):
    """One change of the host. Fields are ``str``, ``int`` or ``tuple[str, ...]``: plain JSON."""

    #: Its name in the journal; never re-used for another meaning.
    NAME: ClassVar[str]

    @abc.abstractmethod
    def describe(self) -> str:
        """What will be done, for a person, in the imperative."""

    @abc.abstractmethod
    def describe_undo(self) -> str:
        """What takes it back."""

    @abc.abstractmethod
    def execute(self, host: Host) -> Self:
        """Do it; on the worker thread."""

    @abc.abstractmethod
    def undo(self, host: Host) -> None:
        """Take it back; idempotent; on the worker thread."""

    def resume(self, host: Host) -> None:  # noqa: B027  (nothing to do is the usual case)
        """A new broker found this done by the last one: start again what ended with that."""

    def encode(self) -> dict[str, object]:
        """Plain JSON of the step."""
        return {"step": self.NAME} | {item.name: getattr(self, item.name) for item in fields(self)}


def decode(raw: object, types: Mapping[str, type[Step]]) -> Step:
    """A step from the journal; an upgrade may have changed its form since it was written.

    A field that the writer did not know has its default, and what was one string is a list of one
    (of none, where it was empty) where the field has become a list.

    :raise ValueError: it is not one of ours; the message names the field.
    """
    if not isinstance(raw, dict):
        raise ValueError("step: not an object")
    cls = types.get(str(raw.get("step")))
    if cls is None:
        raise ValueError("step: unknown")
    values: dict[str, object] = {}
    for item in fields(cls):
        value = raw.get(item.name)
        if item.name not in raw and item.default is not MISSING:
            continue
        if item.type == "tuple[str, ...]":
            if isinstance(value, str):
                value = [value] if value else []
            if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
                raise ValueError(f"{cls.NAME}.{item.name}: not a list of strings")
            values[item.name] = tuple(value)
        elif type(value) is _SCALARS[str(item.type)]:
            if item.name in _NAMES and not _is_name(value):
                raise ValueError(f"{cls.NAME}.{item.name}: not a name")
            values[item.name] = value
        else:
            raise ValueError(f"{cls.NAME}.{item.name}: not of type {item.type}")
    return cls(**values)


def _is_name(value: object) -> bool:
    """Whether a path that it is a part of leads nowhere else.

    The journal is the broker's own. But ``--return-leases`` undoes what it says without the unit's
    sandbox, and a broker that was taken over within that could have written it.
    """
    return isinstance(value, str) and not {"/", "\0"} & set(value) and value not in (".", "..")


def carry_out(todo: Sequence[Step], done: list[Step], host: Host, save: Callable[[], None]) -> None:
    """Run ``todo`` in order; all of it is in ``done``, and ``save`` has written it, *before* the
    first is run. What the steps learnt is in ``done`` afterwards; writing that is the caller's.

    :raise BrokerError: a step or the journal failed; everything was undone, and ``done`` holds only
        what could not be.
    """
    doing = "write the journal below /run"
    done[:] = todo
    try:
        save()
        for number, step in enumerate(todo):
            doing = step.describe()
            done[number] = step.execute(host)
    except Exception as error:
        done[:] = take_back(done, host)
        if isinstance(error, BrokerError):
            raise
        log.exception("step failed: %s", doing)
        raise HostFailure(f"the host refused to {doing}") from error


def take_back(done: list[Step], host: Host) -> list[Step]:
    """Undo ``done``, last first, and empty it. One that fails does not stop the others.

    :return: the steps whose undo failed, for the journal to keep. :attr:`Host.waiting` tells
        whether one will go when somebody lets go of it.
    """
    stuck: list[Step] = []
    while done:
        step = done.pop()
        try:
            step.undo(host)
        except Busy as error:
            log.info("not yet: %s: %s", step.describe_undo(), error)
            host.waiting.append(step)
            stuck.insert(0, step)
        except Exception:
            log.exception("undo failed: %s", step.describe_undo())
            stuck.insert(0, step)
    host.vfio.let_go()
    return stuck

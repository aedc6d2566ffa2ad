# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values of the broker's answers at the door: each has the type that is expected, or is an error.

An ``a{sv}`` is read by name and D-Bus type; what is missing or of another type is named. The
descriptors of an answer are handed out once each, and whoever asks for one that is not there is
told so.

What this never does: know what the values mean, or the bus. A variant is anything with a signature
and a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from .errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .descriptors import Fd

__all__ = ["Descriptors", "Fields", "Variant", "malformed", "read_rows"]


class Variant(Protocol):
    """A D-Bus variant as the library has it."""

    @property
    def signature(self) -> str:
        """The type of the value in D-Bus' notation."""

    @property
    def value(self) -> object:
        """The value."""


def malformed(what: str) -> BrokerUnavailableError:
    """Make the error for an answer that is not what the contract says."""
    return BrokerUnavailableError(
        "the broker's answer is not what its contract says",
        evidence=what,
        advice="install the same version of sessionvirt and sessionvirt-broker",
    )


class Fields:
    """One ``a{sv}`` of an answer, read by name and type.

    :param what: names it in errors: "grants[0]".
    """

    def __init__(self, values: object, what: str) -> None:
        if not isinstance(values, dict):
            raise malformed(f"{what} is not a dictionary")
        self._values = cast("dict[str, Variant]", values)
        self._what = what

    def _get(self, key: str, signature: str) -> object:
        variant = self._values.get(key)
        if variant is None:
            raise malformed(f"{self._what}: {key} is missing")
        if variant.signature != signature:
            raise malformed(f"{self._what}: {key} is of type {variant.signature}, not {signature}")
        return variant.value

    def text(self, key: str) -> str:
        """Return an ``s``, or the path of an ``o``."""
        return cast("str", self._get(key, "s"))

    def path(self, key: str) -> str:
        """Return an ``o``."""
        return cast("str", self._get(key, "o"))

    def flag(self, key: str) -> bool:
        """Return a ``b``."""
        return cast("bool", self._get(key, "b"))

    def number(self, key: str, signature: str = "u") -> int:
        """Return a ``u`` or ``t``."""
        return cast("int", self._get(key, signature))

    def texts(self, key: str) -> tuple[str, ...]:
        """Return an ``as``."""
        return tuple(cast("list[str]", self._get(key, "as")))

    def numbers(self, key: str, signature: str) -> tuple[int, ...]:
        """Return an ``ah`` or the like."""
        return tuple(cast("list[int]", self._get(key, signature)))

    def counters(self, key: str) -> dict[str, int]:
        """Return an ``a{st}``."""
        return dict(cast("dict[str, int]", self._get(key, "a{st}")))

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        """Return an ``a(ss)``."""
        rows = cast("list[list[str]]", self._get(key, "a(ss)"))
        return tuple((first, second) for first, second in rows)

    def rows(self, key: str) -> tuple[Fields, ...]:
        """Return an ``aa{sv}``."""
        return read_rows(self._get(key, "aa{sv}"), f"{self._what}.{key}")

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return key in self._values


def read_rows(values: object, what: str) -> tuple[Fields, ...]:
    """Read an ``aa{sv}``."""
    if not isinstance(values, list):
        raise malformed(f"{what} is not an array")
    return tuple(Fields(row, f"{what}[{number}]") for number, row in enumerate(values))


class Descriptors:
    """The descriptors of one answer, handed out once each.

    Until :meth:`finish` they all belong to this object, also those that were handed out: an answer
    that turns out to be wrong at its end leaves nothing.
    """

    def __init__(self, fds: Sequence[Fd]) -> None:
        self._fds = list(fds)
        self._left = set(range(len(fds)))

    def take(self, index: int, what: str) -> Fd:
        """Return the descriptor that an ``h`` means.

        :raise BrokerUnavailableError: there is none, or it was handed out before.
        """
        if index >= len(self._fds):
            raise malformed(f"{what}: no descriptor came with it")
        if index not in self._left:
            raise malformed(f"{what}: its descriptor belongs to something else")
        self._left.remove(index)
        return self._fds[index]

    def finish(self) -> None:
        """Give away what was handed out; the answer is complete.

        :raise BrokerUnavailableError: more came than the answer speaks of.
        """
        if self._left:
            raise malformed(f"{len(self._left)} descriptors more than the answer speaks of")
        self._fds.clear()

    def close(self) -> None:
        """Close those that were not given away."""
        for fd in self._fds:
            fd.close()

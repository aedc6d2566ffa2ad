# SPDX-License-Identifier: LGPL-2.1-or-later
"""File descriptors with one owner.

A number is not a resource: it says neither who closes it nor whether it is still open. Whatever
this side receives or makes is put into an :class:`Fd` at once. The owner closes it, or gives it
away by
:meth:`Fd.steal`; after either, the object answers every use with ``ValueError`` and never with
somebody else's descriptor of the same number.

What this never does: duplicate, or decide about inheritance. Descriptors are close-on-exec; a child
gets those that its spawner names.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Fd"]


class Fd:
    """Owner of one open descriptor; a context manager that closes it.

    :param number: an open descriptor, which belongs to this object from now on.
    :raise ValueError: the number is negative.
    """

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        if number < 0:
            raise ValueError(f"not a file descriptor: {number}")
        self._number = number

    @classmethod
    def received(cls, number: int) -> Self:
        """Own a descriptor that came through a socket, which Python leaves inheritable.

        A child that another thread forks in between still gets it.
        """
        os.set_inheritable(number, False)  # noqa: FBT003 - positional only
        return cls(number)

    def __repr__(self) -> str:
        return f"<Fd {self._number}>" if self._number >= 0 else "<Fd closed>"

    @property
    def closed(self) -> bool:
        """Whether it was closed or given away."""
        return self._number < 0

    def fileno(self) -> int:
        """Return the number, for a call that borrows it.

        :raise ValueError: it was closed or given away.
        """
        if self._number < 0:
            raise ValueError("the descriptor was closed or given away")
        return self._number

    def steal(self) -> int:
        """Give the descriptor away: the caller owns the number that is returned.

        :raise ValueError: it was closed or given away before.
        """
        number = self.fileno()
        self._number = -1
        return number

    def close(self) -> None:
        """Close it, unless that was done or it was given away."""
        if self._number >= 0:
            os.close(self.steal())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which lease somebody means by a machine's name, or by the beginning of the lease's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessionvirt.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from sessionvirt.broker_data import LeaseInfo

__all__ = ["find_lease", "leases_called"]


def leases_called(word: str, leases: tuple[LeaseInfo, ...]) -> LeaseInfo | None:
    """The one that is meant; None: there is none.

    :raise UsageError: there are several.
    """
    found = {one.lease: one for one in leases if one.vm == word or one.name.startswith(word)}
    if len(found) > 1:
        rows = "\n".join(f"{one.name}  {one.vm} (uid {one.uid})" for one in found.values())
        raise UsageError(f"'{word}' is not the only one", evidence=rows, advice="write more of it")
    return next(iter(found.values()), None)


def find_lease(word: str, leases: tuple[LeaseInfo, ...]) -> LeaseInfo:
    """The same.

    :raise NotFoundError: there is none.
    """
    found = leases_called(word, leases)
    if found is None:
        raise NotFoundError(
            f"you have no lease or machine '{word}'",
            advice="'sessionvirt leases' lists yours, 'sudo sessionvirt leases' everybody's",
        )
    return found

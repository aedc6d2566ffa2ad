# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which lease somebody means by a machine's name, or by the beginning of the lease's own, and
which interface of it by a number or a MAC address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessionvirt.broker_data import TapGrant
from sessionvirt.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

    from sessionvirt.broker_data import LeaseInfo

__all__ = ["find_interface", "find_lease", "find_running", "leases_called"]


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


def find_running(word: str, leases: tuple[LeaseInfo, ...]) -> LeaseInfo:
    """The lease of a machine that runs. Another user's is the broker's to refuse.

    :raise NotFoundError: there is none.
    :raise UsageError: there are several.
    """
    found = leases_called(word, tuple(one for one in leases if one.state == "held"))
    if found is None:
        raise NotFoundError(
            f"no machine of yours {word!a} runs with an interface of the broker's",
            advice="'sessionvirt leases' lists those that do",
        )
    return found


def find_interface(
    lease: LeaseInfo, which: str | None, kinds: Collection[str] = ("tap", "direct")
) -> TapGrant:
    """The TAP that is meant, which need not be said where there is one.

    :param which: its number among these, from 0, or its MAC address.
    :param kinds: what can be meant.
    :raise NotFoundError: there is none.
    :raise UsageError: there are several, and none was named.
    """
    taps = [one for one in lease.grants if isinstance(one, TapGrant) and one.kind in kinds]
    rows = "\n".join(
        f"{n}  {tap.mac}  {tap.network or tap.bridge or tap.device}" for n, tap in enumerate(taps)
    )
    if which is None and len(taps) > 1:
        raise UsageError(
            f"'{lease.vm}' has several interfaces",
            evidence=rows,
            advice="write --interface and the number or MAC address of one",
        )
    for number, tap in enumerate(taps):
        if which is None or which.lower() in (str(number), tap.mac):
            return tap
    raise NotFoundError(f"'{lease.vm}' has no such interface", evidence=rows or "it has none")

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Something that rests on a TAP takes the place of the former, while the machine runs.

The lease is the broker's, so whoever has its path may: the program that runs the machine, or
another of the same user. The new one is taken first and is in force then, and the former ones are
given back after it, so at no time is there none. Of two who do this at the same time each leaves
alone what was taken after its own: else each could give back the other's, and there were none.

What this never does: know what it is, or QEMU, which has no part in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sessionvirt.errors import BusyError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sessionvirt.broker_client import BrokerClient
    from sessionvirt.broker_data import Grant, LeaseInfo
    from sessionvirt.broker_requests import Request

__all__ = ["replace"]

#: How often the former ones are looked for, where somebody else changes them at the same time.
_LOOKS: Final = 3


async def replace(
    client: BrokerClient,
    lease: str,
    former: Callable[[LeaseInfo], Sequence[Grant]],
    request: Request | None,
    *,
    interactive: bool,
) -> None:
    """Have this be there, and nothing of what was there before it.

    :param lease: an object path.
    :param former: what a lease has of it, oldest first; the last one is in force.
    :param request: None: there is none any more.
    :raise BusyError: somebody else does the same, again and again.
    :raise SessionvirtError: whatever the broker says. Then the former one is in force.
    """
    kept = ""
    if request is not None:
        (grant,) = await client.add(lease, (request,), interactive=interactive)
        kept = grant.id
    for _ in range(_LOOKS):
        leases = [info for info in await client.leases() if info.lease == lease]
        rest = [one.id for info in leases for one in former(info)]
        if kept:
            # Where ours is gone, somebody who came later has put theirs, or none, in its place.
            rest = rest[: rest.index(kept)] if kept in rest else []
        if not rest:
            return
        try:
            await client.drop(lease, rest)
        except NotFoundError:
            continue  # then none of them was given back
        return
    raise BusyError("somebody else changes the same interface at the same time")

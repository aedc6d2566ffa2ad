# SPDX-License-Identifier: LGPL-2.1-or-later
"""The limit of an interface's traffic, changed while its machine runs.

The lease is the broker's, so whoever has its path may: the program that runs the machine, or
another of the same user. The new limit is taken first and is in force then, and the former ones are
given back after it, so at no time is there none.

What this never does: know QEMU, which has no part in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sessionvirt.errors import BusyError, NotFoundError

if TYPE_CHECKING:
    from sessionvirt.broker_client import BrokerClient
    from sessionvirt.broker_requests import Rate

__all__ = ["set_limit"]

#: How often the former ones are looked for, where somebody else changes them at the same time.
_LOOKS: Final = 3


async def set_limit(
    client: BrokerClient,
    lease: str,
    tap: str,
    inbound: Rate | None,
    outbound: Rate | None,
    *,
    interactive: bool,
) -> None:
    """Have a TAP's limit be this, and no other.

    :param lease: an object path.
    :param tap: the TAP's id in it.
    :param inbound: what the guest receives; None: as much as comes. Likewise ``outbound``.
    :raise SessionvirtError: whatever the broker says. Then the former limit is in force.
    """
    from sessionvirt.broker_requests import BandwidthRequest

    kept = ""
    if inbound is not None or outbound is not None:
        request = BandwidthRequest(tap, inbound, outbound)
        (grant,) = await client.add(lease, (request,), interactive=interactive)
        kept = grant.id
    for _ in range(_LOOKS):
        former = [one for one in await _limits(client, lease, tap) if one != kept]
        if not former:
            return
        try:
            await client.drop(lease, former)
        except NotFoundError:
            continue  # then none of them was given back
        return
    raise BusyError(f"somebody else changes the limit of {tap} at the same time")


async def _limits(client: BrokerClient, lease: str, tap: str) -> list[str]:
    from sessionvirt.broker_data import BandwidthGrant

    found = [info for info in await client.leases() if info.lease == lease]
    grants = [grant for info in found for grant in info.grants]
    return [one.id for one in grants if isinstance(one, BandwidthGrant) and one.tap == tap]

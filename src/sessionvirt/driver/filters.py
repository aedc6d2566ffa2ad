# SPDX-License-Identifier: LGPL-2.1-or-later
"""The filters of guests that run: the new one holds before the former goes.

Any connection of the lease's user may change them, so a command needs no word with the driver.

What this never does: leave an interface without its filter for a moment (``replacing.py``), or keep
what it has found out; the broker is asked each time.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sessionvirt.errors import NotFoundError
from sessionvirt.model.filter import GuestFilter

from .replacing import replace

if TYPE_CHECKING:
    from sessionvirt.broker_client import BrokerClient
    from sessionvirt.broker_data import FilterGrant
    from sessionvirt.broker_requests import FilterRequest

__all__ = ["exchange", "filter_request", "of_grant"]


def filter_request(tap: str, wanted: GuestFilter) -> FilterRequest:
    """What is asked for.

    :param tap: the id of the TAP's grant.
    """
    from sessionvirt.broker_requests import FilterRequest

    return FilterRequest(tap, **dataclasses.asdict(wanted))


def of_grant(grant: FilterGrant) -> GuestFilter:
    """What is held."""
    names = (item.name for item in dataclasses.fields(GuestFilter))
    return GuestFilter(**{name: getattr(grant, name) for name in names})


async def exchange(client: BrokerClient, lease: str, tap: str, lists: GuestFilter) -> GuestFilter:
    """Put these lists in place of an interface's; what a ``<filterref>`` said of it stays.

    :param lease: its object path.
    :param tap: the id of the TAP's grant.
    :param lists: empty: none any more.
    :return: what holds now.
    :raise NotFoundError: the lease has no such TAP.
    :raise SessionvirtError: whatever the broker says; the former filter holds then.
    """
    found = [one for one in await client.leases() if one.lease == lease]
    if not found or not any(grant.id == tap for grant in found[0].grants):
        raise NotFoundError(
            "the machine has no such interface any more",
            advice="'sessionvirt leases' shows what it has",
        )
    former = found[0].filters(tap)
    words = of_grant(former[-1]) if former else GuestFilter()
    wanted = words.with_lists(lists)
    request = None if wanted.is_empty else filter_request(tap, wanted)
    await replace(client, lease, lambda info: info.filters(tap), request, interactive=False)
    return wanted

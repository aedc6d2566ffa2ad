# SPDX-License-Identifier: LGPL-2.1-or-later
"""The limit of an interface's traffic, changed while its machine runs.

What this never does: leave an interface without its limit for a moment (``replacing.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .replacing import replace

if TYPE_CHECKING:
    from sessionvirt.broker_client import BrokerClient
    from sessionvirt.broker_requests import Rate

__all__ = ["set_limit"]


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

    request = None
    if inbound is not None or outbound is not None:
        request = BandwidthRequest(tap, inbound, outbound)
    await replace(client, lease, lambda info: info.limits(tap), request, interactive=interactive)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ports that are published, and no longer, while a machine runs: by its lease, from any process of
its user. A program that runs the machine and one that only knows its name do the same here.

What this never does: remember what is published. The broker does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessionvirt.broker_data import PublishGrant, TapGrant
from sessionvirt.errors import NotFoundError, UsageError

from .lease import publish_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sessionvirt.broker_client import BrokerClient
    from sessionvirt.broker_data import LeaseInfo
    from sessionvirt.model.portforward import Ports

__all__ = ["choose_tap", "held_lease", "publish", "unpublish", "words"]


async def held_lease(client: BrokerClient, path: str) -> LeaseInfo:
    """The lease with an object path, as it is now.

    :raise NotFoundError: there is none.
    """
    for one in await client.leases():
        if one.lease == path:
            return one
    raise NotFoundError(
        "the machine holds nothing of this host any more",
        advice="ports are published for machines on managed networks: --network NAME",
    )


def choose_tap(lease: LeaseInfo, which: str | None) -> TapGrant:
    """The interface that ports lead to.

    :param which: its number among the lease's, its MAC address, or the id of its grant; None: the
        first one on a managed network.
    :raise NotFoundError: there is none.
    """
    taps = [grant for grant in lease.grants if isinstance(grant, TapGrant)]
    for number, tap in enumerate(taps):
        if which is None and tap.network:
            return tap
        if which is not None and which.lower() in (str(number), tap.mac, tap.id):
            return tap
    had = ", ".join(f"{n} ({tap.mac} on {_place(tap)})" for n, tap in enumerate(taps))
    raise NotFoundError(
        f"{lease.vm} has no interface {which}"
        if which is not None
        else f"{lease.vm} has no interface on a managed network",
        evidence=f"it has {had or 'none of this host'}",
        advice="name one by its number or MAC address"
        if which is not None
        else "start it with --network NAME; a guest on the LAN itself is reached by its address",
    )


def _place(tap: TapGrant) -> str:
    return tap.network or tap.bridge or tap.device


async def publish(
    client: BrokerClient, lease: str, tap: str, ports: Sequence[Ports], *, interactive: bool
) -> tuple[PublishGrant, ...]:
    """Publish ports; all or none.

    :param lease: an object path.
    :param tap: the id of the grant that they lead to.
    :param interactive: the broker may show a prompt.
    :raise SessionvirtError: whatever the broker says.
    """
    requests = [publish_request(tap, one) for one in ports]
    grants = await client.add(lease, requests, interactive=interactive)
    return tuple(grant for grant in grants if isinstance(grant, PublishGrant))


async def unpublish(
    client: BrokerClient, lease: LeaseInfo, wanted: Sequence[tuple[str, str | None, int]]
) -> tuple[PublishGrant, ...]:
    """Publish no longer what begins at a port of the host; all or none.

    :param wanted: protocol, address (None: whichever), and first port of each.
    :return: what was given back.
    :raise NotFoundError: it is not published.
    :raise UsageError: it is on several addresses.
    """
    grants = [grant for grant in lease.grants if isinstance(grant, PublishGrant)]
    dropped: list[PublishGrant] = []
    for protocol, address, port in wanted:
        found = [
            grant
            for grant in grants
            if (grant.protocol, grant.host_port) == (protocol, port)
            and address in (None, grant.address)
        ]
        told = "\n".join(words(grant) for grant in found or grants)
        if not found:
            raise NotFoundError(
                f"{lease.vm} publishes nothing that begins at {protocol} port {port}",
                evidence=told or "it publishes nothing",
                advice="'sessionvirt leases' lists what it does",
            )
        if len(found) > 1:
            raise UsageError(
                f"{lease.vm} publishes {protocol} port {port} on several addresses",
                evidence=told,
                advice="write the address before it: 127.0.0.1:8080",
            )
        dropped += found
    await client.drop(lease.lease, list(dict.fromkeys(grant.id for grant in dropped)))
    return tuple(dropped)


def words(grant: PublishGrant) -> str:
    """``127.0.0.1:8080 -> 10.213.80.2:80/tcp``, for people."""
    last = grant.ports - 1
    host, guest = (
        f"{first}-{first + last}" if last else str(first)
        for first in (grant.host_port, grant.guest_port)
    )
    where = f"[{grant.address}]" if ":" in grant.address else grant.address or "*"
    targets = ",".join(f"[{one}]" if ":" in one else one for one in grant.guest)
    return f"{where}:{host} -> {targets}:{guest}/{grant.protocol}"

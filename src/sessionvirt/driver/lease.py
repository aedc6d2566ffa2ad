# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a start asks of the broker: TAP devices and the host's devices, and memory to lock.

Everything that is asked for is one Acquire, so at most one prompt. Where a domain needs nothing,
the broker is not asked, and its client is not even imported.

What this never does: decide what is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessionvirt.errors import LaunchError, SessionvirtError, UsageError
from sessionvirt.model.filter import NO_FILTER
from sessionvirt.model.needs import NeedKind, needs, pci_needs
from sessionvirt.qemu.process import describe_exit

from .filters import filter_request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sessionvirt.broker_client import BrokerClient
    from sessionvirt.broker_requests import (
        BandwidthRequest,
        DirectRequest,
        FilterRequest,
        PublishRequest,
        Rate,
        Request,
        TapRequest,
    )
    from sessionvirt.model.bandwidth import BandwidthRate
    from sessionvirt.model.domain import Domain
    from sessionvirt.model.filter import GuestFilter
    from sessionvirt.model.needs import Need
    from sessionvirt.model.portforward import Ports
    from sessionvirt.qemu.process import Child

__all__ = [
    "broker_requests", "connect_broker", "let_lock_memory", "publish_request", "rate_of",
    "tap_request",
]  # fmt: skip


async def connect_broker(bus_address: str | None) -> BrokerClient:
    """Connect to the broker, whose client is imported now.

    :raise BrokerUnavailableError: there is no bus.
    """
    from sessionvirt.broker_client import BrokerClient

    return await BrokerClient.connect(bus_address)


def broker_requests(
    domain: Domain,
    *,
    with_group: bool = False,
    fds: bool = False,
    vhost: bool = False,
    lists: GuestFilter = NO_FILTER,
) -> tuple[Request, ...]:
    """Return what the broker has to be asked for, TAPs first; empty: it need not be asked.

    :param with_group: with each device of the host all others of its isolation group may go along.
    :param fds: QEMU takes the devices as descriptors. They are asked for so where the answer can
        carry them with everything else.
    :param vhost: the kernel is to move packets where a document is silent about it. Its descriptors
        are asked for as long as there is room for more: they make a machine faster, not another.
    :param lists: of a filter, for each interface that is the broker's.
    """
    taps = [need for need in needs(domain) if need.kind is NeedKind.TAP]
    _refuse_unfiltered(taps, lists)
    devices = pci_needs(domain)
    if not taps and not devices:
        return ()
    from sessionvirt.broker_requests import (
        FDS_PER_ANSWER,
        FDS_PER_DEVICE,
        PciRequest,
    )

    # And the hold.
    needed = 1 + sum(need.queues for need in taps) + FDS_PER_DEVICE * len(devices)
    as_descriptors = fds and needed <= FDS_PER_ANSWER
    left = FDS_PER_ANSWER - needed
    if devices and not as_descriptors:
        left += FDS_PER_DEVICE * len(devices)
    asked: list[TapRequest | DirectRequest] = []
    for need in taps:
        asked.append(tap_request(need, vhost=vhost, room=left))
        left -= asked[-1].descriptors - need.queues
    return (
        *asked,
        *(
            PciRequest(
                address=str(need.address),
                with_group=with_group,
                also=tuple(map(str, need.also)),
                managed=need.managed,
                fds=as_descriptors,
                driver=need.driver,
                mac=need.mac,
                vlan=need.vlan,
            )
            for need in devices
        ),
        *_limits(taps),
        *_filters(taps, lists),
        *_published(taps),
    )


def _limits(taps: Sequence[Need]) -> Iterator[BandwidthRequest]:
    """How much these receive and send; a TAP's grant is called by its place in the call."""
    from sessionvirt.broker_requests import BandwidthRequest

    for place, need in enumerate(taps):
        if need.inbound is not None or need.outbound is not None:
            yield BandwidthRequest(f"tap{place}", rate_of(need.inbound), rate_of(need.outbound))


def _published(taps: Sequence[Need]) -> Iterator[PublishRequest]:
    """What of the host leads to these; a TAP's grant is called by its place in the call."""
    for number, need in enumerate(taps):
        for ports in need.ports:
            yield publish_request(f"tap{number}", ports)


def publish_request(tap: str, ports: Ports) -> PublishRequest:
    """What is asked for ports.

    :param tap: the id of the grant that they lead to.
    """
    from sessionvirt.broker_requests import PublishRequest

    return PublishRequest(
        tap=tap,
        protocol=ports.protocol.value,
        host_port=ports.host,
        guest_port=ports.guest,
        ports=ports.count,
        address=ports.address,
    )


def rate_of(said: BandwidthRate | None) -> Rate | None:
    """A rate of a definition as the broker is told it."""
    if said is None or not said.average:
        return None
    from sessionvirt.broker_requests import Rate

    return Rate(said.average, said.peak or 0, said.burst or 0)


def _refuse_unfiltered(taps: Sequence[Need], lists: GuestFilter) -> None:
    """Lists that nothing would look at must not be taken for granted.

    :raise UsageError: an interface has no place for a filter.
    """
    if lists.is_empty or (taps and all(need.device is None for need in taps)):
        return
    raise UsageError(
        "a filter is for an interface on a managed network or a bridge",
        evidence="the machine has none" if not taps else "the machine shares an interface",
        advice="write --network or --bridge, or leave the lists out",
    )


def _filters(taps: Sequence[Need], lists: GuestFilter) -> Iterator[FilterRequest]:
    """What each guest may not; a TAP's grant is called by its place in the call."""
    for number, need in enumerate(taps):
        wanted = need.filter.with_lists(lists)
        if not wanted.is_empty:
            yield filter_request(f"tap{number}", wanted)


def tap_request(need: Need, *, vhost: bool, room: int) -> TapRequest | DirectRequest:
    """What is asked for an interface on a network, a bridge or an interface of the host's.

    :param vhost: as of :func:`broker_requests`.
    :param room: how many descriptors more than the queues the answer can carry.
    """
    from sessionvirt.broker_requests import DirectRequest, TapRequest

    wanted = vhost if need.vhost is None else need.vhost
    if need.device is not None and need.mode is not None:
        return DirectRequest(
            device=need.device,
            mode=need.mode,
            mac=need.mac,
            queues=need.queues,
            vhost=wanted and need.queues <= room,
            name=need.name,
        )
    return TapRequest(
        network=need.network,
        bridge=need.bridge,
        vlan=need.vlan,
        isolated=need.isolated,
        mac=need.mac,
        queues=need.queues,
        vhost=wanted and need.queues <= room,
        name=need.name,
    )


async def let_lock_memory(child: Child, lease: str, amount: int, bus_address: str | None) -> None:
    """Let a held child lock memory, which QEMU needs before it runs.

    To be called right after the spawn, before the event loop could have seen the child's end.

    :param lease: the object path of a lease with a device of the host.
    :param amount: bytes.
    :param bus_address: of the system bus; by default the usual one.
    :raise LaunchError: the child has ended.
    :raise SessionvirtError: whatever the broker says. The child is left to the caller.
    """
    with child.duplicate_pidfd() as process:
        try:
            async with await connect_broker(bus_address) as client:
                await client.lock_memory(lease, process.fileno(), amount)
        except SessionvirtError as error:
            if child.returncode is None:
                raise
            raise LaunchError(
                f"what was to be QEMU {describe_exit(child.returncode)} before it was",
                exit_code=child.returncode,
                command=child.command,
                stderr=child.stderr,
            ) from error

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which limits each TAP has: the newest that is held is the one in force.

A TAP may have several for the moment in which one takes another's place: the new one is added, then
the former given back, and at no time is there none. Whichever goes, the newest of the others is in
force. Two directions, two mechanisms: what the guest receives is queued (``htb.py``), what it sends
is policed (``policer.py``).

Worker thread. Nothing here says who may have which limit.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import HostFailure, NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .htb import Rate
    from .netlink import Links
    from .policer import Policer

__all__ = ["TapLimits", "Throttle"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TapLimits:
    """One grant's.

    :param number: the grant's, by which two that say the same are told apart.
    :param ifindex: the TAP's; 0: not known, and looked up by its name.
    :param inbound: what the guest receives; None: as much as comes. Likewise ``outbound``.
    """

    ifname: str
    number: int
    ifindex: int
    inbound: Rate | None
    outbound: Rate | None


class Throttle:
    """The limits of every TAP, oldest first."""

    def __init__(self) -> None:
        self._held: dict[str, list[TapLimits]] = {}

    def adopt(self, limits: Iterable[TapLimits], links: Links, policer: Policer) -> None:
        """Take over what a former broker left, each TAP's in the order in which they came.

        What somebody has taken away meanwhile is there again afterwards.
        """
        self._held = {}
        for one in limits:
            self._held.setdefault(one.ifname, []).append(one)
        newest = [held[-1] for held in self._held.values()]
        policer.adopt({one.ifname: one.outbound for one in newest if one.outbound})
        for one in newest:
            try:
                _queue(one, links)
            except Exception:  # whatever one TAP is about, the broker starts
                log.exception("cannot limit %s again", one.ifname)

    def add(self, limits: TapLimits, links: Links, policer: Policer) -> None:
        """Put a TAP's newest limits in force.

        :raise NotSupported: this kernel cannot.
        """
        self._held.setdefault(limits.ifname, []).append(limits)
        _enforce(limits, links, policer)

    def remove(self, limits: TapLimits, links: Links, policer: Policer) -> None:
        """Forget some of a TAP's limits; absent is in order, and so is that the TAP is gone."""
        held = self._held.get(limits.ifname, [])
        left = [one for one in held if one.number != limits.number]
        if not left:
            with contextlib.suppress(OSError):  # it is gone, and so is what queued for it
                links.unlimited(limits.ifindex or links.index_of(limits.ifname))
            policer.remove(limits.ifname)
            self._held.pop(limits.ifname, None)  # only now: else another try would do nothing
            return
        if held[-1] != left[-1] and links.by_index(left[-1].ifindex) is not None:
            _enforce(left[-1], links, policer)
        self._held[limits.ifname] = left

    def in_force(self, limits: TapLimits) -> bool:
        """Whether these are their TAP's newest."""
        held = self._held.get(limits.ifname, [])
        return bool(held) and held[-1].number == limits.number


def _enforce(limits: TapLimits, links: Links, policer: Policer) -> None:
    _queue(limits, links)
    if limits.outbound is None:
        policer.remove(limits.ifname)
        return
    try:
        policer.set_rate(limits.ifname, limits.outbound)
    except HostFailure as error:
        raise NotSupported(
            "outbound: the host refused to limit what a guest sends; it takes nf_tables with"
            " nft_limit and the ingress hook of netdev"
        ) from error


def _queue(limits: TapLimits, links: Links) -> None:
    if limits.inbound is None:
        links.unlimited(limits.ifindex)
        return
    try:
        links.limit(limits.ifindex, limits.inbound)
    except FileNotFoundError as error:
        raise NotSupported(
            "inbound: this host's kernel has no htb (sch_htb), which limits what a guest receives"
        ) from error

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``<bandwidth>`` inside ``<interface>``: how much a guest receives and sends in a second.

Names, values and meanings are those of libvirt's formatnetwork.rst, "Quality of service". Its
``floor``, a guaranteed rate, needs a network whose whole traffic is shaped, which there is none of
here: it is reported as not understood. Its ``peak`` of ``<outbound>``, which libvirt ignores, is
kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sessionvirt.xmlmap import Element, attr, child, mapped
from sessionvirt.xmlvalues import Integer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Bandwidth", "BandwidthRate", "check_bandwidth"]

#: What the broker takes: 32 Gbit/s, in 1000 bytes a second; 1 GiB, in KiB; so many seconds' worth.
_MOST_RATE: Final = 4_000_000
_MOST_BURST: Final = 1 << 20
_BURST_SECONDS: Final = 240


@mapped
class BandwidthRate(Element):
    """``<inbound>`` or ``<outbound>``.

    :param average: in 1000 bytes a second (tc's kbps); None or 0: no limit.
    :param peak: how fast a burst is, likewise; None: as fast as the average.
    :param burst: in KiB (tc's kb).
    """

    average: int | None = attr("@average", Integer(0, 1 << 63))
    peak: int | None = attr("@peak", Integer(0, 1 << 63))
    burst: int | None = attr("@burst", Integer(0, 1 << 63))


@mapped
class Bandwidth(Element):
    """``<bandwidth>``; what is left out is not limited."""

    inbound: BandwidthRate | None = child("inbound", BandwidthRate)
    outbound: BandwidthRate | None = child("outbound", BandwidthRate)

    @property
    def rates(self) -> Iterator[BandwidthRate]:
        """Those that limit something."""
        yield from (one for one in (self.inbound, self.outbound) if one and one.average)


def check_bandwidth(bandwidth: Bandwidth) -> None:
    """Refuse what the broker would.

    :raise DefinitionError: as of :func:`.check.check_domain`.
    """
    for rate in (bandwidth.inbound, bandwidth.outbound):
        if rate is not None and not rate.average and (rate.peak or rate.burst):
            rate.where.refuse("has no average", "Write average='1000' for 1 MB a second.")
    for rate in bandwidth.rates:
        average = rate.average or 0
        for name, value in (("average", average), ("peak", rate.peak or 0)):
            if value > _MOST_RATE:
                rate.at(f"@{name}").refuse(
                    f"{value} kB a second is more than there can be",
                    f"Write at most {_MOST_RATE}, or leave the limit out.",
                )
        if rate.peak and rate.peak < average:
            rate.at("@peak").refuse("is less than the average", "Write more, or leave it out.")
        if (rate.burst or 0) * 1024 > average * 1000 * _BURST_SECONDS or (
            (rate.burst or 0) > _MOST_BURST
        ):
            rate.at("@burst").refuse(
                f"is more than {_BURST_SECONDS} seconds of the average, or than 1 GiB",
                "Write less; it is in KiB.",
            )

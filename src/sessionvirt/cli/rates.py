# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rates as people write and read them: "10M" is 10 megabytes a second, and so is "80Mbit".

The units are decimal, as of tc(8) and of libvirt's ``<bandwidth>``, whose number is 1000 bytes a
second. A burst is a size, in KiB there, and binary here.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from sessionvirt.broker_requests import Rate
from sessionvirt.errors import UsageError

if TYPE_CHECKING:
    from sessionvirt.broker_data import BandwidthGrant

__all__ = ["limit_words", "parse_rate", "rate_words"]

_NUMBER: Final = r"([0-9]{1,7}(?:\.[0-9]{1,3})?)"
_RATE: Final = re.compile(_NUMBER + r"([KkMG])(bit)?")
_SIZE: Final = re.compile(_NUMBER + r"([KkMG])")
#: In thousands.
_DECIMAL: Final = {"k": 1, "K": 1, "M": 1000, "G": 1000_000}
_BINARY: Final = {"k": 1, "K": 1, "M": 1 << 10, "G": 1 << 20}
#: What the broker takes, in 1000 bytes a second and KiB.
_MOST_RATE: Final = 4_000_000
_MOST_BURST: Final = 1 << 20


def parse_rate(option: str, text: str) -> Rate:
    """Read ``RATE[,peak=RATE][,burst=SIZE]``.

    :param option: what it was said to, for the error.
    :raise UsageError: it is something else, or more than the broker takes.
    """
    first, *rest = text.split(",")
    found = {"average": _thousands(option, first)}
    for part in rest:
        key, _, value = part.partition("=")
        if key not in ("peak", "burst") or key in found:
            raise _wrong(option, part)
        read = _thousands if key == "peak" else _kibibytes
        found[key] = read(option, value)
    rate = Rate(**found)
    if rate.peak and rate.peak < rate.average:
        raise UsageError(f"{option}: a peak below the average", advice="leave peak= out")
    return rate


def _thousands(option: str, text: str) -> int:
    match = _RATE.fullmatch(text)
    if match is None:
        raise _wrong(option, text)
    number = Decimal(match[1]) * _DECIMAL[match[2]] / (8 if match[3] else 1)
    return _whole(option, text, number, _MOST_RATE)


def _kibibytes(option: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise _wrong(option, text)
    return _whole(option, text, Decimal(match[1]) * _BINARY[match[2]], _MOST_BURST)


def _whole(option: str, text: str, number: Decimal, most: int) -> int:
    if not 1 <= number <= most:
        raise UsageError(
            f"{option}: {text} is less or more than there can be",
            advice="write from 1K to 4G; a burst from 1K to 1G",
        )
    return int(number)


def _wrong(option: str, text: str) -> UsageError:
    return UsageError(
        f"{option}: {text[:40]!a} is no rate",
        advice="write bytes a second, like 512K or 10M, or bits, like 80Mbit; "
        "then ,peak=20M or ,burst=1M, if need be",
    )


def rate_words(rate: Rate) -> str:
    """In bytes and bits a second: "10 MB/s (80 Mbit/s)"."""
    words = f"{_scaled(rate.average)}B/s ({_scaled(rate.average * 8)}bit/s)"
    if rate.peak:
        words += f", peak {_scaled(rate.peak)}B/s"
    if rate.burst:
        words += f", burst {rate.burst} KiB"
    return words


def limit_words(grant: BandwidthGrant) -> str:
    """Both directions, as the guest sees them."""
    ways = (("in", grant.inbound), ("out", grant.outbound))
    return "; ".join(f"{way} {rate_words(rate)}" for way, rate in ways if rate is not None)


def _scaled(thousands: int) -> str:
    """ "512 k", "1.5 M": exact, as it was asked for."""
    amount, prefix = Decimal(thousands), "k"
    for following in "MG":
        if amount < 1000:
            break
        amount, prefix = amount / 1000, following
    return f"{amount.normalize():f} {prefix}"

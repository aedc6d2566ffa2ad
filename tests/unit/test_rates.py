# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rates as people write and read them."""

from __future__ import annotations

import pytest

from sessionvirt.broker_data import BandwidthGrant
from sessionvirt.broker_requests import Rate
from sessionvirt.cli.rates import limit_words, parse_rate, rate_words
from sessionvirt.errors import UsageError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("512K", Rate(512)),
        ("512k", Rate(512)),
        ("10M", Rate(10_000)),
        ("80Mbit", Rate(10_000)),
        ("1.5M", Rate(1500)),
        ("100kbit", Rate(12)),
        ("4G", Rate(4_000_000)),
        ("10M,peak=20M,burst=1M", Rate(10_000, 20_000, 1024)),
        ("10M,burst=64K", Rate(10_000, 0, 64)),
    ],
)
def test_what_is_written_is_read(text: str, rate: Rate) -> None:
    assert parse_rate("--limit-inbound", text) == rate


@pytest.mark.parametrize(
    "text",
    [
        *("", "10", "10m", "10MB", "M", "-1M", "1e3M", "0K", "7kbit", "4.001G", "٣M", "1M\n"),
        *("1M,", "1M,peak", "1M,peak=1", "1M,average=2M", "1M,peak=2M,peak=2M", "1M,peak=999K"),
        *("1M,burst=2G", "1M,burst=8Mbit", "1M,floor=1M"),
    ],
)
def test_what_is_no_rate_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--limit-inbound: "):
        parse_rate("--limit-inbound", text)


def test_it_is_shown_in_bytes_and_bits() -> None:
    assert rate_words(Rate(512)) == "512 kB/s (4.096 Mbit/s)"
    assert rate_words(Rate(4_000_000)) == "4 GB/s (32 Gbit/s)"
    words = rate_words(Rate(1000, 1500, 64))
    assert words == "1 MB/s (8 Mbit/s), peak 1.5 MB/s, burst 64 KiB"
    grant = BandwidthGrant("bandwidth1", "bandwidth", "tap0", None, Rate(100))
    assert limit_words(grant) == "out 100 kB/s (800 kbit/s)"

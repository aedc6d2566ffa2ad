# SPDX-License-Identifier: LGPL-2.1-or-later
"""The default route as the kernel's tables have it; the lines are a real host's."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest

from sessionvirt.host.routes import has_default_route, rows

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
SUBNET4 = "up0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
DEFAULT4 = "up0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
HALF4 = "tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n"
ZERO = "0" * 32
REJECT6 = f"{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo\n"
DEFAULT6 = (
    f"{ZERO} 00 {ZERO} 00 20010db8000000000000000000000001"
    " 00000400 00000001 00000000 00000003      up0\n"
)


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "has"),
    [
        (HEAD, REJECT6, False),
        (HEAD + SUBNET4, "", False),
        (HEAD + HALF4, "", False),
        (HEAD + SUBNET4 + DEFAULT4, REJECT6, True),
        (HEAD, REJECT6 + DEFAULT6, True),
        ("", "nonsense\n", False),
    ],
)
def test_a_default_route(tmp_path: Path, ipv4: str, ipv6: str, *, has: bool) -> None:
    (tmp_path / "route").write_text(ipv4)
    (tmp_path / "ipv6_route").write_text(ipv6)
    assert has_default_route(proc=str(tmp_path)) is has


def test_a_routers_table_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "route"
    path.write_text(HEAD + DEFAULT4 + SUBNET4 * 20_000)
    tracemalloc.start()
    try:
        assert sum(row[1] == "00000000" for row in rows(str(path), 8)) == 1
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 2
    finally:
        tracemalloc.stop()


def test_a_host_without_ip(tmp_path: Path) -> None:
    assert not has_default_route(proc=str(tmp_path))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether this host has a way out: a default route of either family.

Source: proc_net(5), net/ipv4/fib_trie.c and net/ipv6/route.c for the columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["default_rows", "has_default_route", "rows"]


def has_default_route(*, proc: str = "/proc/net") -> bool:
    """Whether packets for strangers leave by some interface.

    :param proc: where ``route`` and ``ipv6_route`` are.
    """
    if any(True for _ in default_rows(f"{proc}/route")):
        return True
    # Destination and its length come first, the interface last. The kernel's own rejections of
    # everything are on lo.
    found = rows(f"{proc}/ipv6_route", 10)
    return any(row[0] == "0" * 32 and row[1] == "00" and row[9] != "lo" for row in found)


def default_rows(path: str) -> Iterator[list[str]]:
    """Of the table ``route`` of IPv4 the rows that are for every address."""
    # Interface, destination, gateway, flags, reference count, use, metric, mask.
    return (row for row in rows(path, 8) if row[1] == row[7] == "00000000")


def rows(path: str, columns: int) -> Iterator[list[str]]:
    """The rows of a table that are whole; none where it cannot be read.

    One at a time: a router's table has a million.
    """
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                row = line.split()
                if len(row) >= columns:
                    yield row
    except OSError:
        return

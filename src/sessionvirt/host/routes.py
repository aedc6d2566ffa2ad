# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether this host has a way out: a default route of either family.

Source: proc_net(5), net/ipv4/fib_trie.c and net/ipv6/route.c for the columns.
"""

from __future__ import annotations

__all__ = ["has_default_route", "rows"]


def has_default_route(*, proc: str = "/proc/net") -> bool:
    """Whether packets for strangers leave by some interface.

    :param proc: where ``route`` and ``ipv6_route`` are.
    """
    # Interface, destination, gateway, flags, reference count, use, metric, mask.
    if any(row[1] == row[7] == "00000000" for row in rows(f"{proc}/route", 8)):
        return True
    # Destination and its length come first, the interface last. The kernel's own rejections of
    # everything are on lo.
    found = rows(f"{proc}/ipv6_route", 10)
    return any(row[0] == "0" * 32 and row[1] == "00" and row[9] != "lo" for row in found)


def rows(path: str, columns: int) -> list[list[str]]:
    """Return the rows of a table that are whole; none where it cannot be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            rows = [line.split() for line in file]
    except OSError:
        return []
    return [row for row in rows if len(row) >= columns]

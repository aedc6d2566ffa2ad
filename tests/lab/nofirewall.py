# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's firewall where there is none: for tests of what knows it by a few calls only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

__all__ = ["no_firewall"]


def no_firewall(**parts: object) -> Any:
    """One that is told much, and does nothing.

    :param parts: what a test wants to see, in place of it.
    """

    def nothing(*_: object) -> None:
        pass

    told = ("adopt", "add_tap", "remove_tap", "forget_trace")
    others = {"drops": dict, "kept": tuple, "policer": SimpleNamespace(adopt=nothing)}
    return SimpleNamespace(**(dict.fromkeys(told, nothing) | others | parts))

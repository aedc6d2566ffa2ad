# SPDX-License-Identifier: LGPL-2.1-or-later
"""The firewall when nft refuses: what was not done is tried again. libnftables is a fake here."""

from __future__ import annotations

from typing import Any

import pytest

from sessionvirt_broker.errors import HostFailure
from sessionvirt_broker.firewall import Firewall
from sessionvirt_broker.ruleset import MARKER

pytestmark = pytest.mark.unit


class Nft:
    """Both tables are there; *refuses* is what it says of every change."""

    def __init__(self) -> None:
        self.refuses = False
        self.changes: list[Any] = []

    def cmd(self, _text: str) -> tuple[int, Any, str]:
        return int(self.refuses), "", "Device or resource busy"

    def json_cmd(self, commands: dict[str, list[dict[str, Any]]]) -> tuple[int, Any, str]:
        (first, *_) = commands["nftables"]
        if "list" in first:
            ((what, _),) = first["list"].items()
            listed: dict[str, list[Any]] = {
                "tables": [{"table": {"name": "sessionvirt"}}],
                "chains": [{"chain": {"table": "sessionvirt", "name": MARKER}}],
            }
            return 0, {"nftables": listed.get(what, [])}, ""
        if self.refuses:
            return 1, "", "Device or resource busy"
        self.changes.append(commands["nftables"])
        return 0, "", ""


def test_uplinks_that_nft_refused_are_restricted_by_the_next_try() -> None:
    """Between those the host would be a router else."""
    firewall, nft = Firewall(), Nft()
    firewall._context = nft
    nft.refuses = True
    with pytest.raises(HostFailure):
        firewall.set_uplinks(4, frozenset({2, 3}))
    nft.refuses = False
    firewall.set_uplinks(4, frozenset({2, 3}))
    ((_, added),) = nft.changes
    assert added["add"]["element"]["elem"] == [2, 3]
    firewall.set_uplinks(4, frozenset({2, 3}))
    assert len(nft.changes) == 1

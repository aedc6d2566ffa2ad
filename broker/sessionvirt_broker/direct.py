# SPDX-License-Identifier: LGPL-2.1-or-later
"""``[direct.NAME]`` of ``broker.toml``: an interface of the host's by which guests may join its LAN
without a bridge, and for whom nobody need be asked.

As in ``bridges.py``: it stands for the answer to a prompt, and for nothing that polkit refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from .bridges import read_permit
from .kind import NOBODY, Permit

if TYPE_CHECKING:
    from .tomlsource import Key, Source

KEYS = ("users", "groups", "modes")


class DirectMode(StrEnum):
    """How guests on one interface see each other (drivers/net/macvlan.c).

    "passthru" is none of them: it gives a guest the interface itself, and takes it from the host.
    """

    BRIDGE = "bridge"
    PRIVATE = "private"
    VEPA = "vepa"


@dataclass(frozen=True, slots=True)
class DirectInterface:
    """One interface that may be asked for.

    :param permit: for whom a prompt is answered already.
    """

    permit: Permit = NOBODY
    modes: frozenset[DirectMode] = frozenset(DirectMode)


def read_direct(name: str, body: dict[str, object], source: Source) -> DirectInterface:
    """One table.

    :raise ConfigurationError: it is wrong.
    """
    at = ("direct", name)
    source.only(body, at, *KEYS)
    return DirectInterface(read_permit(at, body, source), _modes((*at, "modes"), body, source))


def _modes(key: Key, body: dict[str, object], source: Source) -> frozenset[DirectMode]:
    value = body.get("modes", list(DirectMode))
    known = [mode.value for mode in DirectMode]
    if not isinstance(value, list) or not value or any(one not in known for one in value):
        raise source.wrong(
            key, 'must be a list of "bridge", "private" and "vepa", with one at least'
        )
    return frozenset(map(DirectMode, value))

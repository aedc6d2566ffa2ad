# SPDX-License-Identifier: LGPL-2.1-or-later
"""``[bridge.NAME]`` of ``broker.toml``: a bridge of the LAN, and for whom nobody need be asked.

What is said here is what an administrator has said beforehand in place of an answer to a prompt. It
makes no request possible that polkit refuses, and nobody is anything by name: users and groups are
numbers when the file has been read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .accounts import GROUPS, LARGEST, USERS
from .kind import NOBODY, Permit

if TYPE_CHECKING:
    from .accounts import AccountFile
    from .tomlsource import Key, Source

#: 0 and 4095 are reserved (IEEE 802.1Q).
VLANS = range(1, 4095)
_RANGE = re.compile(r"([1-9][0-9]{0,3})-([1-9][0-9]{0,3})")
KEYS = ("users", "groups", "vlans")


@dataclass(frozen=True, slots=True)
class LanBridge:
    """One bridge that may be asked for.

    :param permit: for whom a prompt is answered already.
    :param vlans: those that may be asked for; who names none is in the bridge's default one, which
        must be among them where there are any.
    """

    permit: Permit = NOBODY
    vlans: frozenset[int] = frozenset()


def read_bridge(name: str, body: dict[str, object], source: Source) -> LanBridge:
    """One table.

    :raise ConfigurationError: it is wrong.
    """
    at = ("bridge", name)
    source.only(body, at, *KEYS)
    vlans = _vlans((*at, "vlans"), body.get("vlans", []), source)
    return LanBridge(read_permit(at, body, source), vlans)


def read_permit(at: Key, body: dict[str, object], source: Source) -> Permit:
    """For whom a table says that nobody need be asked: its ``users`` and ``groups``.

    :raise ConfigurationError: it is wrong.
    """
    users = _accounts((*at, "users"), body.get("users", []), USERS, source)
    groups = _accounts((*at, "groups"), body.get("groups", []), GROUPS, source)
    return Permit(users, groups)


def _accounts(key: Key, value: object, file: AccountFile, source: Source) -> frozenset[int]:
    if not isinstance(value, list):
        raise source.wrong(key, f"must be a list of {file.noun}s, by name or number")
    known = file.numbers() if any(isinstance(one, str) for one in value) else {}
    found = set()
    for one in value:
        if isinstance(one, str):
            if one not in known:
                raise source.wrong(key, f"there is no {file.noun} {one[:64]!a} in {file.path}")
            found.add(known[one])
        elif type(one) is int and 0 <= one <= LARGEST:
            found.add(one)
        else:
            raise source.wrong(key, f"has an entry that is no {file.noun}'s name or number")
    return frozenset(found)


def _vlans(key: Key, value: object, source: Source) -> frozenset[int]:
    if not isinstance(value, list):
        raise source.wrong(key, 'must be a list of VLANs, like [42, "100-110"]')
    found: set[int] = set()
    for one in value:
        if type(one) is int:
            first = last = one
        elif isinstance(one, str) and (parts := _RANGE.fullmatch(one)):
            first, last = int(parts[1]), int(parts[2])
        else:
            raise source.wrong(key, 'has an entry that is neither like 42 nor like "100-110"')
        if first not in VLANS or last not in VLANS or first > last:
            raise source.wrong(key, "has an entry that is not from 1 to 4094")
        found.update(range(first, last + 1))
    return frozenset(found)

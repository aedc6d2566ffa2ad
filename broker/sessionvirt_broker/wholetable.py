# SPDX-License-Identifier: LGPL-2.1-or-later
"""A table of ours as a whole: what its fixed text makes, and elements in nft's own words.

Where somebody took rules of ours away, the text and all elements go back in one transaction, so
that no packet meets the one without the other. JSON cannot say the text (``ruleset.py``), so the
elements are said as text there, and only there. Each is made of numbers and names that were
validated when it was asked for, and each is compared once more here with the few forms that there
are: none has a space, a quote, a brace or a semicolon in it, so it cannot end what it is part of.

Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Outline", "additions", "has_fixed_part", "is_whole", "outline"]

#: Names of interfaces, MAC and IP addresses, prefixes, and numbers.
_WORD = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.:-]{0,63}|::[0-9a-f:.]{0,43}")
_LENGTH = range(129)
_OPENING = re.compile(r"(table|chain|set|map|counter) ([a-z]+ )?(\w+) \{")


@dataclass(frozen=True, slots=True)
class Outline:
    """What a fixed text makes: the rules of each chain, by number, and the sets and maps."""

    rules: Mapping[tuple[str, str], int]
    sets: frozenset[tuple[str, str]]


def outline(text: str) -> Outline:
    """Read a fixed text of ours, in which each rule begins a line of its own.

    Chains and sets are told by the table's family and their name.
    """
    rules: dict[tuple[str, str], int] = {}
    sets: set[tuple[str, str]] = set()
    family, place = "", None
    depth = 0
    for line in map(str.strip, text.splitlines()):
        opened = _OPENING.fullmatch(line) if depth < 2 else None
        if opened and opened[1] == "table":
            family = (opened[2] or "").strip()
        elif opened:
            place = (family, opened[3]) if opened[1] == "chain" else None
            if place is not None:
                rules[place] = 0
            elif opened[1] != "counter":
                sets.add((family, opened[3]))
        elif depth == 2 and place is not None and line not in ("", "}") and line[:5] != "type ":
            rules[place] += 1
        depth += line.count("{") - line.count("}")
    return Outline(rules, frozenset(sets))


def has_fixed_part(listed: Iterable[Mapping[str, Any]], fixed: Outline) -> bool:
    """Whether tables have as many rules in each chain as the text makes, and its sets."""
    rules, held = _counted(listed)
    right = all(rules[chain] == number for chain, number in fixed.rules.items())
    return right and fixed.sets <= held.keys()


def is_whole(
    listed: Iterable[Mapping[str, Any]],
    fixed: Outline,
    elements: Iterable[tuple[str, str, object]],
) -> bool:
    """Whether tables have, by number, all that they should.

    A rule or an element that somebody exchanged for another is not seen here; of that the kernel
    tells.

    :param listed: every table, as libnftables-json(5) has it.
    :param elements: family, set or map, and element.
    """
    listed = list(listed)
    _, held = _counted(listed)
    each = {(family, name, str(element)) for family, name, element in elements}
    wanted = Counter((family, name) for family, name, _ in each)
    return has_fixed_part(listed, fixed) and all(held[one] == wanted[one] for one in fixed.sets)


def _counted(
    listed: Iterable[Mapping[str, Any]],
) -> tuple[Counter[tuple[str, str]], dict[tuple[str, str], int]]:
    """The rules of each chain, and the elements of each set and map."""
    rules: Counter[tuple[str, str]] = Counter()
    held: dict[tuple[str, str], int] = {}
    for item in listed:
        if (rule := item.get("rule")) is not None:
            rules[str(rule["family"]), str(rule["chain"])] += 1
        if (one := item.get("set") or item.get("map")) is not None:
            held[str(one["family"]), str(one["name"])] = len(one.get("elem", ()))
    return rules, held


def additions(family: str, table: str, elements: Sequence[tuple[str, object]]) -> str:
    """The commands that add these elements.

    :param elements: set or map, and element, as libnftables-json(5) has it.
    :raise ValueError: one has another form.
    """
    grouped: dict[str, list[str]] = {}
    for name, element in elements:
        grouped.setdefault(_word(name), []).append(_spelled(element))
    return "".join(
        f"add element {family} {table} {name} {{ {', '.join(members)} }}\n"
        for name, members in grouped.items()
    )


def _spelled(element: object) -> str:
    match element:
        case {"prefix": {"addr": addr, "len": int(length)}} if length in _LENGTH:
            return f"{_word(addr)}/{length}"
        case [key, value]:
            return f"{_joined(key)} : {_joined(value)}"
        case _:
            return _joined(element)


def _joined(value: object) -> str:
    match value:
        case {"concat": [*parts]}:
            return " . ".join(map(_word, parts))
        case _:
            return _word(value)


def _word(value: object) -> str:
    word = str(value)
    if not (isinstance(value, str | int) and word.isascii() and _WORD.fullmatch(word)):
        raise ValueError("an element of ours has a form that none has")
    return word

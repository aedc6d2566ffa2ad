# SPDX-License-Identifier: LGPL-2.1-or-later
"""The scalar types of libvirt's XML: how each is read from text and written back.

A converter raises ValueError with a sentence's tail ("'7q' is not a whole number"); who calls it
knows the place. ``read(write(x)) == x`` for every x of the type.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Bytes", "Choice", "Converter", "Integer", "OnOff", "Pattern", "Text", "Uuid", "YesNo"]

T = TypeVar("T")
C = TypeVar("C", bound=Enum)

_UUID: Final = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}(?:\1[0-9a-f]{4}){2}\1[0-9a-f]{12}")
_SPACE: Final = " \t\r\n"
#: More digits are not a number that anything here can mean.
_MAX_DIGITS: Final = 20


@dataclass(frozen=True)
class Converter(Generic[T]):
    """One scalar type.

    :param read: text to value; raises ValueError.
    :param write: value to text.
    :param expected: what to write, for messages: "'yes' or 'no'".
    """

    read: Callable[[str], T]
    write: Callable[[T], str]
    expected: str


def _words(values: dict[str, T]) -> Converter[T]:
    expected = " or ".join(f"'{word}'" for word in values)
    texts = {value: word for word, value in values.items()}

    def read(text: str) -> T:
        if text not in values:
            raise ValueError(f"{_short(text)} is not known here")
        return values[text]

    return Converter(read, texts.__getitem__, expected)


def _short(text: str) -> str:
    """The text as a message may show it: one line, no control characters, of bounded length."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def Choice(enum: type[C]) -> Converter[C]:
    """A member of an enumeration whose values are the words."""
    return _words({str(member.value): member for member in enum})


def Integer(low: int, high: int) -> Converter[int]:
    """A whole decimal number, ends included."""

    def read(text: str) -> int:
        digits = text.strip(_SPACE)
        if not re.fullmatch(rf"-?[0-9]{{1,{_MAX_DIGITS}}}", digits):
            raise ValueError(f"{_short(text)} is not a whole number")
        if not low <= int(digits) <= high:
            raise ValueError(f"{int(digits)} is out of range")
        return int(digits)

    return Converter(read, str, f"a number from {low} to {high}")


def Pattern(expression: str, expected: str) -> Converter[str]:
    """Text that matches a regular expression as a whole."""
    compiled = re.compile(expression)

    def read(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"{_short(text)} is not accepted")
        return text

    return Converter(read, str, expected)


def _read_uuid(text: str) -> str:
    found = text.strip(_SPACE).lower()
    if not _UUID.fullmatch(found):
        raise ValueError(f"{_short(text)} is not a UUID")
    digits = found.replace("-", "")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


#: Bytes per unit as libvirt's virScaleInteger has them: a bare letter and ...iB are powers of 1024.
_UNITS: Final[dict[str, int]] = (
    {"b": 1, "byte": 1, "bytes": 1}
    | {
        f"{letter}{end}": 1024 ** (power + 1)
        for power, letter in enumerate("kmgtpe")
        for end in ("", "ib")
    }
    | {f"{letter}b": 1000 ** (power + 1) for power, letter in enumerate("kmgtpe")}
)
_MAX_BYTES: Final = (1 << 63) - 1


def _read_bytes(text: str) -> int:
    number, _, unit = text.strip(_SPACE).rpartition(" ")
    number = number.strip(_SPACE)
    if not re.fullmatch(rf"[0-9]{{1,{_MAX_DIGITS}}}", number):
        raise ValueError(f"{_short(number)} is not a whole number")
    if unit.lower() not in _UNITS:
        raise ValueError(f"the unit {_short(unit)} is not known")
    amount: int = int(number) * _UNITS[unit.lower()]
    if amount > _MAX_BYTES:
        raise ValueError("more memory than can be addressed")
    return amount


def _write_bytes(amount: int) -> str:
    return f"{amount // 1024} KiB" if amount % 1024 == 0 else f"{amount} bytes"


Text: Final = Converter(str, str, "text")
YesNo: Final = _words({"yes": True, "no": False})
OnOff: Final = _words({"on": True, "off": False})
Uuid: Final = Converter(_read_uuid, str, "a UUID such as 0f3d6b9e-4a0f-4c53-9d3b-6f1f4a2b7c11")
#: ``NUMBER UNIT``; unit b, KiB, KB, MiB, MB, ... in any case. Kept as bytes.
Bytes: Final = Converter(
    _read_bytes, _write_bytes, "a whole number, with unit='KiB' (the default), 'MiB' or 'GiB'"
)

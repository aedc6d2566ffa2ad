# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each scalar type: what it reads, what it refuses, and that it reads what it writes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionvirt.xmlvalues import Bytes, Choice, Converter, Integer, OnOff, Pattern, Uuid, YesNo

pytestmark = pytest.mark.unit


class Colour(StrEnum):
    RED = "red"


COLOUR = Choice(Colour)
SMALL = Integer(-5, 10)
WORD = Pattern("[a-z]+", "letters")
ID = "0f3d6b9e-4a0f-4c53-9d3b-6f1f4a2b7c11"


@pytest.mark.parametrize(
    ("converter", "text", "value"),
    [
        (COLOUR, "red", Colour.RED),
        (SMALL, " 10\n", 10),
        (SMALL, "-5", -5),
        (WORD, "abc", "abc"),
        (YesNo, "yes", True),
        (OnOff, "off", False),
        (Uuid, f" {ID.upper()} ", ID),
        (Uuid, ID.replace("-", ""), ID),
        (Bytes, "1 KiB", 1024),
        (Bytes, "1 k", 1024),
        (Bytes, "1 KB", 1000),
        (Bytes, "3 gib", 3 << 30),
        (Bytes, "3 GB", 3_000_000_000),
        (Bytes, "7 bytes", 7),
        (Bytes, "7 b", 7),
        (Bytes, "1 E", 1 << 60),
    ],
)
def test_read(converter: Converter[Any], text: str, value: object) -> None:
    assert converter.read(text) == value


@pytest.mark.parametrize(
    ("converter", "text"),
    [
        (COLOUR, "Red"),
        (COLOUR, ""),
        (SMALL, "11"),
        (SMALL, "-6"),
        (SMALL, "1.0"),
        (SMALL, "0x1"),
        (SMALL, "1_0"),
        (SMALL, "\u0663"),
        (SMALL, "9" * 5000),
        (WORD, "abc\n"),
        (WORD, "ab,c"),
        (YesNo, "on"),
        (OnOff, "yes"),
        (Uuid, ID[:-1]),
        (Uuid, ID.replace("-", "", 1)),
        (Uuid, ID.replace("0", "g")),
        (Bytes, "1 XB"),
        (Bytes, "-1 KiB"),
        (Bytes, "1.5 GiB"),
        (Bytes, " KiB"),
        (Bytes, "8 EiB"),
        (Bytes, "9" * 5000 + " KiB"),
    ],
)
def test_refuse(converter: Converter[Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        converter.read(text)


def test_a_message_is_one_short_line() -> None:
    with pytest.raises(ValueError, match=r"^'a\\n.*") as caught:
        WORD.read("a\n\x1b[31m" + "x" * 500)
    assert len(str(caught.value)) < 120
    assert "\x1b" not in str(caught.value)


@given(st.integers(0, (1 << 63) - 1))
def test_bytes_round_trip(amount: int) -> None:
    assert Bytes.read(Bytes.write(amount)) == amount


@given(st.uuids())
def test_uuid_round_trip(value: object) -> None:
    assert Uuid.read(str(value)) == str(value)

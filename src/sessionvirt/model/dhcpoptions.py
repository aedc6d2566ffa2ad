# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which values of DHCP's options the broker takes (RFC 2132).

dnsmasq does not start with one that it cannot read, so the broker refuses it in broker.toml, and
what is printed for that file must be what it takes. The same as the broker's ``dhcpoptions.py``:
the two sides share no code, and a test compares them.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

__all__ = ["option_fault"]

#: Lists of addresses: router, DNS, log, printer, swap, NTP, NIS, WINS, X, mail, ... 150 is TFTP's.
_ADDRESSES: Final = frozenset(
    {3, 6, 7, 9, 16, 21, 28, 32, 33, 41, 42, 44, 45, 48, 49, 65, 68, 69, 70, 71, 74, 150}
)
#: Of these, pairs: address and mask of what may be routed, destination and router.
_PAIRS: Final = frozenset({21, 33})
_CLASSLESS_ROUTES: Final = 121
#: What others are within these: vendor's options, and a subnet that is a server's word.
_BYTES_ONLY: Final = frozenset({43, 118})
#: Whole numbers, with the most that there is room for.
_NUMBERS: Final = {
    **dict.fromkeys((19, 20, 23, 27, 29, 30, 31, 34, 36, 37, 39, 46, 116), 0xFF),
    **dict.fromkeys((13, 22), 0xFFFF),
    **dict.fromkeys((2, 24, 35, 38, 108), 0xFFFFFFFF),
}


def option_fault(number: int, text: str) -> str:
    """Why this cannot be an option's value; empty: it can."""
    if not text:
        return ""  # the option is there, and says nothing
    if number in _ADDRESSES:
        return _address_fault(number, text.split(","))
    if number in _NUMBERS:
        most = _NUMBERS[number]
        good = re.fullmatch(r"[0-9]{1,10}", text) is not None and int(text) <= most
        return "" if good else f"must be a number from 0 to {most}"
    if number == _CLASSLESS_ROUTES:
        parts = text.split(",")
        good = len(parts) % 2 == 0 and all(map(_is_destination, parts[::2]))
        good = good and all(map(_is_address, parts[1::2]))
        return "" if good else "must be routes, like 10.2.0.0/16,10.1.0.1"
    if number in _BYTES_ONLY and re.fullmatch(r"[0-9,-]*", text):
        return "must be bytes in hexadecimal, like 01:02:0a, or a text"
    if re.fullmatch(r"[0-9.,/-]*", text):
        alone = re.fullmatch(r"-?[0-9]{1,10}", text) is not None
        if not alone and not all(map(_is_destination, text.split(","))):
            return "must be one number, or IPv4 addresses, or bytes in hexadecimal, or a text"
    return ""


def _address_fault(number: int, parts: list[str]) -> str:
    if not all(map(_is_address, parts)):
        return "must be IPv4 addresses with commas between"
    if number in _PAIRS and len(parts) % 2:
        return "must be pairs of IPv4 addresses"
    return ""


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_destination(text: str) -> bool:
    try:
        ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        return False
    return True

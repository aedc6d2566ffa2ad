# SPDX-License-Identifier: LGPL-2.1-or-later
"""MAC and PCI addresses: parse, order, print.

A value of these types is well formed: the parsers are the only way in. They raise ValueError with a
sentence's tail, because only the caller knows the place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NewType

__all__ = ["MacAddress", "PciAddress", "parse_mac"]

#: Six lower-case pairs with colons; a unicast address, never all zeros.
MacAddress = NewType("MacAddress", str)

_MAC: Final = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}")
#: A domain of more than four digits has no leading zero, as the kernel writes it.
_PCI: Final = re.compile(
    r"(?:([0-9a-f]{4}|[1-9a-f][0-9a-f]{4,7}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])",
    re.IGNORECASE,
)


def parse_mac(text: str) -> MacAddress:
    """Read ``52:54:00:12:34:56``; dashes and capitals are accepted.

    :raise ValueError: not a MAC address, or not one that an interface can have.
    """
    mac = text.strip(" \t\r\n").lower()
    if not _MAC.fullmatch(mac):
        raise ValueError(f"{text[:40]!a} is not a MAC address")
    mac = mac.replace("-", ":")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{mac} is a multicast address (the first byte is odd)")
    if mac == "00:00:00:00:00:00":
        raise ValueError("an interface cannot have the address of all zeros")
    return MacAddress(mac)


@dataclass(frozen=True, order=True)
class PciAddress:
    """A PCI function; on the host or in a guest. Sorts as lspci does.

    :param domain: 0 to 0xffffffff; above 0xffff are those that the kernel makes up (Intel's VMD).
    :param bus: 0 to 0xff.
    :param slot: 0 to 0x1f.
    :param function: 0 to 7.
    """

    domain: int
    bus: int
    slot: int
    function: int

    def __post_init__(self) -> None:
        limits = (0xFFFFFFFF, 0xFF, 0x1F, 7)
        parts = (self.domain, self.bus, self.slot, self.function)
        if not all(0 <= part <= limit for part, limit in zip(parts, limits, strict=True)):
            raise ValueError(f"no PCI function has the address {parts}")

    @classmethod
    def parse(cls, text: str) -> PciAddress:
        """Read ``0000:03:00.0``, or ``03:00.0`` in domain 0, as lspci prints them.

        :raise ValueError: not a PCI address.
        """
        match = _PCI.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:40]!a} is not a PCI address such as 0000:03:00.0")
        return cls(*(int(part or "0", 16) for part in match.groups()))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function}"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ports of the host that lead to the guest: ``<portForward>``, and the same in a word.

The word is ``[ADDRESS:]HOST[-HOST]:GUEST[-GUEST][/udp]``: ``8080:80``, ``127.0.0.1:2222:22/tcp``,
``[2001:db8::1]:5000-5009:5000-5009/udp``. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from sessionvirt.errors import UsageError
from sessionvirt.xmlmap import Element, attr, children, mapped
from sessionvirt.xmlvalues import Choice, Converter, Integer, YesNo

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PortForward", "PortProtocol", "PortRange", "Ports", "read_ports"]

_PORT: Final = Integer(1, 65535)
_LAST: Final = 65535
_WORD: Final = re.compile(
    r"(?:(?P<address>[0-9.]+|\[[0-9a-fA-F:.]+\]):)?(?P<first>[1-9][0-9]{0,4})(?:-(?P<last>[1-9][0-9]{0,4}))?"
    r":(?P<to>[1-9][0-9]{0,4})(?:-(?P<end>[1-9][0-9]{0,4}))?(?:/(?P<protocol>tcp|udp))?"
)
_FORM: Final = "write [ADDRESS:]HOST:GUEST, like 8080:80 or 127.0.0.1:5000-5009:5000-5009/udp"


class PortProtocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True)
class Ports:
    """Ports in a row.

    :param address: of the host; None: every one.
    :param count: how many, from ``host`` and ``guest`` on.
    """

    protocol: PortProtocol
    address: str | None
    host: int
    guest: int
    count: int = 1

    def __str__(self) -> str:
        """As :func:`read_ports` reads it."""
        address = self.address or ""
        where = f"[{address}]:" if ":" in address else f"{address}:" if address else ""
        ends = [
            str(first) if self.count == 1 else f"{first}-{first + self.count - 1}"
            for first in (self.host, self.guest)
        ]
        return f"{where}{':'.join(ends)}/{self.protocol}"


def _address(text: str) -> str:
    if "%" in text:
        raise ValueError(text)
    return str(ipaddress.ip_address(text))


@mapped
class PortRange(Element):
    """``<range>``. ``to`` is the guest's first port; where silent, as the host's."""

    start: int = attr("@start", _PORT, required=True)
    end: int | None = attr("@end", _PORT)
    to: int | None = attr("@to", _PORT)
    exclude: bool = attr("@exclude", YesNo, default=False)


@mapped
class PortForward(Element):
    """``<portForward>``.

    :param address: of the host; where silent, every one.
    """

    protocol: PortProtocol = attr("@proto", Choice(PortProtocol), required=True)
    address: str | None = attr("@address", Converter(_address, str, "an IPv4 or IPv6 address"))
    ranges: tuple[PortRange, ...] = children("range", PortRange)

    @classmethod
    def of(cls, ports: Ports) -> PortForward:
        """The element for ports in a row."""
        last = ports.host + ports.count - 1
        one = PortRange(start=ports.host, end=last if ports.count > 1 else None, to=ports.guest)
        return cls(protocol=ports.protocol, address=ports.address, ranges=(one,))

    def rows(self) -> Iterator[Ports]:
        """What it means, without what is excluded.

        :raise DefinitionError: it means nothing, or a port that there is not.
        """
        without = {
            port
            for one in self.ranges
            if one.exclude
            for port in range(one.start, (one.end or one.start) + 1)
        }
        wanted = [one for one in self.ranges if not one.exclude]
        if not wanted:
            self.where.refuse("it names no port", "Write <range start='8080' to='80'/>.")
        for one in wanted:
            last, to = one.end or one.start, one.to or one.start
            if last < one.start or to + last - one.start > _LAST:
                one.where.refuse(
                    f"there are no ports {one.start} to {last} that lead to {to} and on",
                    f"Write an end that is not before the start; the last port is {_LAST}.",
                )
            yield from self._row(one.start, last, to, without)

    def _row(self, first: int, last: int, to: int, without: set[int]) -> Iterator[Ports]:
        begin = first
        for port in range(first, last + 2):
            if port > last or port in without:
                if port > begin:
                    guest = to + begin - first
                    yield Ports(self.protocol, self.address, begin, guest, port - begin)
                begin = port + 1


def read_ports(text: str) -> Ports:
    """Read the word.

    :raise UsageError: it is none.
    """
    found = _WORD.fullmatch(text) if text.isascii() else None
    if found is None:
        raise UsageError(f"{text[:60]!a} names no ports", advice=_FORM)
    first, to = int(found["first"]), int(found["to"])
    last, end = int(found["last"] or first), int(found["end"] or 0)
    count = last - first + 1
    if count < 1 or max(last, to + count - 1) > _LAST or end not in (0, to + count - 1):
        raise UsageError(
            f"{text[:60]!a}: these are not as many ports of the host as of the guest",
            advice=f"write ranges of the same length; the last port is {_LAST}",
        )
    if found["last"] and not found["end"] and count > 1:
        raise UsageError(
            f"{text[:60]!a}: {count} ports of the host, and one of the guest",
            advice=f"write {first}-{last}:{to}-{to + count - 1}",
        )
    address = found["address"]
    try:
        host = _address(address.strip("[]")) if address else None
    except ValueError as error:
        raise UsageError(f"{address[:60]!a} is no address", advice=_FORM) from error
    return Ports(PortProtocol(found["protocol"] or "tcp"), host, first, to, count)

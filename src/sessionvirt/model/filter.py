# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest may not: the lists of a command line and the words of a ``<filterref>``, together.

An entry of a list is text in one form, the broker's: ``tcp:22``, ``udp:5000-5100@10.0.0.0/8``,
``icmp``, ``2001:db8::/32``. It is looked at here only to say early what is wrong with it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from sessionvirt.errors import UsageError

__all__ = ["LISTS", "NO_FILTER", "GuestFilter", "check_entry"]

#: The names of the lists.
LISTS: Final = ("deny_outbound", "allow_outbound", "deny_inbound", "allow_inbound")

_ENTRY: Final = re.compile(
    r"(?:(?P<word>any|tcp|udp|icmp)(?::(?P<first>[1-9][0-9]{0,4})(?:-(?P<last>[1-9][0-9]{0,4}))?)?@)?"
    r"(?P<prefix>[0-9a-f.:]+(?:/[0-9]{1,3})?)"
)
_FORM: Final = (
    "write a protocol (any, tcp, udp, icmp), with ports after tcp or udp, and addresses: tcp:22, "
    "udp:5000-5100@10.0.0.0/8, icmp, 2001:db8::/32"
)


@dataclass(frozen=True)
class GuestFilter:
    """One filter of an interface; the contract says what each of these is."""

    deny_outbound: tuple[str, ...] = ()
    allow_outbound: tuple[str, ...] = ()
    deny_inbound: tuple[str, ...] = ()
    allow_inbound: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    only_mac: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    no_broadcast: bool = False
    no_multicast4: bool = False
    no_multicast6: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it forbids nothing."""
        return self == NO_FILTER

    def with_lists(self, other: GuestFilter) -> GuestFilter:
        """The words of this one, and the lists of the other."""
        return dataclasses.replace(self, **{name: getattr(other, name) for name in LISTS})


NO_FILTER: Final = GuestFilter()


def check_entry(text: str) -> str:
    """Return an entry of a list as it is.

    :raise UsageError: it is none.
    """
    whole = (
        text if re.match(r"(?!any|tcp|udp|icmp)[0-9a-f:]", text) or "@" in text else f"{text}@::/0"
    )
    found = _ENTRY.fullmatch(whole)
    if found is None:
        raise UsageError(f"{text[:60]!a} is no entry of a filter", advice=_FORM)
    first, last = int(found["first"] or 1), int(found["last"] or found["first"] or 1)
    if found["first"] and found["word"] not in ("tcp", "udp"):
        raise UsageError(f"{text[:60]!a}: ports go with tcp or udp", advice=_FORM)
    if not first <= last <= 65535:
        raise UsageError(
            f"{text[:60]!a}: ports are from 1 to 65535, the lower one first", advice=_FORM
        )
    try:
        ipaddress.ip_network(found["prefix"])
    except ValueError as error:
        raise UsageError(
            f"{text[:60]!a} has no addresses that can be", evidence=str(error), advice=_FORM
        ) from error
    return text

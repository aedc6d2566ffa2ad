# SPDX-License-Identifier: LGPL-2.1-or-later
"""``[publish]`` of ``broker.toml``: who may publish which ports without being asked.

As in ``bridges.py``: it stands for the answer to a prompt, and for nothing that polkit refuses.
Ports below 1024 are in no such table: people take what answers there for the machine itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .bridges import read_permit
from .kind import NOBODY, Permit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .tomlsource import Source

__all__ = ["NO_PUBLISH_POLICY", "PRIVILEGED", "PublishPolicy", "read_publish"]

#: The first port that is not privileged (net.ipv4.ip_unprivileged_port_start, as it comes).
PRIVILEGED: Final = 1024
_LAST: Final = 65535
_RANGE = re.compile(r"([1-9][0-9]{0,4})-([1-9][0-9]{0,4})")
_MOST_RANGES: Final = 64
_AT: Final = ("publish",)


@dataclass(frozen=True, slots=True)
class PublishPolicy:
    """What the administrator has said beforehand.

    :param ports: ranges of the ports that it is said of.
    """

    permit: Permit = NOBODY
    ports: tuple[range, ...] = (range(PRIVILEGED, _LAST + 1),)

    def permit_for(self, wanted: Sequence[int]) -> Permit:
        """For whom nobody need be asked about these ports, which are in a row."""
        inside = any(wanted[0] in one and wanted[-1] in one for one in self.ports)
        return self.permit if inside else NOBODY


#: Where nothing is said: everybody is asked.
NO_PUBLISH_POLICY: Final = PublishPolicy()


def read_publish(body: dict[str, object], source: Source) -> PublishPolicy:
    """The table.

    :raise ConfigurationError: it is wrong.
    """
    source.only(body, _AT, "users", "groups", "ports")
    permit = read_permit(_AT, body, source)
    if "ports" not in body:
        return PublishPolicy(permit)
    value, key = body["ports"], (*_AT, "ports")
    if not isinstance(value, list) or len(value) > _MOST_RANGES:
        raise source.wrong(key, f'must be a list of at most {_MOST_RANGES}, like ["8080-8099"]')
    found = []
    for one in value:
        if type(one) is int:
            first = last = one
        elif isinstance(one, str) and (parts := _RANGE.fullmatch(one)):
            first, last = int(parts[1]), int(parts[2])
        else:
            raise source.wrong(key, 'has an entry that is neither like 8080 nor like "8080-8099"')
        if not PRIVILEGED <= first <= last <= _LAST:
            raise source.wrong(key, f"has an entry that is not from {PRIVILEGED} to {_LAST}")
        found.append(range(first, last + 1))
    return PublishPolicy(permit, tuple(found))

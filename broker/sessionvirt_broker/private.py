# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network that each user has for himself: ``network = "private"``.

Built in, NAT, a bridge and prefixes of its own. Nobody chooses them: the IPv4 prefix is a /24 of a
pool, by a hash of the uid, the next one where that is taken; the IPv6 prefix is unique local and
made of the uid on this machine. A user has the same ones every time, as long as the host has no
route into them.

Pure: what is taken comes as an argument.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import Busy
from .networkconfig import PRIVATE, PRIVATE_BRIDGE, Network, default_domain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .networkconfig import Prefix
    from .tomlsource import Source

_POOL = ipaddress.IPv4Network("10.214.0.0/16")
_PREFIX_LENGTH = 24
#: 256 users to 65,536 of them at once.
_POOL_LENGTHS = range(8, 17)


@dataclass(frozen=True, slots=True)
class PrivatePolicy:
    """What root says about private networks.

    :param pool: where their IPv4 prefixes are.
    """

    enabled: bool = True
    pool: ipaddress.IPv4Network = _POOL


def read_private(source: Source, table: dict[str, object]) -> PrivatePolicy:
    """``[private]``.

    :raise ConfigurationError: names file, line and reason.
    """
    at = ("private",)
    body = source.tables(table, at, leaf=True)["private"]
    source.only(body, at, "enabled", "ipv4")
    text = body.get("ipv4", str(_POOL))
    try:
        if not isinstance(text, str):
            raise TypeError(text)
        pool = ipaddress.IPv4Network(text)
    except (TypeError, ValueError) as error:
        raise source.wrong((*at, "ipv4"), "must be a prefix, like 10.214.0.0/16") from error
    if not pool.is_private or pool.is_loopback or pool.is_link_local or pool.is_reserved:
        raise source.wrong((*at, "ipv4"), "must be of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16")
    if pool.prefixlen not in _POOL_LENGTHS:
        raise source.wrong((*at, "ipv4"), "must have a prefix length from 8 to 16")
    return PrivatePolicy(source.flag(body, at, "enabled", default=True), pool)


def private_bridge(uid: int) -> str:
    """Its bridge: ten digits at most, which is what an interface's name has room for."""
    return f"{PRIVATE_BRIDGE}{uid}"


def private_network(
    policy: PrivatePolicy, uid: int, machine_id: str, taken: Iterable[Prefix]
) -> Network:
    """A user's network.

    :param taken: prefixes that it must not overlap.
    :raise Busy: the pool has no room.
    """
    digest = hashlib.sha256("\0".join((machine_id, "private", str(uid))).encode()).digest()
    count = 1 << (_PREFIX_LENGTH - policy.pool.prefixlen)
    first = int(policy.pool.network_address)
    # In /24s of the pool, so that the search is over numbers.
    used = _used(policy.pool, taken)
    start = int.from_bytes(digest[:8], "big") % count
    for offset in range(count):
        number = (start + offset) % count
        if number not in used:
            break
    else:
        raise Busy(f"network: {policy.pool} has no room for one more private network")
    # RFC 4193: fd and 40 bits by chance, and 16 of a subnet; here all 56 are of the hash.
    six = int.from_bytes(b"\xfd" + digest[8:15] + bytes(7) + b"\x01", "big")
    return Network(
        PRIVATE,
        (ipaddress.IPv4Interface((first + (number << 8) + 1, _PREFIX_LENGTH)),),
        (ipaddress.IPv6Interface((six, 64)),),
        domain=default_domain(PRIVATE),
        own_bridge=private_bridge(uid),
    )


def _used(pool: ipaddress.IPv4Network, taken: Iterable[Prefix]) -> set[int]:
    used: set[int] = set()
    first = int(pool.network_address) >> 8
    for one in taken:
        if isinstance(one, ipaddress.IPv4Network) and one.overlaps(pool):
            begin = max(int(one.network_address), int(pool.network_address)) >> 8
            end = min(int(one.broadcast_address), int(pool.broadcast_address)) >> 8
            used.update(range(begin - first, end - first + 1))
    return used

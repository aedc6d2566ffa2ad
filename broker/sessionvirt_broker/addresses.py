# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which address a guest gets: MACs, and hosts' numbers in a managed network.

Pure: no kernel, no clock. An address is the same at every start of a VM, because it is derived from
the MAC, which is derived from user and VM. It is not given to another MAC as long as one that
nobody had is left, because dnsmasq may remember the former.

A number counts through all IPv4 ranges of a network, one after the other; in each IPv6 range it is
the host's part. What the administrator gave to a static host is nobody else's.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import Busy
from .wire import Mac

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .networkconfig import Network, StaticHost


#: How every derived address begins. Anybody can work another user's out (machine-id is no secret),
#: so nobody may ask for one that is not their own.
DERIVED_PREFIX = "5a:"
#: How many guests a network without IPv4 has numbers for.
_NUMBERS_OF_IPV6 = 1 << 16


def derived_mac(machine_id: str, *parts: str) -> Mac:
    """A locally administered unicast MAC for ``parts`` on this machine; 40 bits of a hash."""
    digest = hashlib.sha256("\0".join((machine_id, *parts)).encode(errors="replace")).digest()
    return Mac(DERIVED_PREFIX + digest[:5].hex(":"))


@dataclass(frozen=True, slots=True)
class Addresses:
    """What one guest has on one network; ``ipv4`` is empty where the network has none."""

    ipv4: str
    ipv6: tuple[str, ...]


class AddressBook:
    """Who has which addresses in one network, and who had them last."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, ...]] = {}
        self._former: dict[int, str] = {}
        self._numbers: Counter[int] = Counter()

    def peek(self, network: Network, mac: str) -> Addresses:
        """The addresses that ``mac`` would get.

        :raise Busy: the MAC is in use, or every address is.
        """
        if mac in self._held:
            raise Busy(f"the MAC address {mac} is in use on this network")
        static = network.host_of(mac)
        size = number_count(network)
        start = int.from_bytes(hashlib.sha256(mac.encode()).digest()[:8], "big") % size
        if static is None:
            return _of_number(network, self._choose(mac, size, start, _never(network)))
        if _is_whole(network, static):
            return _of_number(network, 0, static)
        # Where it can be, what was not given is of the number of what was.
        own = [number for one in static.addresses() for number in _numbers_of(network, one)]
        others = _never(network, without=static)
        return _of_number(network, self._choose(mac, size, (own or [start])[0], others), static)

    def _choose(self, mac: str, size: int, start: int, never: set[int]) -> int:
        for offset in range(size):
            number = (start + offset) % size
            if number in never or self._numbers[number]:
                continue
            if self._former.get(number, mac) == mac:
                return number
        # Every number had an owner: the one whose owner is gone longest (dicts keep order).
        for number in self._former:
            if not self._numbers[number] and number not in never:
                return number
        raise Busy("the network has no address left")

    def hold(self, network: Network | None, mac: str, addresses: Addresses) -> None:
        """``mac`` has them now. Without a network (its record was lost) nothing can be said."""
        if network is None:
            return
        texts = filter(None, (addresses.ipv4, *addresses.ipv6))
        numbers = {n for text in texts for n in _numbers_of(network, ipaddress.ip_address(text))}
        self._held[mac] = tuple(numbers)
        for number in numbers:
            self._numbers[number] += 1
            self._former.pop(number, None)
            self._former[number] = mac

    def give_back(self, mac: str) -> None:
        """No longer held; remembered as the last owner."""
        for number in self._held.pop(mac, ()):
            self._numbers[number] -= 1
            if not self._numbers[number]:
                del self._numbers[number]


def number_count(network: Network) -> int:
    """How many numbers a network has; some are never a guest's."""
    return sum(one.network.num_addresses for one in network.ipv4) or _NUMBERS_OF_IPV6


def _of_number(network: Network, number: int, static: StaticHost | None = None) -> Addresses:
    fixed4, fixed6 = (static.ipv4, static.ipv6) if static else (None, None)
    ipv4, rest = str(fixed4 or ""), number
    for one in () if fixed4 else network.ipv4:
        if rest < one.network.num_addresses:
            ipv4 = str(one.network.network_address + rest)
            break
        rest -= one.network.num_addresses
    ipv6 = (
        fixed6 if fixed6 and fixed6 in six.network else six.network.network_address + number
        for six in network.ipv6
    )
    return Addresses(ipv4, tuple(map(str, ipv6)))


def _is_whole(network: Network, static: StaticHost) -> bool:
    """Whether the administrator chose every address that it has."""
    return (static.ipv4 is not None or not network.ipv4) and all(
        static.ipv6 is not None and static.ipv6 in six.network for six in network.ipv6
    )


def _numbers_of(
    network: Network, address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> Iterable[int]:
    """The number that an address belongs to; none where it is beyond all that are given."""
    before = 0
    for one in network.ipv4:
        if address in one.network:
            yield before + int(address) - int(one.network.network_address)
        before += one.network.num_addresses
    for six in network.ipv6:
        number = int(address) - int(six.network.network_address)
        if address in six.network and number < number_count(network):
            yield number


def _never(network: Network, without: StaticHost | None = None) -> set[int]:
    """Numbers that are never chosen."""
    given = [a for host in network.hosts if host is not without for a in host.addresses()]
    never = {0, *(n for one in (*network.gateways, *given) for n in _numbers_of(network, one))}
    before = 0
    for one in network.ipv4:
        last = before + one.network.num_addresses
        never |= {before, last - 1}
        before = last
    return never

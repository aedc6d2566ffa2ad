# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which address a guest gets: MACs, and hosts' numbers in a managed network.

Pure: no kernel, no clock. An address is the same at every start of a VM, because it is derived from
the MAC, which is derived from user and VM. It is not given to another MAC as long as one that
nobody had is left, because dnsmasq may remember the former.
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import TYPE_CHECKING

from .errors import Busy
from .wire import Mac

if TYPE_CHECKING:
    from .config import Network


#: How every derived address begins. Anybody can work another user's out (machine-id is no secret),
#: so nobody may ask for one that is not their own.
DERIVED_PREFIX = "5a:"


def derived_mac(machine_id: str, *parts: str) -> Mac:
    """A locally administered unicast MAC for ``parts`` on this machine; 40 bits of a hash."""
    digest = hashlib.sha256("\0".join((machine_id, *parts)).encode(errors="replace")).digest()
    return Mac(DERIVED_PREFIX + digest[:5].hex(":"))


class AddressBook:
    """Who has which host number in one network, and who had it last."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._former: dict[int, str] = {}
        self._numbers: set[int] = set()

    def peek(self, network: Network, mac: str) -> int:
        """The number that ``mac`` would get.

        :raise Busy: the MAC is in use, or every address is.
        """
        if mac in self._held:
            raise Busy(f"the MAC address {mac} is in use on this network")
        size = network.ipv4.network.num_addresses
        own = int(network.ipv4.ip) - int(network.ipv4.network.network_address)
        never = {0, own, size - 1}
        if network.ipv6:
            never.add(int(network.ipv6.ip) - int(network.ipv6.network.network_address))
        start = int.from_bytes(hashlib.sha256(mac.encode()).digest()[:8], "big") % size
        for offset in range(size):
            number = (start + offset) % size
            if number in never or number in self._numbers:
                continue
            if self._former.get(number, mac) == mac:
                return number
        # Every number had an owner: the one whose owner is gone longest (dicts keep order).
        for number in self._former:
            if number not in self._numbers:
                return number
        raise Busy("the network has no address left")

    def hold(self, network: Network | None, mac: str, ipv4: str) -> None:
        """``mac`` has ``ipv4`` now. Without a network (its record was lost) nothing can be said."""
        if network is not None:
            number = int(ipaddress.IPv4Address(ipv4)) - int(network.ipv4.network.network_address)
            self._held[mac] = number
            self._numbers.add(number)
            self._former.pop(number, None)
            self._former[number] = mac

    def give_back(self, mac: str) -> None:
        """No longer held; remembered as the last owner."""
        number = self._held.pop(mac, None)
        if number is not None:
            self._numbers.discard(number)


def addresses_of(network: Network, number: int) -> tuple[str, str]:
    """The IPv4 and the IPv6 address (or "") with this host number."""
    ipv4 = network.ipv4.network.network_address + number
    ipv6 = network.ipv6.network.network_address + number if network.ipv6 else ""
    return str(ipv4), str(ipv6)

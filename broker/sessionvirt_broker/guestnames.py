# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest is called in the DNS of its network: a label made of its machine's name, or nothing.

The mapping is the only way from a text of a caller's into dnsmasq's files. It gives lower-case
ASCII letters, digits and single inner hyphens, so never an ``xn--`` name, an underscore or a dot.
Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .networkconfig import Network

_OTHER = re.compile(r"[^a-z0-9]+")
_LABEL_BYTES = 63
#: What programs look up by themselves to be told whom to trust or whom to ask, and what means this
#: host or the network: no guest is called so. Windows' DNS server blocks the first two likewise.
_RESERVED = frozenset(
    {
        *("wpad", "isatap", "autoconfig", "autodiscover", "teredo"),
        *("localhost", "localdomain", "local", "broadcasthost", "loopback"),
        *("gateway", "router", "dns", "ns", "dhcp", "ntp", "host"),
    }
)


def guest_label(vm: str) -> str:
    """The label of a machine's name; empty: it has none.

    Only digits are none, either: they are read as an address (inet_aton(3)).
    """
    # ASCII first: lower() makes ASCII of some other letters.
    plain = "".join(c if c.isascii() else "-" for c in vm).lower()
    label = _OTHER.sub("-", plain).strip("-")[:_LABEL_BYTES].rstrip("-")
    return "" if label.isdigit() else label


def free_label(network: Network, label: str) -> str:
    """The label, or nothing where it is not for guests of this network."""
    administrators = {host.label for host in network.hosts} | {
        name.removesuffix(f".{network.domain}") for name, _ in network.records
    }
    return "" if label in _RESERVED or label in administrators else label


class NameBook:
    """Who is called what on one network; the first has it."""

    def __init__(self) -> None:
        self._by_name: dict[str, str] = {}

    def peek(self, network: Network, vm: str) -> str:
        """What another guest of this machine would be called; empty: nothing."""
        label = free_label(network, guest_label(vm))
        return "" if label in self._by_name else label

    def hold(self, name: str, mac: str) -> None:
        """The guest with this MAC is called so; an empty name is nobody's."""
        if name:
            self._by_name[name] = mac

    def give_back(self, name: str, mac: str) -> None:
        """No longer."""
        if self._by_name.get(name) == mac:
            del self._by_name[name]

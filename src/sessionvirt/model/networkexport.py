# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker tells of a network, as libvirt's network XML.

Not the inverse of :mod:`.networkxml`: the broker tells less than broker.toml has, and gives
addresses of a whole range, where libvirt wants to know of which part.

Pure. Source: libvirt's docs/formatnetwork.rst; src/util/virsocketaddr.c for what a range of DHCP
may be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessionvirt.xmltree import Comment, Node, write

from .network import Mode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .network import Address, Range

__all__ = ["network_xml"]


def network_xml(
    name: str, *, mode: str, bridge: str, mtu: int, ranges: Iterable[Range], remarks: Iterable[str]
) -> str:
    """Return libvirt's description of a network.

    :param mode: "nat", "route", "isolated" or "open"; or "lan": a bridge that is there.
    :param bridge: its name, for "lan".
    :param mtu: bytes; 0: not said.
    :param ranges: the host's own addresses.
    :param remarks: comments; without ``--``.
    :raise DefinitionError: a value has a character that XML cannot carry.
    """
    root = Node("network", "network")
    root.children += [Comment(f" {remark} ") for remark in remarks]
    root.children.append(Node("name", "name", children=[name]))
    if mode == "lan":
        root.children.append(Node("forward", "forward", attributes={"mode": "bridge"}))
        root.children.append(Node("bridge", "bridge", attributes={"name": bridge}))
        return write(root)
    if mode != Mode.ISOLATED:
        root.children.append(Node("forward", "forward", attributes={"mode": mode}))
    if mtu not in (0, 1500):
        root.children.append(Node("mtu", "mtu", attributes={"size": str(mtu)}))
    seen: set[int] = set()
    for range_ in ranges:
        root.children.append(_ip(range_, with_dhcp=range_.version not in seen))
        seen.add(range_.version)
    return write(root)


def _ip(range_: Range, *, with_dhcp: bool) -> Node:
    """One address; libvirt has DHCP on one of each family only."""
    prefix = str(range_.network.prefixlen)
    said = {"family": f"ipv{range_.version}", "address": str(range_.ip), "prefix": prefix}
    node = Node("ip", "ip", attributes=said)
    if with_dhcp and range_.network.num_addresses > 3:
        start, end = _pool(range_)
        limits = {"start": str(start), "end": str(end)}
        inside = Node("range", "range", attributes=limits)
        node.children.append(Node("dhcp", "dhcp", children=[inside]))
    return node


def _pool(range_: Range) -> tuple[Address, Address]:
    """The longer part of the range before or behind the gateway, which is none of it.

    libvirt wants both ends to differ in the last 16 bits only.
    """
    network, own = range_.network, int(range_.ip)
    low = max(int(network.network_address), own & ~0xFFFF) + 1
    high = min(int(network.broadcast_address), own | 0xFFFF) - 1
    before, behind = (low, own - 1), (own + 1, high)
    start, end = max(before, behind, key=lambda part: part[1] - part[0])
    kind = type(range_.ip)
    return kind(start), kind(end)

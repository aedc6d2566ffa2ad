# SPDX-License-Identifier: LGPL-2.1-or-later
"""Policy rules of the host (``ip rule``) that a packet of a guest meets before the main table.

A VPN has such rules (wg-quick, Tailscale), and so have hosts with several uplinks. Everybody may
ask the kernel for them: RTM_GETRULE, linux/fib_rules.h. What is not understood is left out.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

from .rtnetlink import DUMP, FAMILIES, ask, attributes, messages

__all__ = ["PolicyRule", "catching", "parse", "policy_rules"]

_RTM_NEWRULE, _RTM_GETRULE = 32, 34
_FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_SUPPRESS, _FRA_TABLE = 2, 3, 6, 10, 14, 15
_FIB_RULE_INVERT = 2
_FR_ACT_TO_TBL = 1
_RT_TABLE_DEFAULT, _RT_TABLE_MAIN, _RT_TABLE_LOCAL = 253, 254, 255
#: struct fib_rule_hdr: family, dst_len, src_len, tos, table, res1, res2, action, flags.
_RULE = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True)
class PolicyRule:
    """One rule that leads to another table than the three of every host.

    :param source: a prefix, or empty: any.
    :param interface: that packets come in by, or empty: any.
    :param marked: it is also about a mark, which nobody sees from here: ``mark``.
    """

    priority: int
    table: int
    source: str
    interface: str
    marked: bool
    inverted: bool
    mark: int = 0


def policy_rules(version: int) -> list[PolicyRule]:
    """The rules of IPv4 or 6; none where the kernel does not tell."""
    request = _RULE.pack(FAMILIES[version], 0, 0, 0, 0, 0, 0, 0, 0)
    return [rule for data in ask(_RTM_GETRULE, request, flags=DUMP) for rule in parse(data)]


def catching(rules: list[PolicyRule], address: str, bridge: str) -> list[PolicyRule]:
    """Those that a packet from *address* by *bridge* meets, or may."""
    source = ipaddress.ip_address(address)
    return [
        rule
        for rule in rules
        if rule.interface in ("", bridge)
        and (not rule.source or source in ipaddress.ip_network(rule.source, strict=False))
    ]


def parse(data: bytes) -> list[PolicyRule]:
    """The rules in what the kernel answered."""
    found = []
    for kind, body in messages(data):
        if kind != _RTM_NEWRULE or len(body) < _RULE.size:
            continue
        family, _, length, _, table, _, _, action, flags = _RULE.unpack_from(body)
        told = dict(attributes(body[_RULE.size :]))
        table = _number(told.get(_FRA_TABLE)) or table
        # With a suppressor it is the main table without its default route: the next rule decides.
        usual = table in (_RT_TABLE_DEFAULT, _RT_TABLE_MAIN, _RT_TABLE_LOCAL)
        if action != _FR_ACT_TO_TBL or usual or _number(told.get(_FRA_SUPPRESS), -1) == 0:
            continue
        source = told.get(_FRA_SRC, b"")
        found.append(
            PolicyRule(
                priority=_number(told.get(_FRA_PRIORITY)),
                table=table,
                source=f"{socket.inet_ntop(family, source)}/{length}" if length else "",
                interface=told.get(_FRA_IIFNAME, b"").rstrip(b"\0").decode("ascii", "replace"),
                marked=_FRA_FWMARK in told,
                inverted=bool(flags & _FIB_RULE_INVERT),
                mark=_number(told.get(_FRA_FWMARK)),
            )
        )
    return found


def _number(value: bytes | None, default: int = 0) -> int:
    return struct.unpack("=I", value)[0] if value is not None and len(value) == 4 else default

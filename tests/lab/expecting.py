# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connection-tracking helpers: assigned as an administrator does, and what one of them expects.

What a helper reads in a flow it tells conntrack as an expectation: of another flow, which is then
"related". :func:`expect` tells the same by ctnetlink, for helpers whose protocols are long.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import host

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Flow", "assigned", "expect"]

# linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h: NFNL_SUBSYS_CTNETLINK_EXP, IPCTNL_MSG_EXP_NEW.
_NEW = 2 << 8
_MASTER, _TUPLE, _MASK, _TIMEOUT, _NAT, _FUNCTION = 1, 2, 3, 4, 10, 11
_NESTED, _NETFILTER = 0x8000, 12
#: NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE.
_FLAGS = 0x1 | 0x4 | 0x400


@dataclass(frozen=True)
class Flow:
    """A TCP flow as its first packet was; in a mask, which bits count.

    :param ports: the sender's and the receiver's.
    """

    source: str
    target: str
    ports: tuple[int, int]


@contextlib.contextmanager
def assigned(helper: str, port: int) -> Iterator[None]:
    """A helper for whatever goes to a TCP port, as its receiver has it."""
    try:
        for words in (
            "add table inet theirs",
            f'add ct helper inet theirs one {{ type "{helper}" protocol tcp; l3proto inet; }}',
            "add chain inet theirs pre { type filter hook prerouting priority 0; }",
            f'add rule inet theirs pre tcp dport {port} ct helper set "one"',
        ):
            host.nft(words)
        yield
    finally:
        host.nft("delete", "table", "inet", "theirs")


def expect(master: Flow, expected: Flow, *, back: int = 0) -> None:
    """Of a flow that has a helper: another one, whatever port it comes from.

    :param back: it is translated, and leads to this port of whoever began the master.
    """
    one = "255.255.255.255" if "." in expected.source else "ff" * 2 + ":ffff" * 7
    body = struct.pack("=BBH", _family(master.source), 0, 0)
    body += _attribute(_MASTER | _NESTED, _tuple(master))
    body += _attribute(_TUPLE | _NESTED, _tuple(expected))
    body += _attribute(_MASK | _NESTED, _tuple(Flow(one, one, (0, 0xFFFF))))
    body += _attribute(_TIMEOUT, struct.pack("!I", 60))
    if back:
        # nf_nat_follow_master(), as a flow in the direction of the master's answers.
        where = _attribute(1, struct.pack("!I", 1)) + _attribute(
            2 | _NESTED, _tuple(Flow(expected.source, expected.target, (back, 0)))
        )
        body += _attribute(_NAT | _NESTED, where)
        body += _attribute(_FUNCTION, b"nat-follow-master\0")
    message = struct.pack("=IHHII", 16 + len(body), _NEW, _FLAGS, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as kernel:
        kernel.send(message)
        (code,) = struct.unpack_from("=i", kernel.recv(8192), 16)
    assert code == 0, errno.errorcode[-code]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _tuple(flow: Flow) -> bytes:
    family = _family(flow.source)
    first = 3 if family is socket.AF_INET6 else 1
    ends = enumerate((flow.source, flow.target), first)
    addresses = b"".join(_attribute(n, socket.inet_pton(family, one)) for n, one in ends)
    ports = b"".join(_attribute(n, struct.pack("!H", one)) for n, one in enumerate(flow.ports, 2))
    protocol = _attribute(1, bytes([socket.IPPROTO_TCP]))
    return _attribute(1 | _NESTED, addresses) + _attribute(2 | _NESTED, protocol + ports)


def _attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)

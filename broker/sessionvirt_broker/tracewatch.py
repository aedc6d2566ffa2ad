# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hears from nf_tables by which rules a packet went that a rule of ``tracing.py`` marked.

The kernel tells every listener of every packet that anybody has traced (nft_trace_notify() in
nf_tables_trace.c). What is told on is only of packets that our own chains told of first, with the
two addresses: another's trace is another's business. Steps and packets are limited.

A packet's id is made of its place in memory and where it came in by, so that it has another at
another hook, and the next packet may have it. Our chains come first at each hook: what they mark is
a new packet, and what they see later on its way is the one that was marked last.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from .listener import KernelListener

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MARKS", "MOST_PACKETS", "TABLE", "Step", "Steps", "TraceWatch", "Traced", "read_step"]

_NETLINK_NETFILTER = 12
_NFNLGRP_NFTRACE = 9
_NFNL_SUBSYS_NFTABLES, _NFT_MSG_TRACE = 10, 17
TABLE = "sessionvirt_trace"
#: The chain that marks what goes out, and what comes in; ``tracing.py`` makes them.
MARKS = {"out": "prerouting", "in": "forward"}
#: enum nft_trace_attributes, nft_verdict_attributes, nft_trace_types (linux/netfilter/nf_tables.h).
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _NETWORK, _POLICY = 1, 2, 3, 4, 5, 6, 8, 16
_CODE, _TARGET = 1, 2
_TYPES = {1: "policy", 2: "return", 3: "rule"}
_VERDICTS = {
    0: "drop", 1: "accept", 2: "stolen", 3: "queue",
    -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return",
}  # fmt: skip
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_HEADER = struct.Struct("=IHHII")
_GENMSG_BYTES = 4
_ATTRIBUTE = struct.Struct("=HH")
_MOST_STEPS, MOST_PACKETS = 512, 32


@dataclass(frozen=True, slots=True)
class Traced:
    """A packet: its number, and whether it goes "out" or comes "in"."""

    number: int
    direction: str


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that a packet met, the end of a chain, or the policy of a base chain.

    :param kind: "rule", "return" or "policy".
    :param target: of a jump or goto.
    :param addresses: the sender's and the receiver's, which are told once a chain; else empty.
    """

    packet: int
    family: str
    table: str
    chain: str
    handle: int
    kind: str
    verdict: str
    target: str
    addresses: tuple[str, ...] = ()


class Steps:
    """Those of our own packets, in the order in which they came, each with its packet."""

    def __init__(self, guest: str, other: str) -> None:
        self._ways = {(guest, other): "out", (other, guest): "in"}
        #: Ids, and which packet has it for now.
        self._ours: dict[int, Traced] = {}
        self._last: dict[str, Traced] = {}
        self._packets = 0
        self.steps: list[tuple[Traced, Step]] = []

    @property
    def full(self) -> bool:
        """Whether no more is kept."""
        return len(self.steps) >= _MOST_STEPS

    def add(self, step: Step) -> None:
        """Take in what the kernel told, where it is of a packet of ours."""
        if step.table == TABLE:
            self._see(step)
        elif step.packet in self._ours and not self.full:
            if step.kind != "rule" or step.handle:
                self.steps.append((self._ours[step.packet], step))
            if step.verdict == "drop":
                del self._ours[step.packet]

    def _see(self, step: Step) -> None:
        way = self._ways.get(step.addresses[:2]) if len(step.addresses) == 2 else None
        if way is None:
            return
        if step.chain == MARKS[way]:
            self._ours.pop(step.packet, None)
            if self._packets == MOST_PACKETS:
                return
            self._last[way] = Traced(self._packets, way)
            self._packets += 1
        if way in self._last:
            self._ours[step.packet] = self._last[way]


class TraceWatch(KernelListener):
    """The socket."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_NETFILTER, 1 << (_NFNLGRP_NFTRACE - 1))

    def told(self) -> list[Step]:
        """Everything heard since the last call; where messages were lost, the rest of them."""
        packets, _ = self.heard()
        found = [read_step(body) for data in packets for body in _traces(data)]
        return [one for one in found if one is not None]


def _traces(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        if kind == _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_TRACE:
            yield data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def read_step(body: bytes) -> Step | None:
    """One message without its header; None: it has not what each has."""
    told = _attributes(body[_GENMSG_BYTES:])
    kind = _TYPES.get(_number(told.get(_TYPE)))
    if kind is None or len(told.get(_ID, b"")) != 4 or _TABLE not in told or not body:
        return None
    verdict = _attributes(told.get(_VERDICT, b""))
    code = _number(verdict.get(_CODE), signed=True) if _CODE in verdict else None
    if kind == "policy":
        code = _number(told.get(_POLICY))
    # A rule without a verdict of its own goes on to the next.
    word = "continue" if code is None else _VERDICTS.get(code, "continue")
    return Step(
        packet=_number(told[_ID]),
        family=_FAMILIES.get(body[0], ""),
        table=_text(told[_TABLE]),
        chain=_text(told.get(_CHAIN, b"")),
        handle=_number(told.get(_HANDLE)),
        kind=kind,
        verdict=word,
        target=_text(verdict.get(_TARGET, b"")),
        addresses=_pair(told.get(_NETWORK, b"")),
    )


def _pair(header: bytes) -> tuple[str, ...]:
    """Sender and receiver in the header of an IP packet."""
    version = header[0] >> 4 if header else 0
    start, length = {4: (12, 4), 6: (8, 16)}.get(version, (0, 0))
    if not length or len(header) < start + 2 * length:
        return ()
    first, second = header[start : start + length], header[start + length : start + 2 * length]
    return str(ip_address(first)), str(ip_address(second))


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def _number(value: bytes | None, *, signed: bool = False) -> int:
    """In the order of the network; absent is 0."""
    return int.from_bytes(value or b"", "big", signed=signed)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")

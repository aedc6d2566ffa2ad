# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ends what conntrack remembers of one guest, by its exact address.

What is known passes without being asked about again. So the other end of a flow of a guest that is
no more would reach whoever has its address next, as long as it keeps the flow alive; and who sends
datagrams to a published port all the time would go on sending them to its former guest, also when
the port is somebody else's.

The kernel is asked for the flows, each is compared here, and deleted by itself. Of IPv4 the kernel
chooses those that it tells (from Linux 5.8 on; an earlier one tells all). Of IPv6 it tells all: it
has its choice by address the wrong way round, all but those that were asked for (Linux 6.18,
measured: ctnetlink_filter_match_tuple()). For the same reason it is never asked to delete what it
chooses.

Never ended: a flow of which none of these addresses is an end, or that is in a zone of somebody's.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    #: Attributes of one flow, or within one, by their number.
    Attributes = dict[int, bytes]

__all__ = ["end_datagrams", "end_flows"]

log = logging.getLogger(__name__)

_NETFILTER: Final = 12  # NETLINK_NETFILTER
# linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_*
_ORIGINAL, _REPLY, _FILTER = 1, 2, 25  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_FILTER
_IP, _PROTO = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_SOURCE: Final = {4: 1, 6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
_NUMBER, _TARGET_PORT = 1, 3  # CTA_PROTO_NUM, CTA_PROTO_DST_PORT
_BY_SOURCE: Final = 1 << 0  # CTA_FILTER_FLAG(CTA_IP_SRC), net/netfilter/nf_internals.h
_NESTED: Final = 0x8000
_REQUEST, _DUMP = 0x1, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
#: Bytes of messages in one send().
_BATCH: Final = 32768
_SECONDS: Final = 5
#: A guest that has filled the host's whole table keeps nobody waiting for longer than this; what is
#: not found by then ends at its own time.
_MOST_SECONDS: Final = 2


def end_flows(addresses: Iterable[str]) -> None:
    """Those that a guest with one of these addresses began, or answers."""
    for text in addresses:
        for direction in (_ORIGINAL, _REPLY):
            _end(ipaddress.ip_address(text), direction, lambda _: True)


def end_datagrams(target: str, host_ports: Container[int]) -> None:
    """What came by UDP for one of these ports, and is answered by this guest."""

    def came_for_one(original: Attributes) -> bool:
        asked = _attributes(original.get(_PROTO, b""))
        number, port = asked.get(_NUMBER), asked.get(_TARGET_PORT, b"")
        return number == bytes([socket.IPPROTO_UDP]) and int.from_bytes(port) in host_ports

    _end(ipaddress.ip_address(target), _REPLY, came_for_one)


def _end(address: Address, direction: int, chosen: Callable[[Attributes], bool]) -> None:
    """Flows whose packets of a direction have this source, and that are *chosen* by the other
    side's view of them, :data:`_ORIGINAL`."""
    family = struct.pack("!BBH", _FAMILY[address.version], 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as kernel:
            kernel.settimeout(_SECONDS)
            latest = time.monotonic() + _MOST_SECONDS
            found = []
            for flow in _told(kernel, family + _choice(address, direction), address.packed):
                if _source(flow.get(direction, b""), address.version) != address.packed:
                    continue
                if chosen(_attributes(flow[_ORIGINAL])):
                    which = _attribute(_ORIGINAL | _NESTED, flow[_ORIGINAL])
                    found.append(_message(_DELETE, _REQUEST, family + which))
                if time.monotonic() > latest:
                    log.warning("too many flows of a guest that is gone; some stay known")
                    break
            # PRIVILEGE: CAP_NET_ADMIN; flows with an end at an address that was a guest's of ours.
            # One that has ended by itself is refused, and nobody reads that.
            for batch in _batches(found):
                kernel.send(batch)
    except OSError as error:
        # No reason to keep an address or a port: they would be nobody's for ever.
        log.warning("flows of a guest that is gone stay known for a while: %s", error)


def _choice(address: Address, direction: int) -> bytes:
    if address.version == 6:
        return b""
    source = _attribute(_SOURCE[4], address.packed)
    said = _attribute(direction | _NESTED, _attribute(_IP | _NESTED, source))
    # CTA_FILTER_ORIG_FLAGS and CTA_FILTER_REPLY_FLAGS.
    flags = (_BY_SOURCE if one == direction else 0 for one in (_ORIGINAL, _REPLY))
    both = (_attribute(kind, struct.pack("=I", one)) for kind, one in enumerate(flags, 1))
    return said + _attribute(_FILTER | _NESTED, b"".join(both))


def _told(kernel: socket.socket, asked: bytes, needle: bytes) -> Iterator[Attributes]:
    """The flows that the kernel tells, but for those in which these bytes are nowhere."""
    kernel.send(_message(_GET, _REQUEST | _DUMP, asked))
    while True:
        answer = kernel.recv(1 << 17)
        at, may_be_there = 0, needle in answer
        while at < len(answer):
            length, kind = struct.unpack_from("=IH", answer, at)
            if kind in (_ERROR, _DONE):
                (code,) = struct.unpack_from("=i", answer, at + 16)
                if code:
                    raise OSError(-code, os.strerror(-code))
                return
            if length < 16:
                raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
            if may_be_there and answer.find(needle, at, at + length) >= 0:
                yield _attributes(answer[at + 20 : at + length], most=2)  # the tuples come first
            at += length + -length % 4


def _source(seen: bytes, version: int) -> bytes:
    """Of a direction of a flow."""
    return _attributes(_attributes(seen).get(_IP, b"")).get(_SOURCE[version], b"")


def _attributes(said: bytes, most: int = 16) -> Attributes:
    """The first ones, at most so many."""
    found: Attributes = {}
    at = 0
    while at + 4 <= len(said) and len(found) < most:
        length, kind = struct.unpack_from("=HH", said, at)
        if length < 4:
            break
        found[kind & ~_NESTED] = said[at + 4 : at + length]
        at += length + -length % 4
    return found


def _batches(messages: list[bytes]) -> Iterator[bytes]:
    """As few as they can be sent in."""
    many = max(1, _BATCH // max(map(len, messages), default=1))
    for first in range(0, len(messages), many):
        yield b"".join(messages[first : first + many])


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

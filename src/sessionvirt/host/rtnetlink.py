# SPDX-License-Identifier: LGPL-2.1-or-later
"""A question to the kernel about its routing, which everybody may ask: rtnetlink(7).

No answer is an error here: what the kernel does not tell is not known.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DUMP", "FAMILIES", "ask", "attribute", "attributes", "messages"]

FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
#: linux/netlink.h
DUMP: Final = 0x300
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_SECONDS = 2


def ask(kind: int, body: bytes, *, flags: int = 0) -> Iterator[bytes]:
    """What the kernel answers, in pieces of whole messages.

    :param flags: DUMP: everything that there is of the kind.
    """
    request = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 1, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            kernel.settimeout(_SECONDS)
            kernel.send(request)
            while True:
                data = kernel.recv(1 << 16)
                yield data
                kinds = [kind for kind, _ in messages(data)]
                if not flags or not kinds or {_NLMSG_DONE, _NLMSG_ERROR} & {*kinds}:
                    return
    except OSError:
        return


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and value of each, from behind a message's own structure."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One to ask with."""
    head = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind)
    return head + value + bytes(-len(value) % 4)

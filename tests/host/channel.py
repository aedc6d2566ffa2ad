# SPDX-License-Identifier: LGPL-2.1-or-later
"""Frames on the virtio-serial port between the machine that runs QEMU and the host inside.

A frame is a header (:data:`HEADER`: job number, kind, length) and that many bytes. Either end may
lose the other in the middle of a frame: whoever connects sends :data:`MARK` and eight random bytes,
and what comes before the same bytes are sent back is dropped. Both ends import this file, and the
guest has nothing else of the checkout when it boots, so it needs the standard library only.

It trusts both ends; it is no way into a machine that does not want to be tested.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CHUNK",
    "HEADER",
    "MARK",
    "PORTS",
    "TOKEN_BYTES",
    "Kind",
    "pack",
    "port_name",
    "read_frame",
]

#: How many conversations a host can have at the same time.
PORTS = 4

MARK = b"\0\xffsessionvirt test host\xff\0"
TOKEN_BYTES = 8
HEADER = struct.Struct(">IBI")
#: The most that one frame carries, so that no job keeps the port for long.
CHUNK = 32768


class Kind(enum.IntEnum):
    """What a frame carries."""

    #: JSON: argv, env, cwd, terminal ([rows, columns] or null). From the outside.
    START = 1
    #: Bytes for the job's standard input; none: it ends. From the outside.
    INPUT = 2
    #: A signal's number, as text. From the outside.
    SIGNAL = 3
    #: ``ROWS COLUMNS``. From the outside.
    RESIZE = 4
    #: Bytes of the job. From the guest.
    OUTPUT = 5
    ERRORS = 6
    #: The exit status as text; minus a signal's number where one ended it. From the guest.
    EXIT = 7


def port_name(number: int) -> str:
    """The name of a port: the file below /dev/virtio-ports in the guest."""
    return f"org.sessionvirt.testhost.{number}"


def pack(job: int, kind: Kind, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return HEADER.pack(job, kind, len(payload)) + payload


def read_frame(
    read_exactly: Callable[[int], bytes], marked: Callable[[bytes], None]
) -> tuple[int, Kind, bytes]:
    """The next frame.

    :param read_exactly: gives that many bytes or raises EOFError.
    :param marked: is told the token of a mark that stands between frames: one that was said twice.
    :raise ValueError: that is no frame.
    """
    while (header := read_exactly(HEADER.size)) == MARK[: HEADER.size]:
        rest = read_exactly(len(MARK) - HEADER.size + TOKEN_BYTES)
        marked(rest[-TOKEN_BYTES:])
    job, kind, length = HEADER.unpack(header)
    return job, Kind(kind), read_exactly(length)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the bus connection: whole messages of bounded size, their fds in one owner's hands.

dbus-fast reads messages itself, too, but whatever it does not understand ends its connection, and
with it this process: in 1.84 (Debian 12) a header with two flags set is enough (measured). It makes
Python objects of 32 MiB if somebody sends 32 MiB, goes on reading as long as somebody sends, leaves
fds open over exec, and 1.84 has room for one of several. So the bytes are read here, and the
library gets one message at a time to decode.

Nothing that a message holds can end the connection; only the bus can. What is too large is not
kept, what cannot be decoded is dropped, and both are refused with an error where the header says to
whom.
"""

from __future__ import annotations

import array
import io
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from dbus_fast import Message, MessageFlag
from dbus_fast._private.unmarshaller import Unmarshaller

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

#: The largest message that is looked at, header and all; an honest one has some hundred bytes.
LARGEST = 64 * 1024
#: How many messages are read before others on the loop have their turn.
_AT_ONCE = 32
#: SCM_MAX_FD in include/net/scm.h.
_MAX_FDS = 253
#: Endianness, type, flags, version, length of the body, serial, length of the header's fields.
_HEADER = 16
_FLAGS = 2
_BODY_LENGTH = slice(4, 8)
_KNOWN_FLAGS = 0x7


class Intake:
    """The reader of one connection; :meth:`read` is called when its socket is readable.

    :param deliver: gets each message, and owns its fds.
    :param refuse: gets the header of a message whose body is not there, and why.
    :param ended: the bus is gone.
    """

    def __init__(
        self,
        connection: socket.socket,
        deliver: Callable[[Message], None],
        refuse: Callable[[Message, str], None],
        ended: Callable[[Exception], None],
    ) -> None:
        self._connection = connection
        self._deliver = deliver
        self._refuse = refuse
        self._ended = ended
        self._buffer = bytearray()
        self._fds: list[int] = []
        #: Bytes of a body that is too large, still to come.
        self._skip = 0

    def read(self) -> None:
        """Take what is there, and hand it on."""
        try:
            for _ in range(_AT_ONCE):
                self._one()
        except BlockingIOError:
            return
        except (OSError, EOFError) as error:
            self.close()
            self._ended(error)

    def close(self) -> None:
        """Close the fds of a message that was not whole yet."""
        fds, self._fds = self._fds, []
        for descriptor in fds:
            os.close(descriptor)

    def _one(self) -> None:
        """One message; BlockingIOError: it has not arrived whole."""
        self._fill(_HEADER)
        order = {ord("l"): "<", ord("B"): ">"}.get(self._buffer[0])
        if order is None:
            raise EOFError("the bus sent something that is no message")
        body, _, fields = struct.unpack_from(f"{order}III", self._buffer, 4)
        head = _HEADER + fields + -fields % 8
        if head > LARGEST:
            raise EOFError("the bus sent a header that no bus lets through")
        if head + body <= LARGEST:
            self._fill(head + body)
            raw, fault = self._take(), "the message is not understood"
        else:
            if not self._skip:
                self._fill(head)
                self._skip = body
            self._discard()
            raw, fault = self._take(), f"the message is larger than {LARGEST} bytes"
        fds, self._fds = self._fds, []
        message = _decode(raw, fds) if len(raw) > head or not body else None
        if message is not None:
            self._deliver(message)
            return
        for descriptor in fds:
            os.close(descriptor)
        raw[_BODY_LENGTH] = bytes(4)
        header = _decode(raw[:head], [])
        if header is not None:
            self._refuse(header, fault)

    def _take(self) -> bytearray:
        raw, self._buffer = self._buffer, bytearray()
        return raw

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            self._buffer += self._receive(size - len(self._buffer))

    def _discard(self) -> None:
        while self._skip:
            self._skip -= len(self._receive(min(self._skip, LARGEST)))

    def _receive(self, size: int) -> bytes:
        """Never more than what belongs to this message, so that fds stay with their message."""
        data, control, _, _ = self._connection.recvmsg(
            size, socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, rights in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array.array("i")
                descriptors.frombytes(rights[: len(rights) - len(rights) % descriptors.itemsize])
                self._fds += descriptors
        if not data:
            raise EOFError("the bus closed the connection")
        return data


def _decode(raw: bytearray, fds: list[int]) -> Message | None:
    """The message, or None. Its flags are decoded here: the library's tables know few of them."""
    plain: Any = io.BytesIO(raw[:_FLAGS] + b"\0" + raw[_FLAGS + 1 :])
    try:
        message: Message | None = Unmarshaller(plain).unmarshall()
    except Exception as error:
        log.warning("a message that cannot be decoded: %s", type(error).__name__)
        return None
    if message is not None:
        message.flags = MessageFlag(raw[_FLAGS] & _KNOWN_FLAGS)
        message.unix_fds = fds
    return message

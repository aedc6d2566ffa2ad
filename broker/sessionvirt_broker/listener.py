# SPDX-License-Identifier: LGPL-2.1-or-later
"""A netlink socket that only listens to what the kernel tells everybody.

Read on the loop, which it never blocks. A queue that overflowed (ENOBUFS) means that messages were
lost. What somebody else sends is not heard: only the kernel has port 0 (netlink(7)).
"""

from __future__ import annotations

import errno
import socket

_AT_ONCE = 64
_MAX_BYTES = 1 << 16


class KernelListener:
    """Give :meth:`fileno` to the loop.

    :param protocol: of netlink, such as NETLINK_ROUTE.
    :param groups: the mask of those that are listened to.
    """

    def __init__(self, protocol: int, groups: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            protocol,
        )
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        """What the loop watches for reading."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    def heard(self) -> tuple[list[bytes], bool]:
        """The kernel's messages since the last call, and whether some were lost."""
        messages: list[bytes] = []
        lost = False
        for _ in range(_AT_ONCE):  # the loop comes again for what is left
            try:
                data, sender = self._socket.recvfrom(_MAX_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            if sender[0] == 0:
                messages.append(data)
        return messages, lost

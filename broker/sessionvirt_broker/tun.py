# SPDX-License-Identifier: LGPL-2.1-or-later
"""One TAP device and its queues, by the kernel's own interface
(Documentation/networking/tuntap.rst).

pyroute2 is not used here: its ``tuntap`` makes the device persistent, gives no fd back and knows no
``IFF_TUN_EXCL``. Without that flag a TUNSETIFF attaches to a device that somebody else made under
the same name.

The owner is set to the broker's own uid. Unset, anybody could attach a queue of their own to a
multiqueue device (tun_not_capable() in drivers/net/tun.c) and read another's frames.
"""

from __future__ import annotations

import fcntl
import os
import struct

DEVICE = "/dev/net/tun"

_TUNSETIFF = 0x400454CA
_TUNSETOWNER = 0x400454CC
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_MULTI_QUEUE = 0x0100
_IFF_TUN_EXCL = 0x8000
#: struct ifreq: a name of IFNAMSIZ bytes, then the flags in a union of 24 bytes.
_IFREQ = struct.Struct("16sH22x")


def create(name: str, queues: int) -> list[int]:
    """Make a TAP that lives as long as its fds.

    :param name: validated, at most 15 ASCII bytes.
    :return: one fd a queue, close-on-exec; the caller owns them.
    :raise FileExistsError, OSError: nothing was made.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    if queues > 1:
        flags |= _IFF_MULTI_QUEUE
    descriptors: list[int] = []
    try:
        for queue in range(queues):
            descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
            descriptors.append(descriptor)
            # The first must make it, the others must find it.
            exclusive = 0 if queue else _IFF_TUN_EXCL
            request = _IFREQ.pack(name.encode("ascii"), flags | exclusive)
            # PRIVILEGE: CAP_NET_ADMIN; makes an interface in the host's network namespace.
            answer = fcntl.ioctl(descriptor, _TUNSETIFF, request)
            if _IFREQ.unpack(answer)[0].rstrip(b"\0") != name.encode("ascii"):
                raise OSError(f"the kernel named the TAP otherwise than {name}")
            if not queue:
                fcntl.ioctl(descriptor, _TUNSETOWNER, os.geteuid())
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return descriptors

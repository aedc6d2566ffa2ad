# SPDX-License-Identifier: LGPL-2.1-or-later
"""A virtio transmit queue that the kernel's vhost-net empties into a TAP, as QEMU sets it up.

Frames go by another way than write(2) on the TAP: a thread of the kernel hands them over in batches
(``vhost_net_build_xdp()`` and ``tun_xdp_one()`` in drivers/vhost/net.c and drivers/net/tun.c).

As a program: ``vhost.py TAP VHOST`` takes frames in hexadecimal, a line each, on standard input,
says ``sent`` for each when the kernel has delivered it, and ends with its input. The two
descriptors are inherited; ``VHOST`` is one of /dev/vhost-net, which whoever runs this need not be
able to open.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import struct
import sys

#: include/uapi/linux/vhost.h, as _IO(0xAF, N) and _IOW(0xAF, N, size).
SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 0x4008AF00, 0xAF01, 0x4008AF03
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE = 0x4008AF10, 0x4028AF11, 0x4008AF12
SET_VRING_KICK, SET_VRING_CALL, SET_BACKEND = 0x4008AF20, 0x4008AF21, 0x4008AF30

TRANSMIT = 1
#: As many as have room in a page each: descriptors, available ring, used ring; and a page for the
#: one frame with its header.
ENTRIES = 256
DESCRIPTORS, AVAILABLE, USED, FRAME, SIZE = 0, 4096, 8192, 12288, 4096 + 12288
#: struct virtio_net_hdr, all zero: no offload. The TAP has IFF_VNET_HDR, so it is for the TAP.
HEADER = bytes(10)


class Transmitter:
    """The queue; one frame is under way at a time, in as many copies as are wanted."""

    def __init__(self, tap: int, device: int) -> None:
        """:raise OSError: somebody else is its owner."""
        self._device = device
        self._kick, self._call = os.eventfd(0), os.eventfd(0)
        self._memory = mmap.mmap(-1, SIZE)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._count = 0
        base = self._base
        self._do(SET_OWNER, 0)
        self._do(SET_FEATURES, struct.pack("Q", 0))
        # The guest's memory is this page range, at its own address.
        self._do(SET_MEM_TABLE, struct.pack("IIQQQQ", 1, 0, base, SIZE, base, 0))
        self._do(SET_VRING_NUM, struct.pack("II", TRANSMIT, ENTRIES))
        self._do(SET_VRING_BASE, struct.pack("II", TRANSMIT, 0))
        rings = (base + DESCRIPTORS, base + USED, base + AVAILABLE, 0)
        self._do(SET_VRING_ADDR, struct.pack("IIQQQQ", TRANSMIT, 0, *rings))
        self._do(SET_VRING_KICK, struct.pack("Ii", TRANSMIT, self._kick))
        self._do(SET_VRING_CALL, struct.pack("Ii", TRANSMIT, self._call))
        self._do(SET_BACKEND, struct.pack("Ii", TRANSMIT, tap))

    def _do(self, request: int, argument: bytes | int) -> None:
        fcntl.ioctl(self._device, request, argument)

    def send(self, frame: bytes, copies: int = 1) -> None:
        """Hand a frame over, and wait until the kernel says that it is done with it.

        :raise TimeoutError: it never did.
        """
        self.post(frame, copies)
        self.wait()

    def post(self, frame: bytes, copies: int) -> None:
        """Hand a frame over so many times, at most ENTRIES, at one go."""
        packet, memory = HEADER + frame, self._memory
        memory[FRAME : FRAME + len(packet)] = packet
        descriptor = struct.pack("QIHH", self._base + FRAME, len(packet), 0, 0)
        # Every slot of the available ring is zero, which is to say: this descriptor.
        memory[DESCRIPTORS : DESCRIPTORS + 16] = descriptor
        self._count += copies
        memory[AVAILABLE + 2 : AVAILABLE + 4] = struct.pack("H", self._count & 0xFFFF)
        os.eventfd_write(self._kick, 1)

    def wait(self) -> None:
        """Until the kernel is done with all that was handed over."""
        while struct.unpack_from("H", self._memory, USED + 2)[0] != self._count & 0xFFFF:
            if not select.select([self._call], [], [], 20)[0]:
                raise TimeoutError("vhost-net has not taken the frame")
            os.eventfd_read(self._call)


def main() -> None:
    transmitter = Transmitter(*map(int, sys.argv[1:]))
    print("ready", flush=True)
    for line in sys.stdin:
        transmitter.send(bytes.fromhex(line))
        print("sent", flush=True)


if __name__ == "__main__":
    main()

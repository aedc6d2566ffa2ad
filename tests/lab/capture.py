# SPDX-License-Identifier: LGPL-2.1-or-later
"""What went through the guests' TAPs during a test, kept for when it fails.

The file is pcapng (draft-ietf-opsawg-pcapng), an interface for each TAP; wireshark and tcpdump read
it. Seen from the guest: what it sends is outbound.
"""

from __future__ import annotations

import re
import struct
import time
from collections import deque
from pathlib import Path

__all__ = ["DIRECTORY", "INBOUND", "OUTBOUND", "begin", "note", "write"]

DIRECTORY = Path(__file__).resolve().parents[2] / "dist/captures"
#: The last of these many frames are kept.
MOST = 5000
INBOUND, OUTBOUND = 1, 2

_seen: deque[tuple[int, str, int, bytes]] = deque(maxlen=MOST)


def begin() -> None:
    """A test begins."""
    _seen.clear()


def note(name: str, direction: int, frame: bytes) -> None:
    """A frame at the TAP *name*, now."""
    _seen.append((time.time_ns() // 1000, name, direction, frame))


def write(test: str) -> Path | None:
    """A file with all of it, named for the test; None where there was nothing."""
    if not _seen:
        return None
    names = sorted({name for _, name, _, _ in _seen})
    blocks = [_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
    # LINKTYPE_ETHERNET, frames whole, if_name.
    blocks += [
        _block(1, struct.pack("<HHI", 1, 0, 0) + _options((2, one.encode()))) for one in names
    ]
    for moment, name, direction, frame in _seen:
        head = struct.pack(
            "<IIIII", names.index(name), moment >> 32, moment & 0xFFFFFFFF, len(frame), len(frame)
        )
        flags = _options((2, struct.pack("<I", direction)))
        blocks.append(_block(6, head + _padded(frame) + flags))
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / (re.sub(r"[^A-Za-z0-9_.-]+", "-", test)[-120:].strip("-") + ".pcapng")
    path.write_bytes(b"".join(blocks))
    return path


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _options(*options: tuple[int, bytes]) -> bytes:
    encoded = (struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    return b"".join(encoded) + bytes(4)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)

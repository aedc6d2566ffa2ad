# SPDX-License-Identifier: LGPL-2.1-or-later
"""An honest flow for ``./dev bench firewall``: datagrams to a port that answers each.

Run as ``_flow.py ADDRESS PORT RATE``, in the sender's network namespace: sends so many a second,
all of one flow. A line on standard input ends a stretch: it answers in JSON how many were sent and
how many were answered within half a second of the last, and begins the next.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from typing import TextIO

#: For the last answers.
GRACE = 0.5
ROOM = 4 << 20
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


def answers(caller: socket.socket) -> int:
    """How many have come."""
    found = 0
    while True:
        try:
            caller.recv(2048)
        except BlockingIOError:
            return found
        except ConnectionRefusedError:
            continue  # an error that came back, no answer
        found += 1


def stretch(caller: socket.socket, rate: int) -> tuple[int, int]:
    """Until there is a line, or the input's end."""
    begun, sent, got = time.monotonic(), 0, 0
    while True:
        # One at a time: after a pause of this process it is as if it had begun later.
        due = begun + 1 / rate
        waited: list[socket.socket | TextIO] = [caller, sys.stdin]
        ready, _, _ = select.select(waited, [], [], max(0.0, due - time.monotonic()))
        got += answers(caller)
        if sys.stdin in ready:
            end = time.monotonic() + GRACE
            while (left := end - time.monotonic()) > 0:
                select.select([caller], [], [], left)
                got += answers(caller)
            return sent, got
        if time.monotonic() >= due:
            begun = time.monotonic()
            sent += 1
            try:
                caller.send(b"?")
            except OSError:
                continue  # an error of a former one; counted as sent, and lost


def main(address: str, port: str, rate: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        caller.connect((address, int(port)))
        caller.settimeout(0)
        while True:
            counts = stretch(caller, int(rate))
            if not sys.stdin.readline():
                return
            print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

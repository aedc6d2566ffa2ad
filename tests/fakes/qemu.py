# SPDX-License-Identifier: LGPL-2.1-or-later
"""A QEMU that misbehaves: ``qemu.py MODE ...-chardev socket,id=monitor,fd=N...``.

It answers the few commands that a probe and a start need, as wrongly as MODE says. It stands at the
border of a process; whatever behaves is real QEMU's part.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

GREETING = {"QMP": {"version": {"qemu": {"major": 9, "minor": 8, "micro": 7}, "package": ""},
                    "capabilities": []}}  # fmt: skip

ANSWERS: dict[str, object] = {
    "query-machines": [
        {"name": "pc-9.8", "alias": "pc", "is-default": True, "cpu-max": 1},
        {"name": "none", "cpu-max": 1},
    ],
    "qom-list-types": [{"name": "some-type"}],
    "query-cpu-definitions": [{"name": "max"}],
    "query-qmp-schema": [
        {"name": "netdev_add", "meta-type": "command", "arg-type": "7"},
        {"name": "7", "meta-type": "object", "variants": [{"case": "user", "type": "8"}]},
    ],
}


def monitor() -> socket.socket:
    """The socket that the command line speaks of."""
    found = re.search(r"socket,id=monitor,fd=(\d+)", " ".join(sys.argv))
    assert found
    return socket.socket(fileno=int(found.group(1)))


def messages(connection: socket.socket) -> Iterator[dict[str, object]]:
    """Whole JSON objects; QMP has no separator that a client must write."""
    text = ""
    while data := connection.recv(65536):
        text += data.decode()
        while text := text.lstrip():
            try:
                message, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:]
            yield message


def serve(connection: socket.socket, mode: str) -> None:
    """Greet, and answer until the other side has gone."""
    connection.sendall(json.dumps(GREETING).encode() + b"\n")
    for message in messages(connection):
        command = message["execute"]
        if mode == "dies-after-capabilities" and command != "qmp_capabilities":
            print("terminate called without an active exception", file=sys.stderr, flush=True)
            sys.exit(134)
        if mode == "stalls" and command != "qmp_capabilities":
            time.sleep(1000)
        answer: dict[str, object] = {
            "return": ANSWERS.get(str(command), {}),
            "id": message.get("id"),
        }
        if mode == "wrong-types" and command == "query-machines":
            answer["return"] = {"machines": "many"}
        if mode == "refuses" and command == "query-qmp-schema":
            answer = {"error": {"class": "GenericError", "desc": "no"}, "id": message.get("id")}
        connection.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    mode = sys.argv[1]
    connection = monitor()
    match mode:
        case "exits-at-once":
            print("qemu: -machine nonsense: unsupported machine type", file=sys.stderr)
            sys.exit(1)
        case "kills-itself":
            import os
            import signal

            os.kill(os.getpid(), signal.SIGSEGV)
        case "silent":
            time.sleep(1000)
        case "closes-monitor":
            connection.close()
            time.sleep(1000)
        case "garbage":
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            time.sleep(1000)
        case "not-a-greeting":
            connection.sendall(b'{"return": {}}\n')
            time.sleep(1000)
        case "half-a-greeting":
            connection.sendall(b'{"QMP": {"version": ')
            sys.exit(0)
        case "floods-stderr":
            sys.stderr.write("x" * 1_000_000 + "\nthe last line\n")
            sys.exit(3)
    serve(connection, mode)


main()

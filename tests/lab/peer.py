# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program in the outside world: tells whoever calls which source address it saw.

usage: peer.py PORT     TCP: an HTTP answer; UDP: a datagram; each with the address and a newline.

The path /hold is answered only after a line on standard input: a guest waits there while somebody
looks.

Writes ``ready`` when it listens, on every address that will ever be there. Ends with its standard
input.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RELEASED = threading.Event()


def plain(address: str) -> str:
    """An IPv4 address as IPv4, though the socket is a dual one."""
    return address.removeprefix("::ffff:")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/hold":
            RELEASED.wait()
        body = f"{plain(self.client_address[0])}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: what was seen is the answer."""


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        # http.server's own asks for the host's name, and so the resolver: there is none here.
        self.server_name, self.server_port = "outside", self.server_address[1]


def answer_datagrams(port: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", port))
        while True:
            _, sender = server.recvfrom(2048)
            # Who came without NAT has no way back; the next one may.
            with contextlib.suppress(OSError):
                server.sendto(f"{plain(sender[0])}\n".encode(), sender)


def main() -> None:
    port = int(sys.argv[1])
    threading.Thread(target=answer_datagrams, args=(port,), daemon=True).start()
    server = Server(("::", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    for _ in sys.stdin:
        RELEASED.set()
    os._exit(0)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program behind ``kernelguest.py``: a network namespace that is a guest, on a TAP's fd.

usage: standin.py NAME FD MAC IPV4/LEN GATEWAY4 IPV6/LEN GATEWAY6

Carries frames between the fd and a TAP of its own, behind which is this namespace's kernel. Answers
on :data:`PORTS`, TCP and UDP, with its name, the port and the address that it saw. A line on
standard input, ``tcp ADDRESS PORT``, asks somebody; the answer, or the error's name, is a line.
Writes ``ready`` when its gateway answers.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading

PORTS = (80, 81, 82)
#: IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, as the broker's.
_FLAGS = 0x0002 | 0x1000 | 0x4000


def ask(
    kind: str, address: str, port: int, timeout: float = 1.0, source: str = "", sport: int = 0
) -> str:
    """What comes back, or the error's name.

    :param source: the own address to ask from, and ``sport`` the port; empty: the kernel's choice.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    how = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, how) as caller:
        caller.settimeout(timeout)
        if source:
            caller.bind((source, sport))
        try:
            caller.connect((address, port))
            if kind == "udp":
                caller.send(b"?")
            return caller.recv(200).decode() or "closed"
        except OSError as error:
            return type(error).__name__


def own_tap(mac: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"eth0", _FLAGS))
    ip("link", "set", "eth0", "address", mac)
    return tap


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def carry(one: int, other: int) -> None:
    os.set_blocking(one, False)
    os.set_blocking(other, False)
    while True:
        for ready in select.select([one, other], [], [])[0]:
            try:
                frame = os.read(ready, 70000)
                os.write(other if ready == one else one, frame)
            except OSError as error:
                if error.errno not in (11, 105):  # EAGAIN, ENOBUFS: a lost frame
                    return


def plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def serve_tcp(name: str, port: int, server: socket.socket) -> None:
    while True:
        caller, address = server.accept()
        with caller:
            caller.sendall(f"{name} {port} {plain(address[0])}".encode())


def serve_udp(name: str, port: int, server: socket.socket) -> None:
    while True:
        _, address = server.recvfrom(200)
        server.sendto(f"{name} {port} {plain(address[0])}".encode(), address)


def listen(name: str) -> None:
    for port in PORTS:
        for kind, serve in ((socket.SOCK_STREAM, serve_tcp), (socket.SOCK_DGRAM, serve_udp)):
            server = socket.socket(socket.AF_INET6, kind)
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.bind(("::", port))
            if kind is socket.SOCK_STREAM:
                server.listen()
            threading.Thread(target=serve, args=(name, port, server), daemon=True).start()


def main(name: str, fd: str, mac: str, *where: str) -> None:
    interface4, gateway4, interface6, gateway6 = where
    ip("link", "set", "lo", "up")
    tap = own_tap(mac)
    ip("address", "add", interface4, "dev", "eth0")
    ip("address", "add", interface6, "dev", "eth0", "nodad")
    ip("link", "set", "eth0", "up")
    # Only now: what is down takes no frame.
    threading.Thread(target=carry, args=(int(fd), tap), daemon=True).start()
    ip("route", "add", "default", "via", gateway4)
    ip("-6", "route", "add", "default", "via", gateway6)
    listen(name)
    for gateway in (gateway4, gateway6):
        # A bridge whose first port has just come drops what it would send.
        ping = ["ping", "-c1", "-W0.3", "-q", gateway]
        if all(
            subprocess.run(ping, stdout=subprocess.DEVNULL, check=False).returncode
            for _ in range(30)
        ):
            sys.exit(f"{gateway} does not answer")
    print("ready", flush=True)
    for line in sys.stdin:
        kind, address, port = line.split()
        print(ask(kind, address, int(port)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the lab's host looks like from the inside: links, the bridge's table, nft sets, sysctls."""

from __future__ import annotations

import json
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["elements", "fdb", "forwarding", "ip", "link", "listener", "nft", "ours", "tables"]

IPV4_CONF = Path("/proc/sys/net/ipv4/conf")


def ip(*arguments: str) -> str:
    """ip(8); its standard output."""
    return subprocess.run(["ip", *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout


def nft(*arguments: str) -> str:
    """nft(8); its standard output."""
    return subprocess.run(["nft", *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout


def link(name: str) -> dict[str, Any]:
    """One interface as ip(8) shows it in JSON, with details; empty where there is none."""
    done = subprocess.run(
        ["ip", "-json", "-details", "link", "show", "dev", name],
        capture_output=True,
        check=False,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout or b"[]")
    return found[0] if found else {}


def ours() -> list[str]:
    """The broker's interfaces, TAPs and bridges."""
    return sorted(
        path.name
        for path in Path("/sys/class/net").iterdir()
        if path.name.startswith(("svt", "svn_"))
    )


def fdb(bridge: str) -> dict[str, str]:
    """The bridge's forwarding database: MAC to port, multicast left out."""
    done = subprocess.run(
        ["bridge", "-json", "fdb", "show", "br", bridge], stdout=subprocess.PIPE, check=True
    )
    return {
        entry["mac"]: entry["ifname"]
        for entry in json.loads(done.stdout)
        if not int(entry["mac"][:2], 16) & 1
    }


def tables() -> list[str]:
    """``family name`` of every nft table."""
    rows = json.loads(nft("--json", "list", "tables"))["nftables"]
    return sorted(
        f"{row['table']['family']} {row['table']['name']}" for row in rows if "table" in row
    )


def elements(family: str, name: str, kind: str = "set") -> list[Any]:
    """The elements of a set of the broker's, or of a "map", without counters."""
    rows = json.loads(nft("--json", "list", kind, family, "sessionvirt", name))["nftables"]
    found = [row[kind].get("elem", []) for row in rows if kind in row]
    return [
        one["elem"]["val"] if isinstance(one, dict) and "elem" in one else one for one in found[0]
    ]


def forwarding(name: str) -> str:
    """``net.ipv4.conf.NAME.forwarding``."""
    return (IPV4_CONF / name / "forwarding").read_text().strip()


@contextmanager
def listener(address: str, port: int, kind: socket.SocketKind) -> Iterator[socket.socket]:
    """A service of the host on one address; it does not wait."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        service.bind((address, port))
        if kind is socket.SOCK_STREAM:
            service.listen()
        service.settimeout(0)
        yield service

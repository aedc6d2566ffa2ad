# SPDX-License-Identifier: LGPL-2.1-or-later
"""What everybody can see of the host's other firewalls and of its routing: files, no privilege.

What a firewall does with a guest's packets the broker reads in the rules; here is whose those may
be, and what stops packets without a rule: forwarding that is off, strict reverse path filtering.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .routes import default_rows

__all__ = ["Presence", "bridge_calls", "not_forwarding", "presence", "strict_uplinks", "uplinks"]


@dataclass(frozen=True)
class Presence:
    """Which programs with rules of their own are in use here."""

    docker: bool
    ufw: bool
    firewalld: bool


def presence(root: str = "/") -> Presence:
    """Look for what each leaves where everybody can see it."""
    base = Path(root)
    docker = any((base / one).exists() for one in ("run/docker.sock", "sys/class/net/docker0"))
    return Presence(
        docker=docker,
        ufw="enabled=yes" in _read(base / "etc/ufw/ufw.conf").lower(),
        firewalld=_runs(base, "firewalld"),
    )


def _runs(base: Path, name: str) -> bool:
    """Whether a process is called so; where processes of others are hidden, none is."""
    try:
        numbers = [one for one in os.listdir(base / "proc") if one.isdecimal()]
    except OSError:
        return False
    return any(_read(base / "proc" / number / "comm").strip() == name for number in numbers)


def not_forwarding(interfaces: tuple[str, ...], root: str = "/") -> tuple[str, ...]:
    """Which of these do not forward the IPv4 that comes in by them."""
    conf = Path(root) / "proc/sys/net/ipv4/conf"
    return tuple(one for one in interfaces if _read(conf / one / "forwarding").strip() == "0")


def bridge_calls(root: str = "/") -> tuple[str, ...]:
    """The switches of br_netfilter that are on: bridged frames pass the host's IP rules, too."""
    directory = Path(root) / "proc/sys/net/bridge"
    names = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")
    return tuple(name for name in names if _read(directory / name).strip() == "1")


def uplinks(root: str = "/") -> tuple[str, ...]:
    """The interfaces with a default route of IPv4."""
    return tuple(sorted({row[0] for row in default_rows(str(Path(root) / "proc/net/route"))}))


def strict_uplinks(root: str = "/") -> tuple[str, ...]:
    """Of several interfaces with a default route those with rp_filter=1.

    What comes in by another than the best of them is dropped there, answers to guests included.
    """
    found = uplinks(root)
    if len(found) < 2:
        return ()
    conf = Path(root) / "proc/sys/net/ipv4/conf"
    values = {
        one: max(_read(conf / of / "rp_filter").strip() or "0" for of in ("all", one))
        for one in found
    }
    return tuple(one for one, value in values.items() if value == "1")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts about the host for ``sessionvirt doctor``; the session side words them. No side effect."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .dnsmasq import PROGRAM
from .errors import ConfigurationError
from .forwarding import is_global
from .network import is_systemd
from .privileges import CAPABILITIES, effective
from .tun import DEVICE

if TYPE_CHECKING:
    from .config import ConfigFile
    from .host import Host


def facts(host: Host, config: ConfigFile) -> dict[str, object]:
    """As the contract's Diagnose says, but for ``polkit``."""
    have = effective()
    try:
        configuration = config.current().source
    except ConfigurationError as error:
        configuration = str(error)
    return {
        "version": __version__,
        "boot_id": boot_id(),
        "capabilities": tuple(name for name in CAPABILITIES if name in have),
        "missing_capabilities": tuple(name for name in CAPABILITIES if name not in have),
        "nft_tables": host.firewall.state().value,
        "ip_forward": is_global(host.paths.proc_net),
        "bridge_nf_call": _bridge_nf_call(host.paths.proc_net),
        "dnsmasq": PROGRAM if os.access(PROGRAM, os.X_OK) else "",
        "systemd": is_systemd(),
        "tun": _can_open(DEVICE),
        "configuration": configuration,
        "foreign_forward_drops": tuple(host.firewall.foreign_forward_drops()),
        "legacy_tables": _legacy_tables(),
    }


def _legacy_tables() -> tuple[str, ...]:
    """The tables of iptables-legacy, which nft does not list; the kernel tells root only."""
    found: list[str] = []
    for version, path in (("ip", "ip_tables_names"), ("ip6", "ip6_tables_names")):
        try:
            text = Path("/proc/net", path).read_text(encoding="ascii", errors="replace")
        except OSError:
            continue  # the module is not loaded
        found += [f"{version} {name}" for name in text.split() if re.fullmatch("[a-z0-9_]+", name)]
    return tuple(found)


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _bridge_nf_call(proc_net: Path) -> bool:
    try:
        text = (proc_net / "bridge/bridge-nf-call-iptables").read_text(encoding="ascii")
    except OSError:
        return False  # br_netfilter is not loaded
    return text.strip() == "1"


def _can_open(device: str) -> bool:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True

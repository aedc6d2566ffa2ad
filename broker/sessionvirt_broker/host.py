# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host as the steps see it: its links, firewall and VFIO, and the directories of ours.

Everything here belongs to the worker thread. Neither the netlink socket nor the libnftables context
may be used by two threads, and pyroute2's synchronous IPRoute cannot run inside an asyncio loop.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .throttle import Throttle

if TYPE_CHECKING:
    from .dnsmasq import Keeper
    from .firewall import Firewall
    from .netlink import Links
    from .steps import Step
    from .vfio import Vfio


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things are; arguments of the program's entry, so that nothing else knows."""

    runtime: Path
    config: Path
    proc_net: Path
    #: The kernel's modules.alias, wherever it is shown to the broker.
    aliases: Path
    ipv6_routes: Path = Path("/proc/net/ipv6_route")
    #: Where the kernel lists the host's sockets.
    sockets: Path = Path("/proc/net")

    @property
    def records(self) -> Path:
        """The journal."""
        return self.runtime / "records"

    @property
    def holds(self) -> Path:
        """The FIFOs."""
        return self.runtime / "holds"

    @property
    def networks(self) -> Path:
        """What dnsmasq reads."""
        return self.runtime / "networks"


@dataclass(frozen=True, slots=True)
class Host:
    """What a step may use.

    :param keeper: starts dnsmasq where no systemd does; None with systemd.
    :param fds: what steps have made for the caller, by name, until it is sent or undone.
    :param waiting: steps whose undo somebody keeps from being done, found since this was cleared.
    :param stuck: the ids of the records of which something would not go.
    :param throttle: the limits of each TAP.
    """

    links: Links
    firewall: Firewall
    paths: Paths
    keeper: Keeper | None
    vfio: Vfio
    fds: dict[str, list[int]] = field(default_factory=dict)
    waiting: list[Step] = field(default_factory=list)
    stuck: set[str] = field(default_factory=set)
    throttle: Throttle = field(default_factory=Throttle)

    def close_fds(self, name: str) -> None:
        """Close what was made under this name and not taken; unknown is in order."""
        for descriptor in self.fds.pop(name, ()):
            os.close(descriptor)

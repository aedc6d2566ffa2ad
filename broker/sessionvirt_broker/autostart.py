# SPDX-License-Identifier: LGPL-2.1-or-later
"""Networks that are up without guests: those with ``autostart`` in broker.toml.

There is no door for this. Whenever a broker starts, whoever made it start, it has these up before
it owns its name, and those down that are not wanted any more; at boot a unit starts it
(``sessionvirt-networks.service``), and it ends when it is idle. So nobody is asked and nobody can
ask: what is made is the administrator's file's, and nothing else's.

That a network is kept is said in its journal record, so that a broker that cannot read the file
takes nothing away. One that cannot be had is logged, and tried again at the next start.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from . import network as managed
from .errors import BrokerError

if TYPE_CHECKING:
    from .config import Configuration
    from .host import Host
    from .kind import Shared
    from .leases import Leases
    from .networks import Networks

log = logging.getLogger(__name__)


def follow(leases: Leases, networks: Networks, configuration: Configuration, host: Host) -> None:
    """Have up what the file wants up, as it says, and no longer what it does not."""
    wanted: dict[str, tuple[Shared, ...]] = {}
    changed = set()
    for one in configuration.networks.values():
        if not one.autostart:
            continue
        started = networks.as_started(one.bridge)
        try:
            if started is None:
                managed.refuse_unfit(one, host)
        except BrokerError as error:
            log.error("cannot start a network: %s", error)
            continue
        record_id = managed.record_id(one.bridge)
        wanted[record_id] = networks.needs(one, host)
        if started not in (None, one):
            changed.add(record_id)
    # What is up otherwise than the file says goes first; with guests on it, it stays as it is.
    leases.keep({key: needs for key, needs in wanted.items() if key not in changed})
    leases.keep(wanted)

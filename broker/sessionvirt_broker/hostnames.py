# SPDX-License-Identifier: LGPL-2.1-or-later
"""Has systemd-resolved ask a network's DNS for its names: ``sessionvirt-names@.service``.

A program of its own, which udev starts for a bridge and which ends: it runs as resolved's user,
whom resolved obeys, and the broker never does. All that it says is root's ``broker.toml``'s. The
one word from elsewhere is the bridge's name, and a bridge that no network of that file has is none
of its business. So a broker that is lost cannot have this host ask it for any name.

Names below the network's own domain are asked for there, all others never. Private networks have
none: all of them have the same domain, so a user could take the place of another one's machine.

resolved forgets what it was told of a bridge with the bridge. docs/adr/0014.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .config import ConfigFile
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .networkconfig import Network
    from .wire import NetworkName

log = logging.getLogger("sessionvirt_broker.hostnames")

__all__ = ["commands", "main"]

_CONFIGURATION = Path("/etc/sessionvirt/broker.toml")
_RESOLVECTL = "/usr/bin/resolvectl"
_BRIDGE = re.compile(r"svn_[a-z][a-z0-9_]{0,10}", re.ASCII)
#: resolvectl(1) waits for the bus, and that for resolved.
_SECONDS = 30.0


def commands(bridge: str, networks: Mapping[NetworkName, Network]) -> list[list[str]]:
    """What to tell resolved, as argv of resolvectl(1), in this order; nothing for a strange bridge.

    :param networks: as of ``Configuration.networks``.
    """
    if not _BRIDGE.fullmatch(bridge):
        return []
    found = [one for one in networks.values() if one.bridge == bridge]
    if not found or not found[0].domain or not found[0].names_on_host:
        return []
    network = found[0]
    return [
        # "~": for these names only. Before the server: never is it one for all of the host's names.
        [_RESOLVECTL, "domain", bridge, f"~{network.domain}"],
        [_RESOLVECTL, "dns", bridge, str(network.gateways[0])],
    ]


def main() -> int:
    """The program: one argument, a bridge."""
    logging.basicConfig(format="<3>%(message)s", level=logging.WARNING)
    try:
        networks = ConfigFile(_CONFIGURATION).current().networks
        for argv in commands(sys.argv[1], networks):
            # PRIVILEGE: none of its own; resolved lets its own user say so of any interface.
            subprocess.run(argv, check=True, timeout=_SECONDS)
    except ConfigurationError as error:
        log.error("%s", error)
        return 1
    except (OSError, subprocess.SubprocessError) as error:
        log.error("systemd-resolved was not told of %s: %s", sys.argv[1], error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

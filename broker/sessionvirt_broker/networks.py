# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which managed networks there are, for whom: one that is up as it was started, others as they
would be now.

Worker thread. Nothing here makes or ends one; ``tap.py`` tells what has begun and ended.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from . import network as managed
from .errors import Busy, NotFound
from .networkconfig import PRIVATE
from .private import private_bridge, private_network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .config import Configuration
    from .dnsmasq import NetworkFiles
    from .host import Host
    from .kind import Shared
    from .networkconfig import Network, Prefix
    from .wire import NetworkName


class Networks:
    """The administrator's, and each user's private one."""

    def __init__(self, machine_id: str) -> None:
        self._machine_id = machine_id
        #: broker.toml may say otherwise by now.
        self._up: dict[str, Network] = {}

    def begun(self, step: NetworkFiles) -> None:
        """It is up, or about to be."""
        self._up[step.bridge] = step.network()

    def ended(self, bridge: str) -> None:
        """It is no more."""
        self._up.pop(bridge, None)

    def as_started(self, bridge: str) -> Network | None:
        """The one with this bridge, if it is up."""
        return self._up.get(bridge)

    def named(
        self, name: NetworkName, uid: int, configuration: Configuration, host: Host
    ) -> Network:
        """What a user means by a name.

        :raise NotFound: there is none.
        :raise Busy: there is no room for a private one.
        """
        if name == PRIVATE and configuration.private.enabled:
            bridge = private_bridge(uid)
            return self._up.get(bridge) or self._private(uid, configuration, host)
        network = configuration.networks.get(name)
        if network is None:
            raise NotFound(f"network: there is no network {name}")
        return self._up.get(network.bridge, network)

    def all_of(self, uid: int, configuration: Configuration, host: Host) -> Iterator[Network]:
        """Those that a user may ask for; to root everybody's private one that is up, too."""
        for one in configuration.networks.values():
            yield self._up.get(one.bridge, one)
        own = private_bridge(uid)
        with contextlib.suppress(Busy, NotFound):
            yield self.named(PRIVATE, uid, configuration, host)
        if uid == 0:
            for bridge in sorted(self._up):
                if self._up[bridge].name == PRIVATE and bridge != own:
                    yield self._up[bridge]

    def needs(self, network: Network, host: Host) -> tuple[Shared, ...]:
        """Everything that has to be there for it, itself last."""
        return managed.shared(network, host, self._machine_id)

    def _private(self, uid: int, configuration: Configuration, host: Host) -> Network:
        taken: list[Prefix] = [prefix for prefix, _ in host.links.routes(4)]
        for one in (*configuration.networks.values(), *self._up.values()):
            taken += one.prefixes
        return private_network(configuration.private, uid, self._machine_id, taken)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel tier: guests that are test code, on networks that the real broker makes.

One broker (``lasting_broker``) serves a whole file where its tests leave it alone; a file whose
tests kill or configure it asks for ``broker``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.client import Client
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.bus import SystemBus
    from lab.polkit import Polkit

BRIDGE_NF = Path("/proc/sys/net/bridge")
BRIDGE_NF_CALLS = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")


@pytest.fixture(scope="module")
def permitted(_polkitd: Polkit) -> Polkit:
    """Everybody may have everything that the broker itself does not refuse, in the whole file."""
    _polkitd.answer("org.sessionvirt.broker1.*", "yes")
    return _polkitd


@pytest.fixture(scope="module")
def alices(bus: SystemBus, permitted: Polkit) -> Iterator[Client]:
    """alice's connection to the bus."""
    with Client(User.named("alice")) as client:
        yield client


@pytest.fixture(scope="module")
def bobs(bus: SystemBus, permitted: Polkit) -> Iterator[Client]:
    """bob's."""
    with Client(User.named("bob")) as client:
        yield client


@pytest.fixture
def bridge_nf(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether bridged packets pass ``inet``, too (br_netfilter); a parameter, by default on."""
    wanted: bool = getattr(request, "param", True)
    former = {name: (BRIDGE_NF / name).read_text() for name in BRIDGE_NF_CALLS}
    for name in former:
        (BRIDGE_NF / name).write_text("1" if wanted else "0")
    yield wanted
    for name, value in former.items():
        (BRIDGE_NF / name).write_text(value)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker crashes while a PCI device goes to its user or comes back, at every point of that.

``lab/dying_broker.py`` is the broker here, in the installed unit with its sandbox. systemd starts
the next one, which clears away and is the one that dies one state later.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from host.inside import machines, units
from host.inside.hostdevs import NIC, comes_back, holding, node, with_ids
from lab import dying_broker
from lab.rawbus import BusError, pci

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.host

#: Read by systemd at each start of the broker, so no unit has to be loaded anew.
FATE = Path("/run/testhost-fate")
RUNTIME = Path("/run/sessionvirt-broker")
USER = "user1"


def dies_after(number: int) -> None:
    """Say it for the broker that is started next."""
    FATE.write_text(f"NUMBER={number}\n")


@contextlib.contextmanager
def dying() -> Iterator[None]:
    """Every broker dies of its first lease, the first in the first state."""
    dies_after(0)
    command = f"/usr/bin/python3 -IB {dying_broker.__file__} ${{NUMBER}} acquire"
    service = (f"EnvironmentFile={FATE}", "ExecStart=", f"ExecStart={command}", "RestartSec=0")
    try:
        with units.drop_in(*service, unit=["StartLimitIntervalSec=0"]):
            units.systemctl("start", units.BROKER)
            yield
    finally:
        FATE.unlink()


def left() -> list[str]:
    """What is of a lease, without one."""
    with machines.Holder(USER) as holder:
        found = [str(one["lease"]) for one in holder.leases()]
    for name in ("records", "holds"):
        found += [str(path) for path in (RUNTIME / name).iterdir() if path.is_file()]
    return found


def test_g69_killed_in_every_state_of_assigning_and_returning() -> None:
    card = with_ids(NIC)[0]
    with machines.permitted():
        with holding(USER, pci(card)):
            pass  # VFIO's modules are loaded from here on, for which a broker starts anew
        comes_back(card, "e1000e")
        with dying():
            for number in itertools.count():
                pid = units.main_pid()
                dies_after(number + 1)
                with contextlib.suppress(BusError), holding(USER, pci(card)):
                    pass
                assert left() == [], number
                comes_back(card, "e1000e")
                assert not node(card).exists(), number
                if units.main_pid() == pid:
                    break
    assert number > 10

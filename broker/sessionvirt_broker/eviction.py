# SPDX-License-Identifier: LGPL-2.1-or-later
"""End every lease, whatever its holder does: before the broker is removed from the host.

Afterwards nothing could give them back. It begins as every broker does: records of another boot
are dropped, and what has ended meanwhile is undone. Then each lease is released, and what only
leases needed, networks and tables, goes with the last. What would not go stays in the journal and
is named.

One thread, without bus and loop; whoever calls this holds the broker's lock. Nothing is given here,
nobody is asked, and what no record names is not touched.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .diagnose import boot_id
from .firewall import Firewall
from .host import Host
from .journal import Journal
from .kinds import STEPS, resource_kinds
from .lease import RECORD_PREFIX
from .leases import Leases
from .netlink import Links

if TYPE_CHECKING:
    from .dnsmasq import Keeper
    from .host import Paths


def evict(paths: Paths, keeper: Keeper | None) -> int:
    """One line a lease on standard output; on standard error what stayed, and why.

    :return: the exit status: 0 when nothing of the broker's is left on the host.
    """
    host = Host(Links(), Firewall(), paths, keeper)
    # The machine's id is for what is made, and nothing is.
    kinds = resource_kinds("", Path("/sys/class/net"))
    leases = Leases(host, Journal(paths.records, boot_id(), STEPS), kinds)
    known = [path.stem.removeprefix(RECORD_PREFIX) for path in _records(paths)]
    for _, read_end in leases.reconcile():
        os.close(read_end)
    alive = {str(listed["lease"]): listed for listed in leases.listing(None)}
    for lease in known:
        if lease not in alive:
            _say(f"lease {lease}: had ended")
            continue
        leases.release(lease)
        vm = json.dumps(alive[lease]["vm"])  # a name that a user chose moves no cursor
        _say(f"lease {lease}: returned, from the machine {vm} of uid {alive[lease]['uid']}")
    stayed = leases.remains() + [
        f"{path}: a record that cannot be understood; what it names may still be there"
        for path in sorted(paths.records.glob("quarantine/*"))
    ]
    for line in stayed:
        sys.stderr.write(f"left: {line}\n")
    return 1 if stayed else 0


def _records(paths: Paths) -> list[Path]:
    return sorted(paths.records.glob(f"{RECORD_PREFIX}*.json"))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

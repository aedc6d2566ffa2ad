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
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import hold
from .diagnose import boot_id
from .errors import HostFailure
from .firewall import Firewall
from .host import Host
from .journal import Journal
from .kinds import STEPS, resource_kinds
from .lease import RECORD_PREFIX
from .leases import Leases
from .netlink import Links
from .networkconfig import BRIDGE_PREFIX
from .vfio import Vfio
from .wire import TAP_PREFIX

if TYPE_CHECKING:
    from .dnsmasq import Keeper
    from .host import Paths

_SYS_CLASS_NET = Path("/sys/class/net")
#: Names of TAPs and bridges that the broker gives.
_OURS = re.compile(rf"{TAP_PREFIX}[0-9a-f]{{12}}|{BRIDGE_PREFIX}[a-z][a-z0-9_]{{0,10}}")


def evict(paths: Paths, keeper: Keeper | None) -> int:
    """One line a lease on standard output; on standard error what stayed, and why.

    :return: the exit status: 0 when nothing of the broker's is left on the host.
    """
    host = Host(Links(), Firewall(), paths, keeper, Vfio())
    journal = Journal(paths.records, boot_id(), STEPS)
    stayed = _misread(journal, paths)
    if not stayed:
        # The machine's id is for what is made, and nothing is.
        leases = Leases(host, journal, resource_kinds("", paths.aliases).all)
        _end(leases, paths)
        stayed = [*leases.remains(), *_unrecorded(host, journal)]
    for line in stayed:
        sys.stderr.write(f"left: {line}\n")
    return 1 if stayed else 0


def _misread(journal: Journal, paths: Paths) -> list[str]:
    """Leases whose records would be dropped as another boot's, though somebody holds them now.

    In a container /proc may be covered: the unit, which has a /proc of its own, then reads another
    boot id than a shell there (systemd-nspawn: measured). Dropping the records would leave it all.
    """
    lines = []
    for record_id in journal.of_other_boots():
        if record_id.startswith(RECORD_PREFIX):
            lease = record_id.removeprefix(RECORD_PREFIX)
            read_end = hold.reopen(paths.holds / lease)
            if read_end is not None:
                os.close(read_end)
                lines.append(f"lease {lease}: held, but of another boot id than here; end its QEMU")
    return lines


def _end(leases: Leases, paths: Paths) -> None:
    known = [path.stem.removeprefix(RECORD_PREFIX) for path in _records(paths)]
    for _, read_end in leases.reconcile():
        os.close(read_end)
    alive = {str(listed["lease"]): listed for listed in leases.listing.leases(None)}
    for lease in known:
        if lease not in alive:
            _say(f"lease {lease}: had ended")
            continue
        leases.release(lease)
        vm = json.dumps(alive[lease]["vm"])  # a name that a user chose moves no cursor
        _say(f"lease {lease}: returned, from the machine {vm} of uid {alive[lease]['uid']}")
    leases.keep({})  # networks that are up without guests


def _unrecorded(host: Host, journal: Journal) -> list[str]:
    """What no step would take back: its record is lost."""
    lines = [
        f"{path}: a record that cannot be understood; what it names may still be there"
        for path in journal.set_aside()
    ]
    try:
        host.firewall.remove()
        host.firewall.egress.remove()
        host.firewall.policer.adopt({})
        host.firewall.filters.delete()
    except HostFailure as error:
        lines.append(str(error))
    names = sorted(path.name for path in _SYS_CLASS_NET.iterdir())
    stray = [f"interface {name}: no record names it" for name in names if _OURS.fullmatch(name)]
    return lines + stray


def _records(paths: Paths) -> list[Path]:
    return sorted(paths.records.glob(f"{RECORD_PREFIX}*.json"))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

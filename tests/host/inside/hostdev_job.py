# SPDX-License-Identifier: LGPL-2.1-or-later
"""A lease of a device that stays while the host's hardware is changed from outside.

``python3 -m host.inside.hostdev_job USER ADDRESS``: takes it, opens its group as QEMU would, says
so, and answers a line of standard input with a line of JSON each: ``look`` what has become of it,
``close`` after closing the group. It ends, and gives all of it back, with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from host.inside import machines
from host.inside.hostdevs import driver, holding, listed, node, opened
from lab.rawbus import pci


def main(user: str, address: str) -> None:
    with (
        machines.permitted(),
        holding(user, pci(address)) as lease,
        contextlib.ExitStack() as stack,
    ):
        said = stack.enter_context(opened(user, node(address), address))
        print(json.dumps(said), flush=True)
        for line in sys.stdin:
            if line.strip() == "close":
                stack.close()
            row = listed("root").get(address)
            found: dict[str, Any] = {
                "state": lease.state(),
                "driver": driver(address),
                "listed": row and [row["verdict"], row["holder"]],
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The privileged half of sessionvirt: one small broker between ordinary users' VMs and the host.

The way of a request through the package is straight::

    service    takes fds, looks the member up, checks the signature            (the edge)
    callers    whose connection it is
    kinds      validate: typed at the door, nothing touched (tap, ...)
    consent    authorise: polkit, at most one prompt
    kinds      validate again: what was shown is still true
    leases     act: journal before kernel, undo in reverse

Kernel work is done on one worker thread by steps that are data; asyncio, D-Bus and polkit are
unknown to it. The session package is never imported from here, nor trusted.
"""

import sys

__version__ = "0.1.0"

for _name in ("gi", "psutil"):
    # Libraries import these where they are installed: dbus-fast 1.84 all of GLib, pyroute2 a look
    # at other people's processes. None makes the import fail, which both take for absence.
    sys.modules[_name] = None  # type: ignore[assignment]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The world beyond the uplink: a second network namespace, joined to the lab's by a veth pair.

::

    lab's namespace                              outside
    up0  192.0.2.2/24  2001:db8::2/64  ======  out0  192.0.2.1/24  2001:db8::1/64
    default route via 192.0.2.1                  no route but its own subnets, so that an address
                                                 which NAT forgot to translate gets no answer
"""

from __future__ import annotations

import subprocess

from lab.elsewhere import PORT, Elsewhere

__all__ = ["ADDRESS4", "ADDRESS6", "PORT", "UPLINK4", "UPLINK6", "Outside"]

ADDRESS4 = "192.0.2.1"
ADDRESS6 = "2001:db8::1"
#: The lab's own side.
UPLINK4 = "192.0.2.2"
UPLINK6 = "2001:db8::2"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Outside(Elsewhere):
    """The outside namespace. The lab's must have no interface named up0."""

    def connect(self) -> None:
        _ip("link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", str(self.pid))
        for address in (f"{UPLINK4}/24", f"{UPLINK6}/64"):
            _ip("address", "add", address, "dev", "up0", *self._no_dad(address))
        for address in (f"{ADDRESS4}/24", f"{ADDRESS6}/64"):
            self.run(["ip", "address", "add", address, "dev", "out0", *self._no_dad(address)])
        self.run(["ip", "link", "set", "out0", "up"])
        _ip("link", "set", "up0", "up")
        _ip("route", "add", "default", "via", ADDRESS4)
        _ip("-6", "route", "add", "default", "via", ADDRESS6)

    @staticmethod
    def _no_dad(address: str) -> list[str]:
        """Usable at once: nobody else is on this wire."""
        return ["nodad"] if ":" in address else []

    def disconnect(self) -> None:
        subprocess.run(["ip", "link", "delete", "up0"], stderr=subprocess.DEVNULL, check=False)

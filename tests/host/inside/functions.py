# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtual functions of the card with SR-IOV, as ``ip link`` and sysfs have them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host.inside.hostdevs import DEVICES, SRIOV, driver, interface, with_ids
from host.inside.sessions import until
from lab import host

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Functions", "functions"]


@dataclass(frozen=True)
class Functions:
    """A card and what it has made.

    :param name: of the card's interface.
    """

    card: str
    name: str
    addresses: tuple[str, ...]

    def settings(self, number: int) -> dict[str, Any]:
        """What the card's driver says of one."""
        argv = ("ip", "-json", "-details", "link", "show", "dev", self.name)
        (link,) = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
        (found,) = [one for one in link["vfinfo_list"] if one["vf"] == number]
        # One without a VLAN is an empty object.
        tags = [(one.get("vlan", 0), one.get("qos", 0)) for one in found.get("vlan_list", ())]
        return {
            "mac": found.get("mac", found.get("address")),
            "vlan": [tag for tag in tags if tag != (0, 0)],
            "spoofchk": found["spoofchk"],
            "trust": found["trust"],
        }

    def set(self, number: int, *words: str) -> None:
        """As an administrator does."""
        host.ip("link", "set", self.name, "vf", str(number), *words)

    def remake(self) -> None:
        """Have the card forget its functions and make them anew, with the same addresses."""
        count = DEVICES / self.card / "sriov_numvfs"
        count.write_text("0")
        _make(self.card, len(self.addresses))

    def mac_on_the_host(self, number: int) -> str:
        """The address that its own interface has; its driver may be about to make that."""
        address = self.addresses[number]
        until(lambda: bool(interface(address)), f"{address} has an interface")
        return Path(f"/sys/class/net/{interface(address)}/address").read_text().strip()


@contextlib.contextmanager
def functions(count: int = 2) -> Iterator[Functions]:
    """So many virtual functions of the card, which is up and has no address."""
    (card,) = with_ids(SRIOV)
    numvfs, name = DEVICES / card / "sriov_numvfs", interface(card)
    disable_ipv6 = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    disable_ipv6.write_text("1")
    host.ip("link", "set", name, "up")
    try:
        yield Functions(card, name, _make(card, count))
    finally:
        numvfs.write_text("0")
        host.ip("link", "set", name, "down")
        disable_ipv6.write_text("0")


def _make(card: str, count: int) -> tuple[str, ...]:
    (DEVICES / card / "sriov_numvfs").write_text(str(count))
    made = [(DEVICES / card / f"virtfn{number}").resolve().name for number in range(count)]
    subprocess.run(["udevadm", "settle"], check=True)
    until(lambda: all(driver(one) and interface(one) for one in made), "they have their drivers")
    return tuple(made)

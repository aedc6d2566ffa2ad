# SPDX-License-Identifier: LGPL-2.1-or-later
"""The chains that every guest's frames are judged by, whatever its card is made of.

``ruleset.py`` has them for TAPs, which frames come in by, and ``egress.py`` for macvtap devices,
which they go out by: what differs is which name of an interface the rules look at, and what else
these two ask. A forgery that is found is mended here for both.

The texts are fixed; only the kernel's word for the interface is put in. Pure.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["chains", "client"]

#: The kernel's word for the interface that a guest's frame comes by.
Side = Literal["iifname", "oifname"]

_SHARED: Final = """
  chain dhcp_client {
    meta SIDE . @th,288,48 @clients return
    goto drop_dhcp
  }
  chain dhcp_client6 {
    @th,64,8 { 1, 3, 4, 5, 6, 8, 9, 11 } return
    goto drop_dhcp
  }
  chain check_igmp {
    ip frag-off & 0x1fff == 0 igmp type { 0x12, 0x16, 0x17, 0x22 } return
    goto drop_router
  }
  chain first_fragment6 {
    @th,0,32 >= 0 return
    goto drop_ipv6
  }"""


def chains(side: Side, reasons: tuple[str, ...]) -> str:
    """The set ``clients``, a set and a chain for each reason to drop, and what is asked of all."""
    clients = f"""
  set clients {{
    typeof {side} . @th,288,48
  }}"""
    dropped = "".join(_reason(name, side) for name in reasons)
    return clients + dropped + _SHARED.replace("SIDE", side)


def _reason(name: str, side: Side) -> str:
    return f"""
  set dropped_{name} {{
    type ifname
    counter
  }}
  chain drop_{name} {{
    {side} @dropped_{name} drop
    drop
  }}"""


def client(ifname: str, mac: str) -> tuple[str, object]:
    """The element of ``clients`` that says which hardware address a guest has in DHCP."""
    return "clients", {"concat": [ifname, hex(int(mac.replace(":", ""), 16))]}

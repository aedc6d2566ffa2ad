# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's card as its host sees it, whatever it is made of: its MAC address, its readable name.

Both are the guest's own at every start, and neither can be taken for another user's. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .addresses import DERIVED_PREFIX, derived_mac
from .errors import InvalidRequest
from .wire import TAP_PREFIX

if TYPE_CHECKING:
    from .kind import Owner
    from .wire import Mac, TapName

__all__ = ["guest_mac", "readable_name"]

#: A VM may name its own derived addresses, of any of this many positions.
_DERIVED_POSITIONS = 64


def guest_mac(asked: Mac | None, position: int, owner: Owner, machine_id: str) -> Mac:
    """The address of a VM's interface: as asked for, or the one that is derived for its position.

    :raise InvalidRequest: it may be another's derived one.
    """

    def derived(position: int) -> Mac:
        return derived_mac(machine_id, "tap", str(owner.uid), owner.vm, str(position))

    if asked is None:
        return derived(position)
    foreign = asked not in map(derived, range(_DERIVED_POSITIONS))
    if asked.startswith(DERIVED_PREFIX) and foreign:
        raise InvalidRequest(f"mac: {DERIVED_PREFIX} is for addresses that the broker derives")
    return asked


def readable_name(name: TapName | None, position: int, owner: Owner) -> str:
    """A name for people, which nobody can mistake for a host's own or another user's.

    systemd and others match interfaces by their alternative names, too: a caller's word never
    stands at the front.
    """
    words = re.sub(r"[^A-Za-z0-9_.-]", "_", owner.vm)[:64]
    return f"{TAP_PREFIX}-{owner.uid}-{name or f'{words}-{position}'}"

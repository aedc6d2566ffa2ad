# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must be acquired for a domain."""

from __future__ import annotations

import pytest

from golden.cases import parsed
from sessionvirt.model.needs import Need, NeedKind, needs

pytestmark = pytest.mark.unit


def test_one_for_each_interface_in_order() -> None:
    mac = [interface.mac for interface in parsed("interfaces").value.interfaces]
    assert needs(parsed("interfaces").value) == (
        Need(NeedKind.TAP, 0, network="default", mac=mac[0], queues=2, mtu=1400),
        Need(NeedKind.TAP, 1, bridge="br0", mac=mac[1]),
        Need(NeedKind.USER, 2, mac=mac[2]),
        Need(NeedKind.USER, 3, mac=mac[3]),
    )


def test_none_without_interfaces() -> None:
    assert needs(parsed("minimal").value) == ()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The steps of ``./dev demo --network`` that take place here: their own claims are the test."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.host

#: How many it makes.
CLAIMS = 8


def test_every_claim_about_the_vlan_holds() -> None:
    from host.inside.vlan_demo import in_test_host

    claims = [claim for step in in_test_host() for claim in step.claims]
    assert [claim for claim in claims if not claim[1]] == []
    assert len(claims) == CLAIMS

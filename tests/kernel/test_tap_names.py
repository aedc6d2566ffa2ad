# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a TAP is called on the host, where its user has a name for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.client import network_tap

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.client import Client
    from lab.users import User

pytestmark = pytest.mark.kernel


@pytest.mark.usefixtures("broker")
def test_a_name_is_one_users_and_no_interface_of_the_hosts(
    alices: Client, bobs: Client, alice: User, bob: User
) -> None:
    """Also that of an interface there is: the word stands behind the uid."""
    web = network_tap(name="web")
    mine, theirs = f"svt-{alice.uid}-web", f"svt-{bob.uid}-web"
    host.ip("link", "add", "br9", "type", "bridge")
    try:
        with (
            alices.acquire(web, network_tap(name="br9"), network_tap()) as lease,
            bobs.acquire(web) as other,
        ):
            named, bridge, plain = lease.taps
            for tap, name in (
                (named, mine),
                (other.tap, theirs),
                (bridge, f"svt-{alice.uid}-br9"),
                (plain, f"svt-{alice.uid}-vm-2"),
            ):
                assert tap.facts["altname"] == name
                assert host.link(name)["ifname"] == tap.ifname
            assert host.link("br9")["ifname"] == "br9"
            assert host.link("web") == {}
    finally:
        host.ip("link", "del", "br9")


def test_a_name_that_is_taken_is_told_and_stays_whose_it_is(
    broker: Broker, alices: Client, alice: User
) -> None:
    name = f"svt-{alice.uid}-web"
    with alices.acquire(network_tap(name="web")) as first, alices.acquire(vm="other") as second:
        (late,) = second.add(network_tap(name="web"))
        assert late.facts["altname"] == ""
        assert host.link(name)["ifname"] == first.tap.ifname
        # Also to the next broker, which has it from the journal.
        broker.restart()
        leases = [lease["grants"].value for lease in alices.leases()]
        told = [[grant["altname"].value for grant in grants] for grants in leases]
        assert sorted(told) == [[f"svt-{alice.uid}-other-0", ""], [name]]

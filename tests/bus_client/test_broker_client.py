# SPDX-License-Identifier: LGPL-2.1-or-later
"""The session's end of the contract, against a broker that misbehaves on a bus of its own."""

from __future__ import annotations

import asyncio
import inspect
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessionvirt import errors
from sessionvirt.broker_client import BrokerClient
from sessionvirt.broker_data import Step, TapRequest
from sessionvirt.broker_errors import error_for

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.bus

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = ROOT / "broker/org.sessionvirt.Broker1.xml"

OURS = "org.sessionvirt.Broker1.Error."
BUS = "org.freedesktop.DBus.Error."

TAP = TapRequest(network="default")


def test_everything_is_read_as_the_contract_says(broker: Callable[[str], str]) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker("ok")) as client:
            plan = await client.plan([TAP], "guest")
            assert (plan.verdict, plan.steps) == ("ask", (Step("make a TAP", "close it"),))
            assert plan.requests[0].reason == "reason"
            (network,) = await client.networks()
            assert (network.name, network.up, network.leases) == ("default", True, 1)
            (lease,) = await client.leases()
            assert (lease.vm, lease.since, lease.drops) == (
                "guest",
                1_700_000_000,
                {"mac": 3, "arp": 0},
            )
            assert lease.grants[0].fds == ()
            facts = await client.diagnose()
            assert facts.missing_capabilities == ("net_admin",)
            await client.release(lease.lease)

    asyncio.run(run())


def test_a_lease_owns_what_came_with_it(broker: Callable[[str], str]) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker("ok")) as client:
            lease = await client.acquire([TAP, TAP], "guest", interactive=False)
        # It outlives the connection.
        with lease:
            assert stat.S_ISFIFO(os.fstat(lease.hold.fileno()).st_mode)
            numbers = {grant.fds[0].fileno() for grant in lease.grants}
            assert len(numbers) == 2
            assert all(stat.S_ISCHR(os.fstat(number).st_mode) for number in numbers)
            assert not any(os.get_inheritable(number) for number in numbers)
        assert lease.hold.closed
        assert all(fd.closed for grant in lease.grants for fd in grant.fds)

    asyncio.run(run())


@pytest.mark.parametrize("interactive", [True, False])
def test_interaction_is_said_twice(broker: Callable[[str], str], *, interactive: bool) -> None:
    """Once for polkit's own habit, in the header, and once as the contract's option."""

    async def run() -> None:
        async with await BrokerClient.connect(broker("flags")) as client:
            await client.acquire([TAP], "guest", interactive=interactive)

    with pytest.raises(errors.BrokerUnavailableError) as caught:
        asyncio.run(run())
    assert caught.value.evidence == f"{4 if interactive else 0} {interactive}"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("missing-key", r"grants\[1\]: mac is missing"),
        ("wrong-type", r"grants\[1\]: ifindex is of type s, not u"),
        ("wrong-kind", "unknown kind 'gold'"),
        ("no-fds", "hold: no descriptor came with it"),
        ("too-many-fds", "5 descriptors more"),
        ("fd-twice", "belongs to something else"),
        ("fewer-grants", "1 grants for 2 requests"),
        ("two-queues", "2 queues, not 1"),
        ("wrong-signature", "answers 'oh'"),
    ],
)
def test_an_answer_against_the_contract_is_refused_and_closed(
    broker: Callable[[str], str], mode: str, words: str
) -> None:
    """That everything was closed is the leak guard's to say."""

    async def run() -> None:
        async with await BrokerClient.connect(broker(mode)) as client:
            await client.acquire([TAP, TAP], "guest", interactive=False)

    with pytest.raises(errors.BrokerUnavailableError, match=words):
        asyncio.run(run())


def test_a_broker_that_dies_in_mid_call(broker: Callable[[str], str]) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker("vanishes")) as client:
            await client.acquire([TAP], "guest", interactive=False)

    with pytest.raises(errors.BrokerUnavailableError, match="went away in mid-call"):
        asyncio.run(run())


def test_a_call_can_be_given_up(broker: Callable[[str], str]) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker("silent")) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.acquire([TAP], "guest", interactive=True)

    asyncio.run(run())


def test_no_broker(address: str) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(address) as client:
            await client.networks()

    with pytest.raises(errors.BrokerUnavailableError, match="not installed") as caught:
        asyncio.run(run())
    assert "--network user" in caught.value.advice


@pytest.mark.parametrize("where", ["unix:path=/nonexistent/bus", "nonsense", "unix:path="])
def test_no_bus(where: str) -> None:
    with pytest.raises(errors.BrokerUnavailableError, match="cannot connect to the system bus"):
        asyncio.run(BrokerClient.connect(where))


def test_a_bus_that_goes_away(broker: Callable[[str], str], tmp_path: Path) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker("silent")) as client:
            call = asyncio.create_task(client.acquire([TAP], "guest", interactive=False))
            await asyncio.sleep(0)
            client._bus.disconnect()
            await call

    with pytest.raises(errors.BrokerUnavailableError, match="connection to the system bus ended"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{OURS}NotAuthorized", errors.PermissionDeniedError),
        (f"{OURS}Dismissed", errors.PermissionDeniedError),
        (f"{OURS}AuthorityUnavailable", errors.BrokerUnavailableError),
        (f"{OURS}Busy", errors.BusyError),
        (f"{OURS}LimitsExceeded", errors.BusyError),
        (f"{OURS}NotFound", errors.NotFoundError),
        (f"{OURS}DeviceUnsafe", errors.UnsafeError),
        (f"{OURS}StateChanged", errors.BusyError),
        (f"{OURS}NotSupported", errors.SessionvirtError),
        (f"{OURS}Configuration", errors.BrokerUnavailableError),
        (f"{OURS}Failed", errors.BrokerUnavailableError),
        (f"{BUS}InvalidArgs", errors.UsageError),
        (f"{BUS}UnknownMethod", errors.BrokerUnavailableError),
        (f"{BUS}InteractiveAuthorizationRequired", errors.InteractionRequiredError),
        (f"{BUS}Spawn.ChildExited", errors.BrokerUnavailableError),
        ("org.freedesktop.systemd1.UnitMasked", errors.BrokerUnavailableError),
        ("com.example.Strange", errors.BrokerUnavailableError),
    ],
)
def test_every_error_has_a_class_and_keeps_its_words(
    name: str, kind: type[errors.SessionvirtError]
) -> None:
    error = error_for(name, "interfaces[0].network: no such network")
    assert type(error) is kind
    assert "no such network" in error.evidence


def test_every_error_of_the_contract_is_known() -> None:
    words = CONTRACT.read_text().split()
    named = {word for word in words if word.startswith((OURS, BUS)) and word[-1].isalpha()}
    assert len(named) >= 14
    unknown = error_for("com.example.Strange", "").cause
    assert [name for name in sorted(named) if error_for(name, "").cause == unknown] == []


def test_a_masked_unit_is_no_failure_of_the_broker() -> None:
    """While the package is upgraded the unit is masked, see debian/sessionvirt-broker.prerm."""
    assert "again in a moment" in error_for("org.freedesktop.systemd1.UnitMasked", "").advice


def test_an_error_from_the_bus_is_raised(broker: Callable[[str], str]) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker(f"error={OURS}NotAuthorized")) as client:
            await client.acquire([TAP], "guest", interactive=False)

    with pytest.raises(errors.PermissionDeniedError) as caught:
        asyncio.run(run())
    assert caught.value.evidence == "the field and the cause"
    assert "sessionvirt.rules.example" in caught.value.advice


def test_a_request_is_for_a_network_or_a_bridge() -> None:
    with pytest.raises(errors.UsageError):
        TapRequest()
    with pytest.raises(errors.UsageError):
        TapRequest(network="a", bridge="b")
    assert TapRequest(bridge="br0", queues=2).parameters() == {
        "bridge": ("s", "br0"),
        "queues": ("u", 2),
    }


def test_the_client_has_every_member_of_the_contract() -> None:
    members = {"Plan", "Acquire", "ListNetworks", "ListLeases", "Diagnose", "Release"}
    source = inspect.getsource(BrokerClient)
    assert [member for member in members if f'"{member}"' not in source] == []

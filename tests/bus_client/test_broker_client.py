# SPDX-License-Identifier: LGPL-2.1-or-later
"""The session's end of the contract, against a broker that misbehaves on a bus of its own."""

from __future__ import annotations

import asyncio
import inspect
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessionvirt import errors
from sessionvirt.broker_client import BrokerClient
from sessionvirt.broker_data import PciGrant, PciRequest, Step, TapGrant, TapRequest
from sessionvirt.broker_errors import error_for

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.bus

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = ROOT / "broker/org.sessionvirt.Broker1.xml"

OURS = "org.sessionvirt.Broker1.Error."
BUS = "org.freedesktop.DBus.Error."

TAP = TapRequest(network="default")
PCI = PciRequest("0000:03:00.0")


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
            assert lease.grants[0].descriptors == ()
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
            numbers = {grant.descriptors[0].fileno() for grant in lease.grants}
            assert len(numbers) == 2
            assert all(stat.S_ISCHR(os.fstat(number).st_mode) for number in numbers)
            assert not any(os.get_inheritable(number) for number in numbers)
        assert lease.hold.closed
        assert all(fd.closed for grant in lease.grants for fd in grant.descriptors)

    asyncio.run(run())


def test_a_lease_grows_and_shrinks(broker: Callable[[str], str]) -> None:
    """What is added is the caller's, and the rest of the lease is not touched."""

    async def run() -> None:
        async with await BrokerClient.connect(broker("ok")) as client:
            lease = (await client.leases())[0].lease
            (grant,) = await client.add(lease, [TAP], interactive=False)
            assert (grant.id, len(grant.descriptors)) == ("tap7", 1)
            with grant.descriptors[0] as fd:
                assert stat.S_ISCHR(os.fstat(fd.fileno()).st_mode)
            await client.drop(lease, ["tap7"])
            with pytest.raises(errors.NotFoundError) as caught:
                await client.drop(lease, ["tap8"])
            assert caught.value.evidence == "grants: the lease has no such grant"

    asyncio.run(run())


def test_an_addition_that_is_less_than_was_asked_for_is_refused(
    broker: Callable[[str], str],
) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker("fewer-grants")) as client:
            lease = (await client.leases())[0].lease
            with pytest.raises(errors.BrokerUnavailableError, match="1 grants for 2 requests"):
                await client.add(lease, [TAP, TAP], interactive=False)

    asyncio.run(run())


def test_a_lease_has_grants_of_both_kinds_in_order(broker: Callable[[str], str]) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker("ok")) as client:
            lease = await client.acquire([TAP, PCI, TAP], "guest", interactive=False)
        with lease:
            kinds = [type(grant) for grant in lease.grants]
            assert kinds == [TapGrant, PciGrant, TapGrant]
            assert lease.taps == (lease.grants[0], lease.grants[2])
            (device,) = lease.devices
            assert (device.address, device.group, device.fds) == ("0000:03:00.0", 6, ())
            assert device.members == ("0000:03:00.0", "0000:03:00.1")
            assert (device.node, device.driver, device.former) == (
                "/dev/vfio/6",
                "vfio-pci",
                "e1000e",
            )

    asyncio.run(run())


def test_a_device_with_one_descriptor_is_against_the_contract(broker: Callable[[str], str]) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker("pci-fds")) as client:
            await client.acquire([TAP, PCI], "guest", interactive=False)

    with pytest.raises(errors.BrokerUnavailableError, match="pci1: a PCI device with 1 desc"):
        asyncio.run(run())


def test_a_listed_lease_has_grants_of_both_kinds(broker: Callable[[str], str]) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker("devices")) as client:
            (lease,) = await client.leases()
            assert [grant.kind for grant in lease.grants] == ["pci", "tap"]

    asyncio.run(run())


def test_devices(broker: Callable[[str], str]) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker("ok")) as client:
            bridge, free, *_ = await client.devices()
            assert (bridge.endpoint, free.endpoint) == (False, True)
            assert (free.class_code, free.group, free.resets) == ("020000", "1", ("flr", "bus"))
            assert (free.rom, free.verdict, free.holder) == (True, "free", "")

    asyncio.run(run())


def test_a_process_is_named_by_its_descriptor(broker: Callable[[str], str]) -> None:
    """Which stays the caller's."""
    name = Path("/proc/self/comm").read_text().strip()

    async def run() -> None:
        pidfd = os.pidfd_open(os.getpid())
        try:
            async with await BrokerClient.connect(broker("ok")) as client:
                (lease,) = await client.leases()
                with pytest.raises(errors.BusyError) as caught:
                    await client.lock_memory(lease.lease, pidfd, 3 << 30)
            assert caught.value.evidence == f"{name} {3 << 30}"
            os.fstat(pidfd)
        finally:
            os.close(pidfd)

    asyncio.run(run())


@pytest.mark.parametrize("times", [1, 5])
def test_a_broker_that_starts_anew_is_called_again(
    broker: Callable[[str], str], times: int
) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker(f"restarts={times}")) as client:
            lease = await client.acquire([PCI], "guest", interactive=False)
            lease.close()

    asyncio.run(run())


def test_a_broker_that_starts_anew_for_ever_is_given_up(broker: Callable[[str], str]) -> None:
    async def run() -> None:
        async with await BrokerClient.connect(broker("restarts=6")) as client:
            begin = time.monotonic()
            with pytest.raises(errors.BrokerUnavailableError, match="starts anew"):
                await client.devices()
            assert time.monotonic() - begin < 5
            # It was called six times, so the seventh is answered.
            assert await client.devices()

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
        ("other-kind", "pci0: a grant of the kind pci, not tap"),
        ("no-fds", "hold: no descriptor came with it"),
        ("too-many-fds", "5 descriptors more"),
        ("fd-twice", "belongs to something else"),
        ("fewer-grants", "1 grants for 2 requests"),
        ("two-queues", "2 queues, not 1"),
        ("vhost-unasked", "tap1: vhost, and nobody asked for it"),
        ("vhost-odd", "tap1: 1 descriptors for queues and vhost"),
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
        (f"{OURS}Restarting", errors.BrokerUnavailableError),
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
    with pytest.raises(errors.UsageError):
        TapRequest(network="a", vlan=42)
    assert TapRequest(bridge="br0", vlan=42).parameters() == {
        "bridge": ("s", "br0"),
        "vlan": ("u", 42),
    }
    assert TapRequest(bridge="br0", queues=2).parameters() == {
        "bridge": ("s", "br0"),
        "queues": ("u", 2),
    }


def test_the_client_has_every_member_of_the_contract() -> None:
    members = {"Plan", "Acquire", "ListNetworks", "ListDevices", "ListLeases", "Diagnose"}
    members |= {"LockMemory", "Release"}
    source = inspect.getsource(BrokerClient)
    assert [member for member in members if f'"{member}"' not in source] == []

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A journal that is not as it was written, a host without room, and the broker's own end."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from lab import host
from lab.broker import COMMAND, NAME, RUNTIME
from lab.bus import BUS, call, connected, in_thread, wait_for_owner
from lab.client import Client, RefusalError
from lab.stage import Flavour
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lab.broker import Broker

pytestmark = pytest.mark.kernel

GATEWAY = "10.213.80.1"
RECORDS = RUNTIME / "records"


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def to_symlink(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


SPOILED: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_text(path.read_text()[:100]),
    "empty": lambda path: path.write_text(""),
    "garbled": lambda path: path.write_bytes(b"\x00\xff" * 500),
    "deep": lambda path: path.write_text("[" * 100000),
    "a-list": lambda path: path.write_text("[]"),
    "future": lambda path: rewrite(path, version=99),
    "symlink": to_symlink,
    "unknown-step": lambda path: rewrite(path, parts={"tap0": [{"step": "format-disk"}]}),
}


@pytest.mark.parametrize("how", SPOILED)
def test_g71_a_spoiled_record_is_set_aside_and_the_others_hold(
    how: str, broker: Broker, alices: Client, bobs: Client
) -> None:
    with alices.acquire() as lease, bobs.acquire() as other:
        broker.kill()
        path = RECORDS / f"lease-{lease.id}.json"
        SPOILED[how](path)
        broker.start()
        assert alices.leases() == []
        assert other.tap.ask_arp(GATEWAY)
        assert other.listed()
        quarantine = RECORDS / "quarantine"
        assert [path.name for path in quarantine.iterdir()] == [path.name]
        # Its TAP is in no set any more: what nobody knows is cut off.
        assert lease.tap.ifname not in host.nft("list", "ruleset")
        broker.restart()
        assert other.listed()
    for spoiled in quarantine.iterdir():
        spoiled.unlink()
    quarantine.rmdir()
    (RECORDS / "elsewhere").unlink(missing_ok=True)


def test_g78_a_record_of_a_former_broker_is_taken_up(broker: Broker, alices: Client) -> None:
    """It does not know the fields that came later."""
    with alices.acquire() as lease:
        broker.kill()
        path = RECORDS / f"lease-{lease.id}.json"
        record = json.loads(path.read_text())
        for step in record["parts"]["tap0"]:
            if step["step"] == "tap-filter":
                del step["bridge"]
        path.write_text(json.dumps(record))
        broker.start()
        assert lease.listed()
        assert lease.tap.ask_arp(GATEWAY)
    assert host.ours() == []


@pytest.mark.parametrize("broker", Flavour, indirect=True)
def test_d42_either_pyroute2_forgets_neighbours_and_makes_a_bridge_that_learns_no_groups(
    broker: Broker, alices: Client, bobs: Client
) -> None:
    with bobs.acquire() as other, alices.acquire() as lease:
        lease.tap.ask_arp(GATEWAY)
        other.tap.ask_arp(GATEWAY)
        known = host.ip("neigh", "show", "dev", "svn_default")
        assert lease.tap.mac in known
        assert host.link("svn_default")["linkinfo"]["info_data"]["mcast_snooping"] == 0
        lease.release()
        known = host.ip("neigh", "show", "nud", "all", "dev", "svn_default")
        assert lease.tap.mac not in known
        assert other.tap.mac in known


def test_g70_records_of_another_boot_are_dropped_and_nothing_is_undone(
    broker: Broker, alices: Client
) -> None:
    with alices.acquire():
        broker.kill()
        kept = {}
        for path in RECORDS.glob("*.json"):
            kept[path] = path.read_text()
            rewrite(path, boot_id="00000000-0000-0000-0000-000000000000")
        before = host.ours()
        broker.start()
        assert alices.leases() == []
        assert list(RECORDS.glob("*.json")) == []
        assert host.ours() == before
        host.ip("link", "del", "svn_default")
        shutil.rmtree(RUNTIME / "networks/svn_default")
    assert host.ours() == []


def test_g72_no_room_for_the_journal(broker: Broker, alices: Client) -> None:
    broker.stop()
    size = "size=64k,mode=0711"
    subprocess.run(["mount", "--no-mtab", "-t", "tmpfs", "-o", size, "tmpfs", RUNTIME], check=True)
    try:
        broker.start()
        with alices.acquire() as lease:
            filler = RUNTIME / "filler"
            with pytest.raises(OSError, match="space"):
                filler.write_bytes(bytes(1 << 20))
            before = host.ours()
            with pytest.raises(RefusalError) as refusal:
                alices.acquire(vm="more")
            assert refusal.value.name == "Failed"
            assert host.ours() == before
            assert lease.tap.ask_arp(GATEWAY)
            lease.release()  # giving back works without room
            filler.unlink()
        with alices.acquire() as lease:
            assert lease.tap.ask_arp(GATEWAY)
        assert host.ours() == []
        broker.stop()
    finally:
        broker.kill()
        subprocess.run(["umount", "--no-mtab", "--lazy", RUNTIME], check=True)
    broker.start()


def test_g73_no_descriptor_left(broker: Broker, alices: Client) -> None:
    broker.stop()
    broker.daemon.argv = ["prlimit", "--nofile=32", *COMMAND]
    broker.start()
    with ExitStack() as stack:
        first = stack.enter_context(alices.acquire())
        refusal, before = None, host.ours()
        for number in range(31):
            before = host.ours()
            try:
                stack.enter_context(alices.acquire(vm=f"vm{number}"))
            except RefusalError as error:
                refusal = error
                break
        assert refusal is not None
        assert refusal.name == "Failed"
        assert host.ours() == before
        assert first.listed()
        assert first.tap.ask_arp(GATEWAY)
    with alices.acquire() as again:
        assert again.tap.ask_arp(GATEWAY)
    assert host.ours() == []
    broker.daemon.argv = COMMAND


async def pid_of_owner() -> int:
    async with connected() as bus:
        member = f"{BUS}.GetConnectionUnixProcessID"
        return int((await call(bus, BUS, "/", member, "s", [NAME]))[0])


def test_g74_every_call_around_an_idle_exit_is_answered_once(broker: Broker, bus: object) -> None:
    broker.stop()
    broker.daemon.argv = [*COMMAND, "--idle-seconds", "0.05"]
    broker.start()
    pid = broker.daemon.pid

    async def storm(client: Client) -> list[int]:
        answers = []
        for _ in range(30):
            replies = await asyncio.gather(
                *(client.ask("ListLeases", "a{sv}", {}) for _ in range(2))
            )
            answers.append(len(replies))
            await asyncio.sleep(0.02)  # the pauses are what is tested: some are as long as its own
        return answers

    with Client(User.named("alice")) as client:
        assert client.run(storm(client), 60) == [2] * 30
        assert broker.daemon.pid == pid
        broker.daemon.wait(10)
        # Activation starts the next by the service file, through dbus-daemon's setuid helper.
        assert client.leases() == []
        wait_for_owner(NAME)
        os.kill(in_thread(pid_of_owner()), signal.SIGTERM)
    broker.daemon.argv = COMMAND

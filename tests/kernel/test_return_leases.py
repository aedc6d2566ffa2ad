# SPDX-License-Identifier: LGPL-2.1-or-later
"""``--return-leases``: before the package goes, every lease does, whatever its holder does."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.broker import COMMAND, RUNTIME, Broker
from lab.bus import ENVIRONMENT
from lab.client import Client, direct, network_tap
from lab.direct import wired
from lab.files import wait_until_empty

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.outside import Outside

pytestmark = pytest.mark.kernel

BRIDGE = "svn_default"


def return_leases(*under: str) -> subprocess.CompletedProcess[str]:
    """As the package's prerm runs it.

    :param under: a program that runs it.
    """
    return subprocess.run(
        [*under, *COMMAND, "--return-leases"],
        cwd="/",
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def left() -> list[str]:
    """What of the broker's is still there."""
    found = host.ours() + [table for table in host.tables() if "sessionvirt" in table]
    for name in ("records", "holds", "networks"):
        found += [str(path) for path in (RUNTIME / name).iterdir()]
    return found


@pytest.fixture
def lan() -> Iterator[str]:
    """A bridge of the administrator's."""
    host.ip("link", "add", "br7", "address", "02:00:00:00:07:01", "type", "bridge")
    host.ip("link", "set", "br7", "up")
    yield "br7"
    assert host.link("br7")
    host.ip("link", "del", "br7")


def test_every_lease_ends_though_it_is_held(
    broker: Broker, outside: Outside, lan: str, alices: Client, bobs: Client
) -> None:
    broker.configure(f'[network.default]\nipv4 = "10.213.80.1/20"\n[bridge.{lan}]\n')
    mine, bobs_lease = alices.acquire(vm='win "11"'), bobs.acquire(network_tap("", bridge=lan))
    assert len(host.ours()) == 3
    assert host.forwarding("up0") == "1"
    broker.stop()
    done = return_leases()
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == sorted(
        [
            f'lease {mine.id}: returned, from the machine "win \\"11\\"" of uid 61001',
            f'lease {bobs_lease.id}: returned, from the machine "vm" of uid 61002',
        ]
    )
    assert left() == []
    assert host.forwarding("up0") == "0"
    with pytest.raises(OSError, match="descriptor in bad state"):
        os.read(mine.tap.fds[0], 2048)
    for lease in (mine, bobs_lease):
        lease.close()

    again = return_leases()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    broker.start()
    with alices.acquire() as new:
        assert new.tap.ask_arp("10.213.80.1")


def test_a_macvtap_goes_though_its_descriptors_stay(broker: Broker, alices: Client) -> None:
    broker.configure("[direct.wire0]\n")
    with wired("wire0"):
        lease = alices.acquire(direct(device="wire0"))
        broker.kill()
        done = return_leases()
        assert (done.returncode, done.stderr) == (0, "")
        assert f"lease {lease.id}: returned, from" in done.stdout
        assert left() == []
        # A table of ours that no record names goes, too.
        broker.start()
        host.nft("add", "table", "netdev", "sessionvirt")
        host.nft("add", "chain", "netdev", "sessionvirt", "sessionvirt_1")
        broker.stop()
        assert return_leases().returncode == 0
        assert left() == []
        lease.close()
    broker.start()


def test_leases_of_a_broker_that_was_killed(broker: Broker, alices: Client, bobs: Client) -> None:
    ended, held = alices.acquire(), bobs.acquire()
    broker.kill()
    ended.close()
    done = return_leases()
    assert (done.returncode, done.stderr) == (0, "")
    assert f"lease {ended.id}: had ended\n" in done.stdout
    assert f"lease {held.id}: returned, from" in done.stdout
    assert left() == []
    held.close()
    broker.start()


def test_it_refuses_while_the_broker_runs(broker: Broker, alices: Client) -> None:
    with alices.acquire() as lease:
        done = return_leases()
        assert done.returncode == 1
        assert "the broker is running; stop it first" in done.stderr
        assert done.stdout == ""
        assert lease.tap.ask_arp("10.213.80.1")
        assert lease.listed()


def test_what_stays_is_named_with_the_reason(
    broker: Broker, outside: Outside, alices: Client
) -> None:
    switch = host.IPV4_CONF / "up0/forwarding"
    lease = alices.acquire()
    broker.stop()
    subprocess.run(["mount", "-n", "--bind", switch, switch], check=True)
    try:
        subprocess.run(["mount", "-n", "-o", "remount,bind,ro", switch], check=True)
        done = return_leases()
    finally:
        subprocess.run(["umount", "-n", switch], check=True)
    assert done.returncode == 1
    assert f"lease {lease.id}: returned" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("left: ")]
    assert line.startswith("left: forwarding: cannot ")
    assert "up0" in line
    assert "Read-only file system" in line
    assert [path.name for path in (RUNTIME / "records").iterdir()] == ["forwarding.json"]
    assert host.ours() == []
    # What was in the way is gone.
    assert return_leases().returncode == 0
    assert left() == []
    assert host.forwarding("up0") == "0"
    lease.close()
    broker.start()


def forge(name: str, content: str) -> Path:
    """A record that no broker of this boot has written."""
    path = RUNTIME / "records" / name
    path.write_text(content)
    return path


def test_a_record_that_cannot_be_understood_is_left(broker: Broker) -> None:
    broker.stop()
    strange = forge(f"lease-{'0' * 32}.json", "{}")
    done = return_leases()
    aside = RUNTIME / "records/quarantine" / strange.name
    assert done.returncode == 1
    assert f"left: {aside}: a record that cannot be understood" in done.stderr
    assert return_leases().returncode == 1
    aside.unlink()
    aside.parent.rmdir()
    assert return_leases().returncode == 0
    broker.start()


@pytest.mark.parametrize("what", ["a link", "a file"])
def test_what_is_set_aside_goes_nowhere_else(what: str, broker: Broker, tmp_path: Path) -> None:
    """A broker that was taken over within its sandbox could have left a link there."""
    broker.stop()
    strange = forge(f"lease-{'2' * 32}.json", "{}")
    quarantine = RUNTIME / "records/quarantine"
    if what == "a link":
        tmp_path.chmod(0o777)
        quarantine.symlink_to(tmp_path)
    else:
        quarantine.write_text("")
    done = return_leases()
    assert list(tmp_path.iterdir()) == []
    assert not quarantine.is_symlink()
    assert f"left: {quarantine / strange.name}: a record" in done.stderr
    (quarantine / strange.name).unlink()
    quarantine.rmdir()
    broker.start()


def test_a_record_of_another_boot_is_dropped_as_at_a_start(broker: Broker, alices: Client) -> None:
    with alices.acquire() as lease:
        known = RUNTIME / "records" / f"lease-{lease.id}.json"
        record = json.loads(known.read_text())
        broker.stop()
        former = record | {"boot_id": "of-another-boot", "id": f"lease-{'1' * 32}"}
        stale = forge(f"{former['id']}.json", json.dumps(former))
        # Only the record goes: it says nothing about the interface of the same name.
        assert host.link(lease.tap.ifname)
        broker.start()
        assert not stale.exists()
        assert lease.tap.ask_arp("10.213.80.1")
        broker.stop()
        forge(stale.name, json.dumps(former))
        done = return_leases()
        assert done.returncode == 0
        assert f"lease {'1' * 32}: had ended" in done.stdout
        assert left() == []
        broker.start()


def test_a_lease_that_is_held_is_not_of_another_boot(
    broker: Broker, alices: Client, tmp_path: Path
) -> None:
    """In a container a program may see another boot id than the broker's unit does."""
    other = tmp_path / "boot_id"
    other.write_text("00000000-0000-0000-0000-000000000000\n")
    cover = f"mount -n --bind {other} /proc/sys/kernel/random/boot_id"
    with alices.acquire() as lease:
        broker.stop()
        # The lab's mounts are private already, and in a chroot / is no mount that could be made so.
        covered = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c")
        done = return_leases(*covered, f'{cover} && exec "$@"', "sh")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith(f"left: lease {lease.id}: held, but of another boot id")
        broker.start()
        assert lease.tap.ask_arp("10.213.80.1")


def test_an_interface_of_ours_without_a_record_is_left(broker: Broker) -> None:
    broker.stop()
    host.ip("link", "add", "svn_lost", "type", "bridge")
    try:
        done = return_leases()
    finally:
        host.ip("link", "del", "svn_lost")
    assert done.returncode == 1
    assert done.stderr == "left: interface svn_lost: no record names it\n"
    assert return_leases().returncode == 0
    broker.start()


def test_one_of_the_two_tables_is_left_by_nobody(broker: Broker, alices: Client) -> None:
    lease = alices.acquire()
    host.nft("delete", "table", "inet", "sessionvirt")
    broker.stop()
    done = return_leases()
    assert done.returncode == 0, done.stderr
    assert left() == []
    lease.close()
    broker.start()


def test_another_ones_table_of_our_name_stays(broker: Broker, alices: Client) -> None:
    lease = alices.acquire()
    host.nft("delete", "table", "inet", "sessionvirt")
    host.nft("add", "table", "inet", "sessionvirt")
    broker.stop()
    try:
        done = return_leases()
        assert done.returncode == 0, done.stderr
        assert left() == ["inet sessionvirt"]
    finally:
        host.nft("delete", "table", "inet", "sessionvirt")
    lease.close()
    broker.start()
    wait_until_empty(RUNTIME / "records", 5)

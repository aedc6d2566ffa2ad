# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs that ask the broker: tables, JSON, and an exit status for each of its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.bus

SOURCE = Path(__file__).resolve().parents[2] / "src"
OURS = "org.sessionvirt.Broker1.Error."

#: A machine with a device of the host.
DEVICE = ("--network", "none", "--pci", "03:00.0", "--kernel", "/dev/null", "--name", "guest")
#: A machine with a TAP; its kernel is never started.
GUEST = ("--network", "default", "--kernel", "/dev/null", "--name", "guest")


def run(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(SOURCE), os.environ.get("PYTHONPATH", ""))),
        "DBUS_SYSTEM_BUS_ADDRESS": address,
        "TZ": "UTC",
    }
    done = subprocess.run(
        [sys.executable, "-m", "sessionvirt", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def test_networks(broker: Callable[[str], str]) -> None:
    address = broker("ok")
    head, row = run(address, "networks").stdout.splitlines()
    assert head.split() == [
        "NAME", "TYPE", "MODE", "BRIDGE", "STATE", "MTU", "IPV4", "IPV6", "LEASES",
    ]  # fmt: skip
    assert row == (
        "default  network  nat   svt-default  up     1500  10.213.80.1/20 10.9.0.1/24  -     1"
    )
    assert head.index("IPV6") == row.index("-     1")
    assert json.loads(run(address, "networks", "--json").stdout) == {
        "version": 1,
        "networks": [
            {
                "name": "default",
                "type": "network",
                "mode": "nat",
                "bridge": "svt-default",
                "up": True,
                "mtu": 1500,
                "ipv4": ["10.213.80.1/20", "10.9.0.1/24"],
                "ipv6": [],
                "leases": 1,
            }
        ],
    }


def test_the_names_of_networks_are_lines(broker: Callable[[str], str]) -> None:
    """A name that is not one line of print is no name."""
    address = broker("names")
    assert run(address, "networks", "--names", "network").stdout == "default\ntwo words\n"
    assert run(address, "networks", "--names", "bridge").stdout == "br0\n"
    done = run(address, "networks", "--names", "bridge", "--json")
    assert (done.returncode, done.stdout) == (2, "")


def test_the_names_of_networks_are_not_waited_for(broker: Callable[[str], str]) -> None:
    done = run(broker("silent"), "networks", "--names", "network")
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr == "sessionvirt: no answer within 2 seconds\n"


def test_leases(broker: Callable[[str], str]) -> None:
    address = broker("ok")
    _, row = run(address, "leases").stdout.splitlines()
    assert row.split() == [
        "01234567", "guest", "1000", "-", "held", "2023-11-14", "22:13:20", "asked", "default",
        "svt0123", "52:54:00:01:02:03", "10.213.80.9", "mac", "3",
    ]  # fmt: skip
    (lease,) = json.loads(run(address, "leases", "--json").stdout)["leases"]
    assert lease["drops"] == {"mac": 3, "arp": 0}
    assert "fds" not in lease["grants"][0]


def test_leases_of_devices(broker: Callable[[str], str]) -> None:
    address = broker("devices")
    head, device, tap = run(address, "leases").stdout.splitlines()
    assert head.split() == [
        "LEASE", "VM", "USER", "PROCESS", "STATE", "SINCE", "ALLOWED", "ON", "DEVICE", "MAC",
        "ADDRESSES,", "NAME", "DROPS",
    ]  # fmt: skip
    assert "PCI group 6, VLAN 42  0000:03:00.0  52:54:00:00:42:01  " in device
    assert "82574L Gigabit Network Connection and 1 more  mac 3" in device
    assert tap.split() == ["default", "svt0123", "52:54:00:01:02:03", "10.213.80.9"]
    (lease,) = json.loads(run(address, "leases", "--json").stdout)["leases"]
    assert [grant["kind"] for grant in lease["grants"]] == ["pci", "tap"]
    assert lease["grants"][0]["members"] == ["0000:03:00.0", "0000:03:00.1"]


@pytest.mark.parametrize("word", ["guest", "0123", "0123456789abcdef"])
def test_a_lease_is_reclaimed_by_any_of_its_names(broker: Callable[[str], str], word: str) -> None:
    done = run(broker("reclaims"), "reclaim", word)
    assert (done.returncode, done.stdout) == (0, "")
    assert "is given back" in done.stderr


def test_another_users_lease_is_named_whole(broker: Callable[[str], str]) -> None:
    """It is not listed: the broker is asked, with its path as it is, and says no."""
    whole = "f" * 32
    done = run(broker("ok"), "reclaim", "--no-ask-password", whole)
    assert (done.returncode, done.stdout) == (4, "")
    assert f"/org/sessionvirt/Broker1/lease/{whole} False" in done.stderr


@pytest.mark.parametrize("word", ["guests", "9", "f" * 31, "../x"])
def test_a_lease_that_is_not_there(broker: Callable[[str], str], word: str) -> None:
    done = run(broker("ok"), "reclaim", word)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"no lease or machine '{word}'" in done.stderr
    assert "sessionvirt leases" in done.stderr


def test_devices(broker: Callable[[str], str]) -> None:
    address = broker("ok")
    done = run(address, "devices")
    assert (done.returncode, done.stderr) == (0, "")
    heads = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert heads == [
        "group 1: free to assign",
        "group 2: takes 1 other along: 0000:02:00.0, 0000:02:00.1 go together (--with-group)",
        "group 3: refused: 0000:03:00.0: file system / on /dev/vda1",
        "group 4: held by win\\x1b[2J11",
    ]
    report = json.loads(run(address, "devices", "--json").stdout)
    assert [group["verdict"] for group in report["groups"]] == ["free", "group", "refused", "held"]
    assert set(report["groups"][0]["devices"][0]) == {
        "address", "name", "ids", "subsystem", "class", "driver", "variant", "group",
        "endpoint", "resets", "rom", "uses", "holder", "verdict",
    }  # fmt: skip
    names = run(address, "devices", "--names").stdout.split()
    assert names == ["0000:01:00.0", "0000:02:00.0", "0000:02:00.1"]


def test_devices_without_an_iommu(broker: Callable[[str], str]) -> None:
    done = run(broker("no-iommu"), "devices")
    first, *_, last = done.stdout.splitlines()
    assert first == "no IOMMU: none of these can be given to a machine"
    assert last.startswith("what to do: ")


def test_the_addresses_of_devices_are_not_waited_for(broker: Callable[[str], str]) -> None:
    done = run(broker("silent"), "devices", "--names")
    assert (done.returncode, done.stdout) == (8, "")


def test_the_plan_of_a_device(broker: Callable[[str], str]) -> None:
    done = run(broker("ok"), "plan", *DEVICE, "--with-group", "--verbose")
    assert done.returncode == 0, done.stderr
    lines = [line.split("  ") for line in done.stdout.splitlines() if "GiB" in line]
    (line,) = ([cell.strip() for cell in cells if cell] for cells in lines)
    assert line == ["2", "let QEMU lock 2.0 GiB of memory", "nothing: it ends with QEMU"]
    assert '"host":"0000:03:00.0"' in done.stdout


def test_a_machine_that_may_not_lock_memory_is_not_started(broker: Callable[[str], str]) -> None:
    """What the broker sees is the shell that waits to be QEMU; that nothing is left of it is the
    leak guard's to say."""
    done = run(broker("ok"), "run", "-q", *DEVICE)
    assert done.returncode == 6
    assert done.stderr.splitlines()[1] == f"  sh {2 << 30}"


def test_a_machine_that_may_lock_memory_is_started(
    broker: Callable[[str], str], tmp_path: Path
) -> None:
    """There is no such device: QEMU says so, which it can only where it runs."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    done = run(broker("locks"), "run", "-q", *DEVICE[:3], "fffe:03:00.0", str(disk))
    assert done.returncode == 1
    assert "fffe:03:00.0: no such host device" in done.stderr


def test_plan(broker: Callable[[str], str]) -> None:
    done = run(broker("ok"), "plan", *GUEST)
    assert done.returncode == 0, done.stderr
    assert "guest: somebody would be asked (org.sessionvirt.broker1.tap-network)" in done.stdout
    assert "prompt: Authentication is required" in done.stdout
    assert "1  make a TAP           close it" in done.stdout


def test_doctor_words_every_fact_and_fails_where_something_does_not_work(
    broker: Callable[[str], str],
) -> None:
    done = run(broker("ok"), "doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["broker"]["boot_id"] == "b"
    levels = {check["name"]: check["level"] for check in report["checks"]}
    problems = {name for name, level in levels.items() if level == "problem"}
    assert problems == {
        "broker-capabilities", "configuration", "dnsmasq", "firewall", "polkit", "tun",
    }  # fmt: skip
    assert levels["bridge-netfilter"] == "warning"
    # A machine runs: whose rules stop it is asked, not whose could.
    assert levels["firewall-rules"] == "ok"
    assert "other-firewalls" not in levels
    assert all(check["advice"] for check in report["checks"] if check["level"] != "ok")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (f"{OURS}NotAuthorized", 4),
        (f"{OURS}Dismissed", 4),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", 5),
        (f"{OURS}LimitsExceeded", 6),
        (f"{OURS}DeviceUnsafe", 7),
        (f"{OURS}AuthorityUnavailable", 8),
        (f"{OURS}NotFound", 3),
        (f"{OURS}NotSupported", 1),
        ("org.freedesktop.DBus.Error.InvalidArgs", 2),
    ],
)
def test_a_refusal_has_its_exit_status_and_starts_nothing(
    broker: Callable[[str], str], name: str, code: int
) -> None:
    done = run(broker(f"error={name}"), "run", *GUEST)
    assert (done.returncode, done.stdout) == (code, "")
    cause, evidence, *advice = done.stderr.splitlines()
    assert cause.startswith("sessionvirt: ")
    assert evidence == "  the field and the cause"
    assert all(line.startswith("what to do: ") for line in advice)


def test_a_lease_whose_taps_are_none_is_given_back(broker: Callable[[str], str]) -> None:
    """The fake's TAPs are /dev/null: QEMU refuses, and says why."""
    done = run(broker("ok"), "run", "-q", *GUEST)
    assert done.returncode == 1
    assert "QEMU exited with status 1" in done.stderr
    assert "TUNGETIFF" in done.stderr or "tap" in done.stderr

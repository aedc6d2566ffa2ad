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
    assert run(address, "networks").stdout.splitlines() == [
        "NAME     TYPE     MODE  BRIDGE       STATE  IPV4            IPV6  LEASES",
        "default  network  nat   svt-default  up     10.213.80.1/20  -     1",
    ]
    assert json.loads(run(address, "networks", "--json").stdout) == {
        "version": 1,
        "networks": [
            {
                "name": "default",
                "type": "network",
                "mode": "nat",
                "bridge": "svt-default",
                "up": True,
                "ipv4": "10.213.80.1/20",
                "ipv6": "",
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
        "guest", "1000", "held", "2023-11-14", "22:13:20", "asked", "default", "svt0123",
        "52:54:00:01:02:03", "10.213.80.9", "mac", "3",
    ]  # fmt: skip
    (lease,) = json.loads(run(address, "leases", "--json").stdout)["leases"]
    assert lease["drops"] == {"mac": 3, "arp": 0}
    assert "fds" not in lease["grants"][0]


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
    assert levels["bridge-netfilter"] == levels["other-firewalls"] == "warning"
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

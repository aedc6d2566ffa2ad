# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host finds a network's guests by name where systemd-resolved runs, and asks for no others."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.host

SECONDS = 120.0
RESOLVED = "systemd-resolved.service"
UNIT = "sessionvirt-names@svn_{}.service"
CONFIGURATION = """
[network.lab]
ipv4 = "10.71.0.1/24"
[network.silent]
ipv4 = "10.72.0.1/24"
names_on_host = false
"""
NAME = "web-server.lab.internal"


@contextmanager
def resolved() -> Iterator[None]:
    """It runs; nothing of it is left."""
    from host.inside import units

    units.systemctl("start", RESOLVED)
    try:
        yield
    finally:
        units.systemctl("stop", RESOLVED)
        shutil.rmtree("/run/systemd/resolve", ignore_errors=True)


def ask(*words: str) -> str:
    """What resolvectl says; an error is no answer."""
    argv = ["resolvectl", "--no-pager", "--legend=no", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60).stdout


def until_told(network: str, wanted: str = "active success") -> None:
    """The unit of the network has done what it does, or has come to be as *wanted* says.

    :raise TimeoutError: it has not.
    """
    end = time.monotonic() + SECONDS
    while (found := state(network)) != wanted:
        if time.monotonic() > end:
            raise TimeoutError(f"{network}: {found}, not {wanted}")
        time.sleep(0.2)


def until_found(name: str, address: str) -> None:
    """resolved answers with that address.

    :raise TimeoutError: it does not.
    """
    end = time.monotonic() + SECONDS
    while address not in ask("query", name):
        if time.monotonic() > end:
            raise TimeoutError(f"{name}: {ask('query', name)!r}; {state('lab')}")
        time.sleep(0.2)


def state(network: str) -> str:
    """ActiveState and Result of the network's unit."""
    from host.inside import units

    said = units.show(UNIT.format(network), "ActiveState", "Result")
    return f"{said['ActiveState']} {said['Result']}"


@pytest.mark.usefixtures("permission")
def test_a_guest_is_found_by_its_name_on_the_host() -> None:
    from host.inside import units
    from host.inside.strangers import configured, connection, holding
    from lab import rawbus

    requests = (rawbus.tap("lab"), rawbus.tap("silent"), rawbus.tap("private"))
    with configured(CONFIGURATION), resolved():
        with connection("user1") as client, holding(client, "Web Server", *requests) as held:
            until_found(NAME, held.taps[0].ipv4)
            assert ask("domain", "svn_lab").split()[-1] == "~lab.internal"
            assert ask("default-route", "svn_lab").split()[-1] == "no"
            # A resolved that is started anew is told anew.
            former = units.show(UNIT.format("lab"), "InvocationID")
            units.systemctl("restart", RESOLVED)
            until_told("lab")
            assert units.show(UNIT.format("lab"), "InvocationID") != former
            until_found(NAME, held.taps[0].ipv4)
            assert ask("dns", "svn_lab").split()[-1] == "10.71.0.1"
            # These were looked at, and nothing was said of them.
            for other in ("silent", "u1001"):
                until_told(other)
                assert ask("dns", f"svn_{other}").split()[-1].endswith(":")
            assert held.taps[1].ipv4 not in ask("query", "web-server.silent.internal")
        until_told("lab", "inactive success")


@pytest.mark.usefixtures("permission")
def test_where_it_does_not_run_nothing_is_told_and_nothing_fails() -> None:
    from host.inside.strangers import connection, holding
    from lab import rawbus

    # What it leaves behind is not it.
    Path("/run/systemd/resolve").mkdir()
    try:
        with connection("user1") as client, holding(client, "web", rawbus.tap()):
            until_told("default", "inactive exec-condition")
    finally:
        Path("/run/systemd/resolve").rmdir()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A device is pulled out of the host while a user has it, and another is put in its place.

Driven from outside, by the monitor of the host's QEMU: what a hand does to a slot.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from host import board, install
from host.channel import Kind

if TYPE_CHECKING:
    from host.connection import Connection, Job
    from host.machine import Machine

pytestmark = pytest.mark.host

SECONDS = 90.0
USER = "user1"


class Holder:
    """``host.inside.hostdev_job`` in the host."""

    def __init__(self, host: Connection, address: str) -> None:
        self._job: Job = host.start(install.module("host.inside.hostdev_job", USER, address))
        self._output = self._job.output(600)
        self._left = b""

    def line(self) -> Any:
        """The next that it says."""
        said = b""
        while b"\n" not in self._left:
            kind, data = next(self._output)
            assert kind is not Kind.EXIT, said.decode()
            if kind is Kind.OUTPUT:
                self._left += data
            said += data
        line, _, self._left = self._left.partition(b"\n")
        return json.loads(line)

    def ask(self, word: str) -> dict[str, Any]:
        self._job.send(f"{word}\n".encode())
        found: dict[str, Any] = self.line()
        return found

    def until(self, **wanted: object) -> None:
        """Until what it sees is as wanted."""
        deadline = time.monotonic() + SECONDS
        while (seen := self.ask("look")) and any(seen[key] != wanted[key] for key in wanted):
            assert time.monotonic() < deadline, f"{seen}, not {wanted}"
            time.sleep(0.2)  # nothing gives notice of it here

    def end(self) -> None:
        self._job.end_input()
        assert list(self._output)[-1] == (Kind.EXIT, b"0")


def address_of(host: Connection, mac: str) -> str:
    """The PCI address of the card with that MAC."""
    script = f"grep -l {mac} /sys/bus/pci/devices/*/net/*/address"
    return host.run(["sh", "-c", script]).text.split("/")[5]


def driver_of(host: Connection, address: str) -> str:
    script = f"basename $(readlink /sys/bus/pci/devices/{address}/driver)"
    return host.run(["sh", "-c", script], check=False).text


def test_e52_a_device_that_is_pulled_out_ends_its_lease_and_what_comes_instead_is_free(
    testhost: Machine, host: Connection
) -> None:
    """While a process has it open it cannot go: it goes with that, the broker answers meanwhile.

    At the same address there is then another card. It is the host's, whoever had the one before.
    """
    mac = "52:54:00:00:01:01"
    card = address_of(host, mac)
    holder = Holder(host, card)
    assert holder.line() == "open"
    testhost.monitor("device_del", id="nic1")
    try:
        assert holder.ask("look")["state"] == "held"
        assert holder.ask("look")["listed"] == ["held", "vm"]
        holder.ask("close")
        holder.until(state="", listed=None)
    finally:
        device: dict[str, object] = {
            "driver": "e1000e",
            "id": "nic1",
            "bus": "port1",
            "netdev": "wire1",
            "mac": mac,
        }
        plug(testhost, device)
    holder.until(driver="e1000e", listed=["free", ""])
    holder.end()
    assert driver_of(host, card) == "e1000e"
    assert board.PULLED_OUT[1] == "nic1"


def plug(testhost: Machine, device: dict[str, object]) -> None:
    """Put a device in, once the slot is empty."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            testhost.monitor("device_add", **device)
        except Exception as error:
            if time.monotonic() > deadline:
                raise AssertionError("the slot does not get empty") from error
            time.sleep(0.5)  # DEVICE_DELETED went to a monitor that was closed
        else:
            return

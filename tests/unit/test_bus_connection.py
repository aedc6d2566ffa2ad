# SPDX-License-Identifier: LGPL-2.1-or-later
"""When the broker connects to the bus, and what is said where it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from sessionvirt_broker.bus import Bus
from sessionvirt_broker.errors import HostFailure

if TYPE_CHECKING:
    from pathlib import Path

    from dbus_fast import Message

pytestmark = pytest.mark.unit

VARIABLE = "DBUS_SYSTEM_BUS_ADDRESS"


def handle(message: Message) -> bool:
    raise AssertionError(message)


def refuse(message: Message, why: str) -> None:
    raise AssertionError((message, why))


async def connect() -> None:
    await Bus().connect(handle, refuse)


def test_the_bus_is_not_kept_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a start has to do may take longer than a bus waits for a word (auth_timeout)."""
    monkeypatch.setenv(VARIABLE, f"unix:path={tmp_path}/bus")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(f"{tmp_path}/bus")
        listener.listen()
        listener.settimeout(0)
        Bus()
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "nonsense", "unix:nothing=1"])
def test_without_a_bus_there_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, address)
    with pytest.raises(HostFailure, match="no way to the system bus: "):
        asyncio.run(connect())


def test_a_bus_that_hangs_up_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"unix:path={tmp_path}/bus")

    async def serve() -> None:
        def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_unix_server(hang_up, f"{tmp_path}/bus"):
            await connect()

    with pytest.raises(HostFailure, match="no way to the system bus: "):
        asyncio.run(serve())

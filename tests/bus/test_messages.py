# SPDX-License-Identifier: LGPL-2.1-or-later
"""Group B of the attacks, messages: whatever comes in, the broker stays, and keeps nothing."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dbus_fast import Message, MessageType, Variant

from lab.rawbus import (
    INTERFACE,
    LEASE,
    PATH,
    Client,
    assert_serves,
    marshalled,
    tap,
)
from lab.stage import Flavour

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.broker import Broker
    from lab.users import User

pytestmark = pytest.mark.bus

LEASE_PATH = f"{PATH}/lease/{'0' * 32}"
PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PROPERTIES = "org.freedesktop.DBus.Properties"

both_flavours = pytest.mark.parametrize("broker", Flavour, indirect=True)


def peak_kilobytes(broker: Broker) -> int:
    status = Path(f"/proc/{broker.daemon.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


# B16: what is not in the table


@both_flavours
def test_b16_every_call_that_is_not_in_the_table_gets_an_error_and_no_more(
    broker: Broker, unlimited: None, open_bus: None, alice: User
) -> None:
    wrong: list[tuple[str, str | None, str]] = [
        (PATH, INTERFACE, "Shutdown"),
        (PATH, INTERFACE, "plan"),
        (PATH, INTERFACE, "_plan"),
        (PATH, INTERFACE, "__init__"),
        (PATH, None, "Plan"),
        (PATH, None, "ListLeases"),
        (PATH, LEASE, "Plan"),
        (PATH, LEASE, "Release"),
        ("/", INTERFACE, "ListLeases"),
        ("/org/sessionvirt", INTERFACE, "ListLeases"),
        (f"{PATH}/lease", INTERFACE, "ListLeases"),
        (f"{PATH}/lease", LEASE, "Release"),
        (LEASE_PATH, INTERFACE, "ListLeases"),
        (LEASE_PATH, LEASE, "Release"),
        (f"{LEASE_PATH}0", LEASE, "Release"),
        (f"{LEASE_PATH}/x", LEASE, "Release"),
        (f"{PATH}/lease/{'A' * 32}", LEASE, "Release"),
        (PATH, PEER, "GetMachineId"),
        (PATH, PROPERTIES, "GetAll"),
        (PATH, PROPERTIES, "Get"),
        (PATH, PROPERTIES, "Set"),
        ("/", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
        (PATH, "org.freedesktop.DBus.Debug.Stats", "GetStats"),
        (PATH, "org.freedesktop.LogControl1", "Set"),
        (PATH, "a.b", "c"),
        (PATH, ".".join("x" * 60 for _ in range(4)), "y" * 255),
    ]
    with Client(alice) as client:
        for path, interface, member in wrong:
            error = client.error(member, {}, path=path, interface=interface, signature="a{sv}")
            assert error.short in ("UnknownMethod", "NotFound"), (path, interface, member)
            assert error.text in ("there is no such method", "there is no such lease")
    assert_serves(alice)


@both_flavours
def test_b16_every_member_refuses_every_other_signature(
    broker: Broker, unlimited: None, open_bus: None, alice: User
) -> None:
    members = [
        (PATH, INTERFACE, name)
        for name in ("Plan", "Acquire", "ListNetworks", "ListDevices", "ListLeases", "Diagnose")
    ]
    members += [(LEASE_PATH, LEASE, name) for name in ("Add", "Drop", "LockMemory", "Release")]
    members += [(PATH, PEER, "Ping"), (PATH, INTROSPECTABLE, "Introspect")]
    values: list[tuple[str, list[Any]]] = [
        ("b", [True]),
        ("s", ["x"]),
        ("a{ss}", [{}]),
        ("a{sv}s", [{}, "more"]),
        ("a(sa{sv})", [[]]),
        ("a(ss)a{sv}", [[], {}]),
        ("(a(sa{sv})a{sv})", [[[], {}]]),
        ("ha{sv}", [0, {}]),
        ("v", [Variant("a{sv}", {})]),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaas", [[]]),
        ("(" * 32 + "y" + ")" * 32, [_nested_struct(32)]),
    ]
    with Client(alice) as client:
        for path, interface, member in members:
            for signature, body in values:
                error = client.error(
                    member, *body, signature=signature, path=path, interface=interface
                )
                assert error.short == "InvalidArgs", (member, signature)
    assert_serves(alice)


def _nested_struct(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@both_flavours
def test_b16_messages_that_are_no_calls_and_bytes_that_are_no_messages(
    broker: Broker, open_bus: None, alice: User
) -> None:
    """The bus hangs up on most of it; the broker hears the rest and is not moved."""
    call = marshalled(Client.message(_Serials(), "ListNetworks", [{}]))
    for position in range(16):
        for value in (0, 1, 2, 3, 4, 5, 0x7F, 0xFF):
            raw = bytearray(call)
            raw[position] = value
            with Client(alice) as client, suppress(ConnectionError):
                client.send_bytes(bytes(raw))
                client.socket.shutdown(socket.SHUT_WR)
                while client.socket.recv(4096):
                    pass  # until the bus has dealt with it and hangs up
    with Client(alice) as client:
        owner = client.owner()
        for type_ in (MessageType.SIGNAL, MessageType.METHOD_RETURN, MessageType.ERROR):
            client.send(
                Message(
                    destination=owner,
                    path=PATH,
                    interface="org.freedesktop.DBus",
                    member="NameOwnerChanged",
                    error_name="org.freedesktop.DBus.Error.Failed",
                    message_type=type_,
                    reply_serial=1,
                    signature="sss",
                    body=[client.name, client.name, ""],
                    serial=client.next_serial(),
                )
            )
    assert_serves(alice)


class _Serials(Client):
    """Numbers messages, and is no connection."""

    def __init__(self) -> None:
        self._serial = 0


# B17: too much of it

BIG = 1_000_000


def _huge_bodies() -> dict[str, tuple[str, bytes]]:
    def text(length: int) -> bytes:
        return length.to_bytes(4, "little") + b"x" * length + b"\0"

    entry = b"\0" * 8  # (ya{sv}) with an empty array, padded
    structs = (BIG * 8).to_bytes(4, "little") + b"\0" * 4 + entry * BIG
    strings = (BIG * 8 - 3).to_bytes(4, "little") + bytes(BIG * 8 - 3)  # each empty, padded
    variants = (BIG * 4).to_bytes(4, "little") + b"\1y\0\7" * BIG
    return {
        "one string": ("s", text(30 << 20)),
        "a million structs": ("a(ya{sv})", structs),
        "a million strings": ("as", strings),
        "a million variants": ("av", variants),
        "bytes": ("ay", (30 << 20).to_bytes(4, "little") + b"\0" * (30 << 20)),
    }


@both_flavours
@pytest.mark.parametrize("kind", ["method_call", "signal", "no_reply"])
def test_b17_a_huge_message_costs_the_broker_nothing(
    broker: Broker, unlimited: None, open_bus: None, alice: User, bob: User, kind: str
) -> None:
    assert_serves(bob)
    before = peak_kilobytes(broker)
    for signature, body in _huge_bodies().values():
        with Client(alice) as client:
            head = Message(
                destination=client.owner(),
                path=PATH,
                interface=INTERFACE,
                member="Plan",
                message_type=MessageType.SIGNAL if kind == "signal" else MessageType.METHOD_CALL,
                serial=client.next_serial(),
                signature=signature,
                body=[_EMPTY[signature]],
            )
            whole = marshalled(head)
            fields = int.from_bytes(whole[12:16], "little")
            start = 16 + fields + -fields % 8
            raw = whole[:start]
            raw[2] = 1 if kind == "no_reply" else 0
            raw[4:8] = len(body).to_bytes(4, "little")
            client.socket.settimeout(30)
            client.send_bytes(bytes(raw) + body)
            if kind == "method_call":
                assert client.answer(head.serial, 30).error.short == "InvalidArgs"
            else:
                client.bus_call("GetId")
    assert_serves(bob)
    assert peak_kilobytes(broker) - before < 8 * 1024


_EMPTY: dict[str, Any] = {"s": "", "a(ya{sv})": [], "as": [], "av": [], "ay": b""}


@both_flavours
def test_b17_nesting_as_deep_as_the_bus_allows_and_deeper(
    broker: Broker, unlimited: None, open_bus: None, alice: User
) -> None:
    shapes: dict[str, Callable[[Variant], Variant]] = {
        "v": lambda inner: Variant("v", inner),
        "av": lambda inner: Variant("av", [inner]),
        "(v)": lambda inner: Variant("(v)", [inner]),
        "a{sv}": lambda inner: Variant("a{sv}", {"k": inner}),
        "a{s(v)}": lambda inner: Variant("a{s(v)}", {"k": [inner]}),
        "aav": lambda inner: Variant("aav", [[inner]]),
    }
    arrived = 0
    for shape in shapes.values():
        for depth in (8, 15, 16, 20, 21, 30, 31, 32, 33, 60, 61, 62, 63, 64, 65, 66):
            value = Variant("y", 1)
            for _ in range(depth):
                value = shape(value)
            with Client(alice) as client:
                try:
                    error = client.error("Plan", [tap()], {"vm": value})
                except ConnectionError:
                    continue  # the bus hung up
                assert error.short == "InvalidArgs"
                arrived += 1
    assert arrived > 30
    assert_serves(alice)


@both_flavours
def test_b17_whatever_the_bus_lets_through_is_answered(
    broker: Broker, unlimited: None, open_bus: None, alice: User
) -> None:
    """Random types with random values, the same ones in every run."""
    dice = random.Random(20261122)
    with Client(alice) as client:
        for _ in range(400):
            signature = "".join(_type(dice, 0) for _ in range(dice.randint(1, 4)))
            body = [_value(dice, one) for one in _split(signature)]
            member = dice.choice(["Plan", "Acquire", "Diagnose", "Nothing"])
            error = client.error(member, *body, signature=signature)
            assert error.short in ("InvalidArgs", "UnknownMethod"), signature
    assert_serves(alice)


_BASIC = "ybnqiuxtdsog"


def _type(dice: random.Random, depth: int) -> str:
    kind = dice.choice("bbbavd(" if depth < 4 else "b")
    if kind == "a":
        return "a" + _type(dice, depth + 1)
    if kind == "d":
        return f"a{{{dice.choice(_BASIC)}{_type(dice, depth + 1)}}}"
    if kind == "(":
        return f"({''.join(_type(dice, depth + 1) for _ in range(dice.randint(1, 3)))})"
    return "v" if kind == "v" else dice.choice(_BASIC)


def _split(signature: str) -> list[str]:
    parts, start, depth = [], 0, 0
    for position, letter in enumerate(signature):
        depth += (letter in "({") - (letter in ")}")
        if depth == 0 and letter != "a":
            parts.append(signature[start : position + 1])
            start = position + 1
    return parts


def _value(dice: random.Random, type_: str) -> Any:
    first = type_[0]
    if first == "a":
        many = range(dice.randint(0, 3))
        if type_[1] == "{":
            inner = type_[2:-1]
            return {_value(dice, inner[0]): _value(dice, inner[1:]) for _ in many}
        values = [_value(dice, type_[1:]) for _ in many]
        return bytes(values) if type_ == "ay" else values
    if first == "(":
        return [_value(dice, one) for one in _split(type_[1:-1])]
    if first == "v":
        inner = _type(dice, 3)
        return Variant(inner, _value(dice, inner))
    if first in "so":
        return dice.choice(["/", "/a/b"]) if first == "o" else dice.choice(["", "x", "\u202e", "é"])
    if first == "g":
        return dice.choice(["", "s", "a{sv}"])
    if first == "b":
        return dice.random() < 0.5
    return float(dice.randint(-9, 9)) if first == "d" else dice.randint(0, 127)

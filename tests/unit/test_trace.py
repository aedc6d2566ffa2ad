# SPDX-License-Identifier: LGPL-2.1-or-later
"""A packet that is followed: what the kernel tells, what of it is told on, and the words."""

from __future__ import annotations

import struct

import pytest

from sessionvirt.broker_data import TraceStep
from sessionvirt.cli.tracing import ended, worded
from sessionvirt_broker.errors import InvalidRequest
from sessionvirt_broker.following import target
from sessionvirt_broker.tracewatch import Step, Steps, read_step
from sessionvirt_broker.tracing import commands
from sessionvirt_broker.wire import Fields

pytestmark = pytest.mark.unit


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def body(*attributes: bytes, family: int = 2) -> bytes:
    return struct.pack("=BBH", family, 0, 0) + b"".join(attributes)


PACKET = attribute(6, struct.pack(">I", 77))
PLACE = attribute(1, b"filter\0") + attribute(2, b"FORWARD\0")


def verdict(code: int, target: bytes = b"") -> bytes:
    inner = attribute(1, struct.pack(">i", code)) + (attribute(2, target) if target else b"")
    return attribute(5 | 0x8000, inner)


def kind(number: int) -> bytes:
    return attribute(4, struct.pack(">I", number))


def test_what_the_kernel_tells_is_read() -> None:
    handle = attribute(3, struct.pack(">Q", 9))
    jump = read_step(body(PLACE, PACKET, handle, kind(3), verdict(-3, b"DOCKER\0")))
    assert jump == Step(77, "ip", "filter", "FORWARD", 9, "rule", "jump", "DOCKER")
    drop = read_step(body(PLACE, PACKET, handle, kind(3), verdict(0)))
    assert drop == Step(77, "ip", "filter", "FORWARD", 9, "rule", "drop", "")
    policy = read_step(body(PLACE, PACKET, kind(1), attribute(16, struct.pack(">I", 0))))
    assert policy == Step(77, "ip", "filter", "FORWARD", 0, "policy", "drop", "")
    header = bytes.fromhex("45000028000000004006") + bytes(2) + bytes([10, 0, 0, 7, 1, 1, 1, 1])
    whole = read_step(body(PLACE, PACKET, kind(3), attribute(8, header)))
    assert whole is not None
    assert whole.addresses == OUT
    short = read_step(body(PLACE, PACKET, kind(3), attribute(8, header[:-1])))
    assert short is not None
    assert short.addresses == ()
    onward = read_step(body(PLACE, PACKET, kind(3)))
    assert onward is not None
    assert onward.verdict == "continue"


@pytest.mark.parametrize(
    "data",
    [b"", b"\2", body(), body(PLACE, kind(3)), body(PACKET, kind(3)), body(PLACE, PACKET, kind(9)),
     body(PLACE, PACKET)[:-3], body(struct.pack("=HH", 2, 1))],
)  # fmt: skip
def test_what_is_not_whole_is_left_out(data: bytes) -> None:
    assert read_step(data) is None


OUT, IN = ("10.0.0.7", "1.1.1.1"), ("1.1.1.1", "10.0.0.7")


def step(packet: int, verdict: str = "accept", handle: int = 1) -> Step:
    return Step(packet, "ip", "filter", "FORWARD", handle, "rule", verdict, "")


def seen(packet: int, chain: str = "prerouting", addresses: tuple[str, ...] = OUT) -> Step:
    table = "sessionvirt_trace"
    return Step(packet, "inet", table, chain, 1, "rule", "continue", "", addresses)


def numbers(*told: Step) -> list[tuple[int, str]]:
    steps = Steps(*OUT)
    for one in told:
        steps.add(one)
    return [(traced.number, traced.direction) for traced, _ in steps.steps]


def test_anothers_trace_is_not_told_on() -> None:
    assert numbers(step(1), seen(2), step(1), step(2), step(2)) == [(0, "out")] * 2
    others = ("10.0.0.8", "1.1.1.1")
    assert numbers(seen(1, addresses=others), step(1), seen(2, addresses=()), step(2)) == []
    assert numbers(seen(1), seen(2, "forward", others), step(2)) == []


def test_a_packet_that_has_another_id_at_another_hook_is_the_same() -> None:
    told = [seen(1), step(1), seen(2, "forward"), step(2), seen(3), step(3)]
    assert numbers(*told) == [(0, "out"), (0, "out"), (1, "out")]
    assert numbers(seen(2, "postrouting"), step(2)) == []


def test_an_answer_begins_where_nat_has_given_it_back() -> None:
    told = [seen(1), seen(2, "forward", IN), step(2), seen(3, "postrouting", IN), step(3), step(1)]
    assert numbers(*told) == [(1, "in"), (1, "in"), (0, "out")]
    assert numbers(seen(1, "prerouting", IN), step(1)) == []


def test_what_was_dropped_leaves_its_id_to_the_next() -> None:
    told = [seen(1), step(1, "drop"), step(1), seen(1), step(1), step(1, handle=0)]
    assert numbers(*told) == [(0, "out"), (1, "out")]


def test_steps_and_packets_are_limited() -> None:
    steps = Steps(*OUT)
    for number in range(100):
        steps.add(seen(number))
        steps.add(step(number))
    assert len(steps.steps) == 32
    for _ in range(1000):
        steps.add(step(0))
    assert len(steps.steps) == 512
    assert steps.full


def test_the_rule_is_about_two_addresses_only() -> None:
    text = str(commands("10.0.0.7", "1.1.1.1", 443))
    assert text.count("'10.0.0.7'") == text.count("'1.1.1.1'") == 2
    assert "'protocol': 'th', 'field': 'dport'" in text
    assert text.count("'limit': {'rate': 32, 'per': 'second', 'burst': 32}}, {'mangle'") == 2
    assert "'family': 'inet', 'name': 'sessionvirt_trace'" in text
    assert "l4proto" not in str(commands("fd00::7", "fd00::8", 0))
    with pytest.raises(ValueError, match="does not appear"):
        commands("10.0.0.7; flush ruleset", "1.1.1.1", 0)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"to": ("s", "example.org")},
        {"to": ("s", "1.1.1.1/8")},
        {"to": ("s", "fe80::1%eth0")},
        {"to": ("s", "1" * 50)},
        {"to": ("s", "１.1.1.1")},  # noqa: RUF001
        {"to": ("u", 16843009)},
        {"to": ("s", "1.1.1.1"), "port": ("u", 65536)},
        {"to": ("s", "1.1.1.1"), "port": ("u", 0)},
        {"to": ("s", "1.1.1.1"), "seconds": ("u", 61)},
        {"to": ("s", "1.1.1.1"), "seconds": ("s", "1")},
    ],
)
def test_whom_it_is_for_is_an_address(values: dict[str, tuple[str, object]]) -> None:
    with pytest.raises(InvalidRequest):
        target(Fields("options", values))


def test_the_words_name_what_decided() -> None:
    def told(kind: str, verdict: str, handle: int = 0, to: str = "", hook: str = "") -> TraceStep:
        return TraceStep(0, "out", "ip", "filter", "FORWARD", handle, kind, verdict, to, hook)

    steps = [
        told("rule", "jump", 4, "DOCKER-USER", "forward"),
        told("rule", "continue", 5),
        told("return", "continue"),
        told("policy", "drop", hook="forward"),
    ]
    assert ended(steps) == "dropped"
    assert ended(steps[:-1]) == "passed"
    assert worded(steps) == [
        "ip filter FORWARD (hook forward): rule 4 says jump DOCKER-USER",
        "ip filter FORWARD (hook forward): its policy says drop",
    ]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What others do to our tables, from the kernel's messages to what is put back; no kernel."""

from __future__ import annotations

import struct

import pytest

from sessionvirt_broker.egress import EGRESS_RULES
from sessionvirt_broker.errors import HostFailure
from sessionvirt_broker.ruleset import RULESET
from sessionvirt_broker.rulewatch import RuleChanges, RuleWatch, Touch, touches
from sessionvirt_broker.upkeep import MINUTE, TIMES, Upkeep
from sessionvirt_broker.wholetable import Outline, additions, has_fixed_part, is_whole, outline

pytestmark = pytest.mark.unit

NEWGEN, NEWRULE, DELTABLE, NEWSETELEM = 15, 6, 2, 12
BRIDGE, INET, IP = 7, 1, 2
OURS = Touch(4242, "bridge", "sessionvirt")


def message(
    kind: int, family: int, *attributes: tuple[int, bytes], port: int = 4242, subsystem: int = 10
) -> bytes:
    body = struct.pack("=BBH", family, 0, 0)
    for number, value in attributes:
        packed = struct.pack("=HH", 4 + len(value), number) + value
        body += packed + bytes(-len(packed) % 4)
    return struct.pack("=IHHII", 16 + len(body), subsystem << 8 | kind, 0, 7, port) + body


def named(name: str) -> tuple[int, bytes]:
    return 1, name.encode() + b"\0"


def test_a_change_of_our_table_is_heard_among_others() -> None:
    others = message(NEWSETELEM, IP, named("docker"), (2, b"set\0"))
    data = others * 50 + message(DELTABLE, BRIDGE, named("sessionvirt")) + others
    assert touches(data) == {OURS}
    both = data + message(NEWRULE, INET, named("sessionvirt_filter"), port=5)
    assert touches(both) == {OURS, Touch(5, "inet", "sessionvirt_filter")}


@pytest.mark.parametrize(
    "data",
    [
        message(NEWRULE, IP, named("docker"), (7, b"sessionvirt\0")),
        message(NEWGEN, 0, named("sessionvirt")),
        message(NEWRULE, IP, (2, b"sessionvirt\0")),
        message(NEWRULE, 200, named("sessionvirt")),
        message(NEWRULE, IP, named("sessionvirt"), subsystem=1),
        message(DELTABLE, BRIDGE, named("sessionvirt"))[:19],
        struct.pack("=IHHII", 3, 0, 0, 0, 0) + b"sessionvirt",
        b"",
    ],
    ids=["in-a-comment", "generation", "no-table", "family", "subsystem", "cut", "length", "none"],
)
def test_what_is_no_change_of_ours_is_not_heard(data: bytes) -> None:
    assert touches(data) == set()


@pytest.mark.parametrize(
    ("ports", "lost", "others"),
    [([], False, False), ([7, 7], False, False), ([7, 8], False, True), ([], True, True)],
)
def test_our_own_changes_are_no_others(
    ports: list[int],
    lost: bool,  # noqa: FBT001
    others: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everybody can cause those, and others' rulesets are read again for what others change."""
    packets = [message(NEWRULE, IP, named("docker"), port=port) for port in ports]
    watch = object.__new__(RuleWatch)
    monkeypatch.setattr(RuleWatch, "heard", lambda _: (packets, lost))
    assert watch.changes(7).others is others


class Tables:
    """Tables that are kept; *refuses* is what nft says of them."""

    def __init__(self, *tables: tuple[str, str]) -> None:
        self.tables = frozenset(tables)
        self.whole, self.refuses, self.restored = True, False, 0

    def intact(self) -> bool:
        return self.whole

    def restore(self) -> None:
        if self.refuses:
            raise HostFailure("no")
        self.restored += 1
        self.whole = True


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.tables = Tables(("bridge", "sessionvirt"))
        self.others = Tables(("netdev", "sessionvirt_limits"))
        self.shut: list[bool] = []
        self.upkeep = Upkeep(
            lambda: (self.tables, self.others), lambda: 99, self.told, lambda: self.now
        )

    def told(self) -> None:
        self.shut.append(bool(self.upkeep.degraded))

    def degraded(self) -> str:
        return self.upkeep.degraded

    def due(self) -> float | None:
        return self.upkeep.due

    def touch(self, *touched: Touch, everything: bool = False) -> list[str]:
        changes = RuleChanges(frozenset(touched), everything=everything)
        return [one.event for one in self.upkeep.look(changes)]


def test_what_somebody_else_changed_goes_back() -> None:
    world = World()
    assert world.touch(OURS) == ["rules-restored"]
    assert world.touch(OURS._replace(port=99)) == []
    assert world.touch(OURS._replace(table="sessionvirt_other")) == []
    assert world.tables.restored == 1


def test_what_was_flushed_with_it_goes_back_at_once() -> None:
    world = World()
    world.others.whole = False
    assert world.touch(OURS._replace(table="sessionvirt_other")) == []
    assert world.touch(OURS) == ["rules-restored", "rules-restored"]
    assert world.touch(OURS) == ["rules-restored"]
    assert world.others.restored == 1


def test_where_messages_were_lost_it_is_looked_whether_all_is_there() -> None:
    world = World()
    assert world.touch(everything=True) == []
    world.tables.whole = False
    assert world.touch(everything=True) == ["rules-restored"]


def test_nobody_is_fought_for_ever() -> None:
    world = World()
    for _ in range(TIMES):
        assert world.touch(OURS) == ["rules-restored"]
        world.now += 1
    assert world.degraded() == ""
    world.tables.whole = False
    assert world.shut == []
    assert world.touch(OURS) == ["rules-lost"]
    assert "more than 5 times" in world.degraded()
    assert world.shut == [True]
    assert (world.touch(OURS), world.tables.restored) == ([], TIMES)
    assert world.shut == [True, True]
    assert world.due() == world.now + MINUTE
    # By the clock it is tried again; whole a minute later, it is over.
    world.now += MINUTE
    assert [one.event for one in world.upkeep.again()] == ["rules-restored"]
    assert world.degraded()
    world.now += MINUTE
    assert [one.event for one in world.upkeep.again()] == ["rules-whole"]
    assert world.degraded() == ""
    assert world.shut[-1] is False
    assert world.due() is None
    assert world.touch(OURS) == ["rules-restored"]


def test_who_takes_them_away_now_and_then_is_not_given_up() -> None:
    world = World()
    for _ in range(4 * TIMES):
        assert world.touch(OURS) == ["rules-restored"]
        world.now += MINUTE / TIMES


def test_rules_that_cannot_be_put_back_are_said_to_be_lost() -> None:
    world = World()
    world.tables.refuses = True
    assert world.touch(OURS) == ["rules-lost"]
    assert world.upkeep.degraded == "no"
    world.tables.whole, world.tables.refuses = False, False
    world.now += MINUTE
    assert [one.event for one in world.upkeep.again()] == ["rules-restored"]


FIXED = """
table inet t {
  set s {
    type ipv4_addr
  }
  map m {
    type ifname : mark
  }
  counter c {
  }
  chain empty {
  }
  chain base {
    type filter hook input priority 0; policy accept;
    ip saddr @s vmap {
      a : drop,
      b : accept
    }
    tcp dport { 1, 2 } drop
  }
}
"""


def test_an_outline_is_what_the_text_makes() -> None:
    assert outline(FIXED) == Outline(
        {("inet", "empty"): 0, ("inet", "base"): 2}, frozenset({("inet", "s"), ("inet", "m")})
    )
    for text in (RULESET, EGRESS_RULES):
        assert text.count("  chain ") == len(outline(text).rules)
        assert text.count("  set ") + text.count("  map ") == len(outline(text).sets)


def test_what_is_missing_is_counted() -> None:
    fixed = outline(FIXED)
    rule = {"rule": {"family": "inet", "chain": "base"}}
    one, two = ({"set": {"family": "inet", "name": "s", "elem": ["a"]}},
                {"map": {"family": "inet", "name": "m"}})  # fmt: skip
    elements = [("inet", "s", "a"), ("inet", "s", "a")]
    assert is_whole([rule, rule, one, two], fixed, elements)
    assert not is_whole([rule, one, two], fixed, elements)
    assert not is_whole([rule, rule, rule, one, two], fixed, elements)
    assert not is_whole([rule, rule, one, two], fixed, [*elements, ("inet", "m", ["x", 1])])
    assert not has_fixed_part([rule, rule, one], fixed)
    assert not is_whole([], fixed, [])


def test_elements_are_spelled_as_nft_has_them() -> None:
    assert additions(
        "bridge",
        "t",
        [
            ("a", {"concat": ["svt0123456789ab", "52:54:00:00:00:01", "::1"]}),
            ("a", {"concat": ["svt0123456789ac", "0xfe80", 7]}),
            ("b", {"prefix": {"addr": "10.0.0.0", "len": 8}}),
            ("c", ["svt0", 1000]),
            ("d", 5),
        ],
    ) == (
        "add element bridge t a { svt0123456789ab . 52:54:00:00:00:01 . ::1, "
        "svt0123456789ac . 0xfe80 . 7 }\n"
        "add element bridge t b { 10.0.0.0/8 }\n"
        "add element bridge t c { svt0 : 1000 }\n"
        "add element bridge t d { 5 }\n"
    )


@pytest.mark.parametrize(
    "element",
    [
        "a b", "a;", 'a"', "a}", "a\n", "@set", "$x", "", "-1", "a,b", "a*", "é", None, 1.5,
        "x" * 65,
        {"concat": ["a", "b }"]}, ["a", "b;"], {"prefix": {"addr": "::", "len": 129}},
        {"prefix": {"addr": "::", "len": "0; flush ruleset"}},
    ],
)  # fmt: skip
def test_nothing_else_is_spelled(element: object) -> None:
    with pytest.raises(ValueError, match="a form that none has"):
        additions("bridge", "t", [("a", element)])

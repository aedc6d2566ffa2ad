# SPDX-License-Identifier: LGPL-2.1-or-later
"""Others' rules and a guest's packets: which rule stops which, as far as can be known."""

from __future__ import annotations

from typing import Any, Self

import pytest

from sessionvirt_broker.foreign import Walk, read
from sessionvirt_broker.passing import Guest, packets

pytestmark = pytest.mark.unit

GUEST = Guest("svt0", "svn_default", {4: "10.213.80.7"}, {4: "10.213.80.1"}, outward=frozenset({4}))
DROP, ACCEPT, REJECT = {"drop": None}, {"accept": None}, {"reject": {"type": "tcp reset"}}
COUNTER = {"counter": {"packets": 0, "bytes": 0}}
CONNTRACK = {"xt": {"type": "match", "name": "conntrack"}}
COMMENT = {"xt": {"type": "match", "name": "comment"}}
ADDRTYPE = {"xt": {"type": "match", "name": "addrtype"}}
XT_REJECT = {"xt": {"type": "target", "name": "REJECT"}}
XT_LOG = {"xt": {"type": "target", "name": "LOG"}}


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"left": left, "op": op, "right": right}}


def meta(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return match({"meta": {"key": key}}, right, op)


def payload(protocol: str, field: str, right: Any, op: str = "==") -> dict[str, Any]:
    return match({"payload": {"protocol": protocol, "field": field}}, right, op)


def state(*states: str) -> dict[str, Any]:
    return match({"ct": {"key": "state"}}, list(states), "in")


def jump(target: str, word: str = "jump") -> dict[str, Any]:
    return {word: {"target": target}}


class Ruleset:
    """One foreign table, as libnftables lists it; handles are 1, 2, ... in order."""

    def __init__(self, family: str = "ip", name: str = "filter") -> None:
        self.family, self.name = family, name
        self.items: list[dict[str, Any]] = []
        self.sets: dict[str, list[Any]] = {}
        self.handles = 0

    def chain(self, name: str, *rules: list[Any], hook: str = "", policy: str = "accept") -> Self:
        of = {"family": self.family, "table": self.name}
        base = {"type": "filter", "hook": hook, "prio": 5, "policy": policy} if hook else {}
        self.items.append({"chain": {**of, "name": name, **base}})
        for rule in rules:
            self.handles += 1
            self.items.append({"rule": {**of, "chain": name, "handle": self.handles, "expr": rule}})
        return self

    def named(self, kind: str, name: str, type_: str, *elements: Any) -> Self:
        of = {"family": self.family, "table": self.name, "name": name, "type": type_}
        self.items.append({kind: of})
        self.sets[name] = list(elements)
        return self

    def listed(self, what: str, which: Any) -> list[dict[str, Any]]:
        if what == "chains":
            return [one for one in self.items if "chain" in one]
        if what == "table":
            return self.items
        assert what in ("set", "map")
        return [{what: {"name": which["name"], "elem": self.sets[which["name"]]}}]

    def counted(self) -> dict[tuple[str, str], int] | None:
        return {(self.family, self.name): self.handles}

    def stops(self, guest: Guest = GUEST, *, bridged: bool = False) -> list[tuple[Any, ...]]:
        ways = packets(guest, {4: "eth0", 6: "eth0"}, bridged=bridged)
        found = read(self.listed, self.counted).obstacles(ways, Walk())
        return [(one.traffic, one.chain, one.handle, one.certainty) for one in found]


def forward(*rules: list[Any], policy: str = "drop") -> list[tuple[Any, ...]]:
    return Ruleset().chain("FORWARD", *rules, hook="forward", policy=policy).stops()


OUT_AND_IN = [("out", "FORWARD", 0, "certain"), ("in", "FORWARD", 0, "certain")]
IN = [("in", "FORWARD", 0, "certain")]


def test_a_policy_stops_what_no_rule_accepts() -> None:
    assert forward() == OUT_AND_IN
    assert forward(policy="accept") == []


@pytest.mark.parametrize(
    ("rule", "about"),
    [
        ([meta("iifname", "svn_default"), COUNTER, ACCEPT], True),
        ([meta("iifname", "svn_*"), ACCEPT], True),
        ([meta("iifname", "svn_"), ACCEPT], False),
        ([meta("iif", "svn_default"), meta("oif", "eth0"), ACCEPT], True),
        ([meta("iifname", {"set": ["docker0", "svn_default"]}), ACCEPT], True),
        ([meta("iifname", {"set": ["docker0"]}), ACCEPT], False),
        ([meta("oifname", "docker0", "!="), meta("iifname", "svn_default"), ACCEPT], True),
        ([payload("ip", "saddr", {"prefix": {"addr": "10.0.0.0", "len": 8}}), ACCEPT], True),
        ([payload("ip", "saddr", {"prefix": {"addr": "10.1.0.0", "len": 16}}), ACCEPT], False),
        ([payload("ip", "saddr", {"range": ["10.213.80.0", "10.213.80.9"]}), ACCEPT], True),
        ([payload("ip", "saddr", "10.213.80.7"), ACCEPT], True),
        ([payload("ip6", "saddr", "::1", "!="), ACCEPT], False),
        ([payload("tcp", "dport", {"set": [{"range": [1, 500]}, 80]}), ACCEPT], True),
        ([payload("th", "dport", 443), ACCEPT], True),
        ([payload("tcp", "dport", 443, ">"), ACCEPT], False),
        ([payload("udp", "dport", 443, "!="), ACCEPT], False),
        ([payload("ip", "protocol", 6), meta("iifname", "svn_default"), ACCEPT], True),
        ([meta("l4proto", {"set": ["tcp", "udp"]}), meta("iifname", "svn_default"), ACCEPT], True),
        ([meta("nfproto", "ipv6"), ACCEPT], False),
        ([state("new"), ACCEPT], True),
        ([match({"ct": {"key": "status"}}, "dnat", "in"), ACCEPT], False),
        ([COMMENT, meta("iifname", "svn_default"), ACCEPT], True),
        ([match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), ACCEPT], False),
        ([match({"concat": [{"meta": {"key": "iifname"}}, {"meta": {"key": "oifname"}}]},
                {"set": [{"concat": ["svn_default", "eth0"]}]}), ACCEPT], True),
    ],
)  # fmt: skip
def test_what_a_rule_asks_is_known(rule: list[Any], about: bool) -> None:  # noqa: FBT001
    found = forward(rule)
    assert (OUT_AND_IN[0] not in found) is about
    assert all(one[3] == "certain" for one in found)


@pytest.mark.parametrize(
    "rule",
    [
        [meta("mark", 1), ACCEPT],
        [match({"&": [{"meta": {"key": "mark"}}, 1]}, 1), ACCEPT],
        [payload("ip", "saddr", "@known"), ACCEPT],
        [ADDRTYPE, ACCEPT],
        [{"limit": {"rate": 3}}, ACCEPT],
        [{"xt": None}, ACCEPT],
        [meta("from a later nft", 1), ACCEPT],
        [match({"what": [1, 2]}, 1), ACCEPT],
        [{"queue": {"num": 1}}],
    ],
)
def test_behind_an_accept_that_is_not_understood_it_is_likely(rule: list[Any]) -> None:
    found = forward(rule)
    assert ("out", "FORWARD", 0, "certain") not in found
    if "queue" not in rule[0]:
        assert ("out", "FORWARD", 0, "likely") in found


def test_a_drop_that_is_not_understood_is_possible_and_the_walk_goes_on() -> None:
    assert forward([ADDRTYPE, COUNTER, DROP], [ACCEPT]) == [
        ("out", "FORWARD", 1, "possible"),
        ("in", "FORWARD", 1, "possible"),
    ]
    # A guest's packets are not invalid.
    assert forward([CONNTRACK, DROP], [ACCEPT]) == []


def test_a_rule_behind_is_named_by_its_handle() -> None:
    reject = [meta("iifname", "svn_default"), XT_LOG], [meta("iifname", "svn_default"), REJECT]
    assert forward(*reject, policy="accept") == [("out", "FORWARD", 2, "certain")]
    assert forward([XT_REJECT], policy="accept") == [
        ("out", "FORWARD", 1, "certain"),
        ("in", "FORWARD", 1, "certain"),
    ]


def test_docker_as_iptables_writes_it() -> None:
    """DOCKER-USER is empty, and everything else is about docker0."""
    ruleset = Ruleset()
    ruleset.chain("DOCKER-USER", [COUNTER, {"return": None}])
    ruleset.chain("DOCKER-CT", [meta("oifname", "docker0"), CONNTRACK, COUNTER, ACCEPT])
    ruleset.chain("DOCKER-BRIDGE", [meta("oifname", "docker0"), COUNTER, jump("DOCKER")])
    ruleset.chain("DOCKER", [meta("iifname", "docker0", "!="), meta("oifname", "docker0"), DROP])
    ruleset.chain("DOCKER-FORWARD", [jump("DOCKER-CT")], [jump("DOCKER-BRIDGE")],
                  [meta("iifname", "docker0"), ACCEPT])  # fmt: skip
    chains = [[COUNTER, jump("DOCKER-USER")], [COUNTER, jump("DOCKER-FORWARD")]]
    ruleset.chain("FORWARD", *chains, hook="forward", policy="drop")
    assert ruleset.stops() == OUT_AND_IN
    # What is said to be the way out, in that chain, is one.
    let_in = [meta("oifname", "svn_default"), CONNTRACK, ACCEPT]
    mended = Ruleset()
    mended.chain("DOCKER-USER", let_in, [meta("iifname", "svn_default"), ACCEPT])
    mended.chain("FORWARD", *chains[:1], hook="forward", policy="drop")
    assert mended.stops() == []


def test_ufw_as_iptables_writes_it() -> None:
    ruleset = Ruleset()
    ruleset.chain("ufw-before-forward", [CONNTRACK, COUNTER, ACCEPT], [jump("ufw-user-forward")])
    ruleset.chain("ufw-user-forward")
    ruleset.chain("ufw-reject-forward")
    ruleset.chain("FORWARD", [jump("ufw-before-forward")], [jump("ufw-reject-forward")],
                  hook="forward", policy="drop")  # fmt: skip
    assert ruleset.stops() == [("out", "FORWARD", 0, "likely")]


def test_what_came_for_the_host_is_its_own_to_ufw() -> None:
    """By addrtype, of which there is only the name: LOCAL, MULTICAST, BROADCAST, else a drop."""
    ruleset = Ruleset()
    ruleset.chain("ufw-not-local", *[[ADDRTYPE, COUNTER, {"return": None}]] * 3, [COUNTER, DROP])
    ruleset.chain("ufw-user-input", [payload("udp", "dport", 53), ACCEPT])
    chains = [[jump("ufw-not-local")], [jump("ufw-user-input")]]
    ruleset.chain("INPUT", *chains, hook="input", policy="drop")
    assert ruleset.stops() == [("dhcp", "INPUT", 0, "likely")]


def test_firewalld_as_it_writes_it() -> None:
    ruleset = Ruleset("inet", "firewalld")
    ruleset.chain("filter_FORWARD_POLICIES", [meta("iifname", "svn_*"), jump("zone")],
                  [REJECT])  # fmt: skip
    ruleset.chain("zone", [payload("tcp", "dport", 22), ACCEPT])
    ruleset.chain(
        "filter_FORWARD",
        [match({"ct": {"key": "state"}}, {"set": ["established", "related"]}), ACCEPT],
        [match({"ct": {"key": "status"}}, "dnat", "in"), ACCEPT],
        [meta("iifname", "lo"), ACCEPT],
        [state("invalid"), DROP],
        [jump("filter_FORWARD_POLICIES")],
        hook="forward",
    )
    assert ruleset.stops() == [("out", "filter_FORWARD_POLICIES", 2, "certain")]


@pytest.mark.parametrize(("word", "expected"), [("jump", []), ("goto", OUT_AND_IN[:1])])
def test_from_a_jump_it_comes_back_and_from_a_goto_it_does_not(
    word: str, expected: list[Any]
) -> None:
    ruleset = Ruleset().chain("sub", [payload("tcp", "dport", 22), ACCEPT])
    rules = [meta("iifname", "svn_*"), jump("sub", word)], [ACCEPT]
    ruleset.chain("FORWARD", *rules, hook="forward", policy="drop")
    assert ruleset.stops() == expected


def test_a_map_of_verdicts_is_read() -> None:
    ruleset = Ruleset().named("map", "jumps", "ifname", ["docker0", DROP], ["svn_*", jump("no")])
    ruleset.chain("no", [REJECT])
    vmap = {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@jumps"}}
    ruleset.chain("FORWARD", [vmap], hook="forward")
    assert ruleset.stops() == [("out", "no", 1, "certain")]
    states = {"set": [["invalid", DROP], ["established", ACCEPT], ["new", REJECT]]}
    vmap = {"vmap": {"key": {"ct": {"key": "state"}}, "data": states}}
    assert forward([vmap]) == [("out", "FORWARD", 1, "certain")]


def test_dhcp_and_dns_are_asked_at_input_and_output() -> None:
    ruleset = Ruleset("inet", "f")
    ruleset.chain("in", [meta("iifname", "lo"), ACCEPT], [payload("udp", "dport", 53), ACCEPT],
                  hook="input", policy="drop")  # fmt: skip
    ruleset.chain("out", [payload("udp", "sport", 67), DROP], hook="output")
    assert ruleset.stops() == [("dhcp", "in", 0, "certain"), ("dhcp", "out", 3, "certain")]


def test_what_is_ours_and_what_translates_is_not_looked_at() -> None:
    assert Ruleset("inet", "sessionvirt").chain("f", hook="forward", policy="drop").stops() == []
    ours = Ruleset("inet", "sessionvirt_filter").chain("f", hook="forward", policy="drop")
    assert ours.stops() == []
    assert Ruleset("ip6").chain("f", hook="forward", policy="drop").stops() == []
    theirs = Ruleset("inet", "sessionvirtual").chain("f", hook="forward", policy="drop")
    assert len(theirs.stops()) == 2


def test_an_isolated_network_needs_no_way_out() -> None:
    isolated = Guest("svt0", "svn_x", {4: "10.0.0.7"}, {4: "10.0.0.1"}, frozenset())
    assert Ruleset().chain("F", hook="forward", policy="drop").stops(isolated) == []


@pytest.mark.parametrize("bridged", [False, True])
def test_frames_of_a_lan_bridge_are_asked_about_where_br_netfilter_is_on(
    bridged: bool,  # noqa: FBT001
) -> None:
    lan = Guest("svt0", "br0", {}, {}, frozenset())
    docker = Ruleset().chain("FORWARD", [meta("iifname", "docker0"), ACCEPT], hook="forward",
                             policy="drop")  # fmt: skip
    assert docker.stops(lan, bridged=bridged) == (OUT_AND_IN if bridged else [])


def test_a_bridges_chain_sees_ports() -> None:
    ruleset = Ruleset("bridge", "f")
    ruleset.chain("pre", [meta("iifname", "svt0"), DROP], hook="prerouting")
    assert {one[0] for one in ruleset.stops()} == {"out", "dns", "dhcp"}


def test_loops_depth_and_length_have_an_end() -> None:
    ruleset = Ruleset().chain("a", [jump("a")], [jump("a")])
    ruleset.chain("FORWARD", [jump("a")], hook="forward", policy="drop")
    assert {one[1:] for one in ruleset.stops()} <= {
        ("FORWARD", 0, "certain"),
        ("FORWARD", 0, "likely"),
    }


@pytest.mark.parametrize(
    "expr",
    [None, [], ["text"], [{"match": {}}], [{"match": {"left": 5, "right": {"set": 5}}}],
     [meta("iifname", {"set": 5})], [meta("iifname", {"elem": 5}), ACCEPT],
     [{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [[1], 5]}}}],
     [{"jump": None}], [{"vmap": {"key": 1, "data": "@nothing"}}]],
)  # fmt: skip
def test_what_is_not_understood_is_no_fault(expr: Any) -> None:
    ruleset = Ruleset().chain("FORWARD", expr, hook="forward", policy="drop")
    assert {one[1:3] for one in ruleset.stops()} == {("FORWARD", 0)}


@pytest.mark.parametrize("number", [8001, None])
@pytest.mark.parametrize(("policy", "found"), [("drop", ["out", "in"]), ("accept", [])])
def test_a_table_that_would_be_too_much_is_not_read(
    number: int | None, policy: str, found: list[str]
) -> None:
    class Huge(Ruleset):
        def counted(self) -> dict[tuple[str, str], int] | None:
            return None if number is None else {("ip", "filter"): number, ("ip", "small"): 1}

        def listed(self, what: str, which: Any) -> list[dict[str, Any]]:
            assert (what, which) == ("chains", {})
            return super().listed(what, which)

    rules = Huge().chain("FORWARD", [DROP], hook="forward", policy=policy)
    assert rules.stops() == [(traffic, "FORWARD", 0, "possible") for traffic in found]

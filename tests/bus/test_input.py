# SPDX-License-Identifier: LGPL-2.1-or-later
"""Group C of the attacks: what callers write into names, options, prompts and the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from dbus_fast import Variant

from lab.fakepolkit import ASK, NO, FakePolkit
from lab.lan import lan_bridge
from lab.rawbus import LEASE, PATH, Client, options, tap

if TYPE_CHECKING:
    from lab.broker import Broker
    from lab.brokerlog import Log
    from lab.users import User

pytestmark = pytest.mark.bus

ONE_OF_EACH = {
    "s": "x",
    "y": 1,
    "b": True,
    "n": 1,
    "q": 1,
    "i": 1,
    "u": 1,
    "x": 1,
    "t": 1,
    "d": 1.0,
    "o": "/",
    "g": "s",
    "as": ["x"],
    "ay": b"x",
    "v": Variant("s", "x"),
    "(s)": ["x"],
    "a{sv}": {},
}

#: Interface names that the kernel, a file name, a rule or a log would make something else of.
BAD_NAMES = [
    "",
    ".",
    "..",
    "../lan0",
    "lan0/",
    "lan 0",
    "lan0\n",
    "lan0\t",
    "%d",
    "lan%d",
    "lan:0",
    "-lan0",
    ".lan0",
    "län0",
    "lan\u0660",
    "lan\uff10",
    "lan0\u202e",
    "lan0" + "x" * 12,
    "lan0000000000000",
    "lan*",
    "lan+",
    "@set",
    "$var",
    '"',
    "';",
    "lan0;",
    "a\\b",
    'include "/etc/shadow"',
    '"; flush ruleset; "',
    "x" * 10_000,
]

BAD_NETWORKS = [
    "",
    "Default",
    "DEFAULT",
    "default\n",
    "default ",
    " default",
    "0default",
    "_default",
    "defau1t-x",
    "default00000",
    "dêfault",
    "\u0660",
    "de/fault",
    "default.",
    "..",
    "@default",
    "$(id)",
    "x" * 10_000,
]

BAD_MACS = [
    "",
    "52:54:00:00:00",
    "52:54:00:00:00:00:00",
    "52-54-00-00-00-01",
    "525400000001",
    "52:54:00:00:00:0g",
    "52:54:00:00:00:01\n",
    " 52:54:00:00:00:01",
    "01:00:5e:00:00:01",
    "ff:ff:ff:ff:ff:ff",
    "00:00:00:00:00:00",
    "\u0665\u0662:54:00:00:00:01",
    "52:54:00:00:00:0\u212a",
    "5:254:00:00:00:01",
    "52:54:00:00:00:01 accept",
]

BAD_VMS = [
    "",
    "x" * 65,
    "é" * 33,
    "x" * 10_000,
    "a\nb",
    "a\rb",
    "a\tb",
    "a\x1b[2Jb",
    "a\x7fb",
    "a\x85b",
    "a\u2028b",
    "a\u2029b",
    "a\u202eb",
    "a\u2066b",
    "a\u200bb",
    "a\u200fb",
    "a\ufeffb",
    "a\U000e0041b",
    "a\ue000b",
]


@pytest.fixture
def client(broker: Broker, alice: User) -> Any:
    """Alice, without a rate that would answer for the validators."""
    broker.configure(
        "[limits]\ncalls_per_second = 65536\n[bridge.lan0]\n[bridge.lan000000000000]\n"
    )
    with Client(alice) as connection:
        yield connection


def refusals(client: Client, requests: list[Any], vm: str = "x") -> list[str]:
    """What Plan and Acquire say; they have to say the same."""
    errors = [client.error(member, requests, options(vm=vm)) for member in ("Plan", "Acquire")]
    assert errors[0].args == errors[1].args
    assert errors[0].text.isascii()
    assert "\n" not in errors[0].text
    assert len(errors[0].text) < 200
    return [error.short for error in errors]


def test_c33_names_of_interfaces_are_taken_whole_and_plain_or_not_at_all(client: Client) -> None:
    """A name that is cut to a permitted one was qemu-bridge-helper's hole (CVE-2019-13164)."""
    with lan_bridge("lan0"), lan_bridge("lan000000000000"):
        for name in BAD_NAMES:
            assert set(refusals(client, [tap(None, bridge=name)])) == {"InvalidArgs"}, name
        for name in ("LAN0", "lan00", "lan0_", "svn_default", "lo"):
            assert set(refusals(client, [tap(None, bridge=name)])) == {"NotFound"}, name


def test_c34_names_of_networks_never_reach_the_firewall(client: Client) -> None:
    for name in BAD_NETWORKS:
        assert set(refusals(client, [tap(name)])) == {"InvalidArgs"}, name
    for name in ("defau_t", "default0", "svn_default", "localhost"):
        assert set(refusals(client, [tap(name)])) == {"NotFound"}, name


def test_c34_macs_are_unicast_and_ascii(client: Client) -> None:
    for mac in BAD_MACS:
        assert set(refusals(client, [tap(mac=mac)])) == {"InvalidArgs"}, mac


def test_c34_names_of_taps_are_as_strict_as_names_of_interfaces(client: Client) -> None:
    for name in BAD_NAMES:
        assert set(refusals(client, [tap(name=name)])) == {"InvalidArgs"}, name


def test_c35_names_of_machines_hold_no_control_character(client: Client) -> None:
    for vm in BAD_VMS:
        assert set(refusals(client, [tap()], vm)) == {"InvalidArgs"}, ascii(vm)


@pytest.mark.parametrize(
    ("vm", "shown"),
    [
        ("win11", "win11"),
        ("My VM #2 (test)", "My VM #2 ?test?"),
        ("$(uid)", "??uid?"),
        ("$(polkit.message)$(vm)", "??polkit.message???vm?"),
        ("<b>x</b>&amp;", "?b?x??b??amp?"),
        ('" and to the network "lan', "? and to the network ?lan"),
        ("a\\nb`id`'%s%n{0}", "a?nb?id???s?n?0?"),
        ("Größe", "Größe"),
    ],
)
def test_c35_a_prompt_shows_letters_digits_and_a_few_marks(
    client: Client, authority: FakePolkit, log: Log, vm: str, shown: str
) -> None:
    serial = client.ask("Acquire", [tap()], options(vm=vm), flags=4)
    check, prompt = authority.decide(ASK, NO)
    for one in (check, prompt):
        assert one.details["vm"] == shown
        assert one.sentence == (
            f'Authentication is required to connect the virtual machine "{shown}"'
            ' to the network "default"'
        )
    assert client.answer(serial).error.text.endswith(prompt.sentence)
    # Plan substitutes as polkitd does.
    serial = client.ask("Plan", [tap()], options(vm=vm))
    authority.decide(ASK)
    assert client.answer(serial).body[0]["prompt"].value == prompt.sentence
    (line,) = log.lines("refusal")
    assert line.isascii()
    assert log.text().count("\n") == 1


def test_c35_a_journal_line_is_one_line_of_ascii(
    client: Client, authority: FakePolkit, log: Log
) -> None:
    vm = 'x" event="grant" uid="0 é\u05d0\U0001f600'
    serial = client.ask("Acquire", [tap()], options(vm=vm))
    authority.decide([True, False, {}])
    lease = client.lease(serial)
    assert client.leases()[0]["vm"] == vm
    client.release(lease.path)
    lease.close()
    lines = log.text().splitlines()
    assert [line.split()[0] for line in lines] == ["<5>event=grant", "<5>event=release"]
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert ' uid="0' not in lines[0].replace('\\"', "")


@pytest.mark.parametrize("field", ["network", "bridge", "mac", "queues", "vm", "interactive"])
def test_every_key_takes_its_own_type_and_no_other(client: Client, field: str) -> None:
    right = {"queues": "u", "interactive": "b"}.get(field, "s")
    for type_, value in ONE_OF_EACH.items():
        if type_ == right:
            continue
        request, given = tap(), options(vm="x")
        if field in ("vm", "interactive"):
            given[field] = Variant(type_, value)
        else:
            request[1][field] = Variant(type_, value)
        error = client.error("Acquire", [request], given)
        assert error.short == "InvalidArgs"
        assert field in error.text
        assert f"type {right}" in error.text


def test_unknown_keys_are_refused_everywhere(client: Client) -> None:
    lease = f"{PATH}/lease/{'0' * 32}"
    for key in ("Vm", "vm ", "force", "\n", "x" * 1000, "polkit.message", "é", ""):
        extra = {key: Variant("y", 1)}
        errors = [
            client.error("Plan", [tap()], {**options(vm="x"), **extra}),
            client.error("Acquire", [tap()], {**options(vm="x"), **extra}),
            client.error("Acquire", [["tap", {**tap()[1], **extra}]], options(vm="x")),
            client.error("ListNetworks", extra),
            client.error("ListLeases", extra),
            client.error("Diagnose", extra),
            client.error("Release", extra, path=lease, interface=LEASE),
            client.error("Drop", ["tap0"], extra, path=lease, interface=LEASE),
            client.error("Add", [tap()], extra, path=lease, interface=LEASE),
        ]
        for error in errors:
            assert error.short == "InvalidArgs"
            assert error.text.isascii()
            assert len(error.text) < 100
    # Plan prompts nobody, so it does not know the key.
    assert client.error("Plan", [tap()], options(vm="x", interactive=True)).short == "InvalidArgs"


@pytest.mark.parametrize(
    ("requests", "error"),
    [
        ([], "InvalidArgs"),
        ([tap()] * 17, "InvalidArgs"),
        ([["", {}]], "NotSupported"),
        ([["TAP", {}]], "NotSupported"),
        ([["usb", {}]], "NotSupported"),
        ([["pci", {}]], "InvalidArgs"),
        ([["tap\n", {}]], "NotSupported"),
        ([["__class__", {}]], "NotSupported"),
        ([["tap", {}]], "InvalidArgs"),
        ([tap("default", bridge="lan0")], "InvalidArgs"),
        ([tap(queues=0)], "InvalidArgs"),
        ([tap(queues=9)], "InvalidArgs"),
        ([tap(queues=0xFFFFFFFF)], "InvalidArgs"),
        ([tap(queues=8)] * 16, "LimitsExceeded"),
        ([tap(), ["usb", {}]], "NotSupported"),
        ([tap(), ["pci", {}]], "InvalidArgs"),
    ],
)
def test_requests_that_cannot_be_are_refused_before_anybody_is_asked(
    client: Client, requests: list[Any], error: str
) -> None:
    """polkit is not there at all: whoever asked it would say so."""
    limit = "[limits]\ncalls_per_second = 65536\nqueues_per_user = 100\n"
    if error == "LimitsExceeded":
        from lab.broker import CONFIGURATION

        CONFIGURATION.write_text(limit)
    assert set(refusals(client, requests)) == {error}

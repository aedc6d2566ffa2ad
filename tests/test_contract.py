# SPDX-License-Identifier: LGPL-2.1-or-later
"""One contract: its file, the broker's table and errors, and what the session side sends and reads.

The two halves share no code, so this is what holds them together. What the broker really answers is
compared with the same file in tests/bus.
"""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from lab.contract import Member, documented, errors, members, parameters
from lab.stage import ROOT
from sessionvirt import broker_errors as wording
from sessionvirt.broker_requests import (
    BandwidthRequest,
    DirectRequest,
    FilterRequest,
    PciRequest,
    PublishRequest,
    Rate,
    Request,
    TapRequest,
)
from sessionvirt_broker import errors as broker_errors
from sessionvirt_broker import service

pytestmark = pytest.mark.unit

#: What every object has; the bus' own standard says what they are.
STANDARD = {
    ("org.freedesktop.DBus.Peer", "Ping"),
    ("org.freedesktop.DBus.Introspectable", "Introspect"),
}

#: How broker_values.Fields reads a type.
READERS = {
    "text": "s",
    "path": "o",
    "flag": "b",
    "number": "u",
    "texts": "as",
    "rows": "aa{sv}",
    "pairs": "a(ss)",
    "counters": "a{st}",
}


def test_the_file_has_what_it_should() -> None:
    """Or the rest of these would compare nothing with nothing."""
    assert len(members()) == 13
    assert members()[service.NAME, "Acquire"] == Member("a(sa{sv})a{sv}", "ohaa{sv}")
    assert members()[service.LEASE_INTERFACE, "LockMemory"] == Member("hta{sv}", "")
    assert {name: len(keys) for name, keys in documented().items()} == {
        "grant": 19,
        "pci": 12,
        "bandwidth": 10,
        "publish": 10,
        "plan": 5,
        "requests": 4,
        "networks": 9,
        "devices": 14,
        "leases": 10,
        "facts": 14,
        "obstacles": 13,
        "steps": 10,
    }
    assert len(errors()) == 15


def test_a16_the_brokers_table_is_the_contract_and_nothing_else() -> None:
    table = {
        key: Member(member.in_signature, member.out_signature)
        for key, member in service.MEMBERS.items()
        if key not in STANDARD
    }
    assert table == members()
    assert set(service.MEMBERS) - set(table) == STANDARD


def test_what_makes_a_lease_needs_somebody_to_receive_it() -> None:
    makers = {name for (_, name), member in service.MEMBERS.items() if member.needs_reply}
    assert makers == {"Acquire", "Add"}


@pytest.mark.parametrize("interface", [service.NAME, service.LEASE_INTERFACE])
def test_introspection_says_what_the_contract_does(interface: str) -> None:
    root = ET.fromstring(service.introspection(interface))
    (found,) = root.iter("interface")
    said = {}
    for method in found.iter("method"):
        signatures = {"in": "", "out": ""}
        for arg in method.iter("arg"):
            signatures[str(arg.get("direction"))] += str(arg.get("type"))
        said[interface, str(method.get("name"))] = Member(signatures["in"], signatures["out"])
    assert said == {key: member for key, member in members().items() if key[0] == interface}


def test_every_error_has_one_name_and_every_name_one_class() -> None:
    classes = [
        cls
        for cls in vars(broker_errors).values()
        if isinstance(cls, type) and issubclass(cls, broker_errors.BrokerError)
    ]
    names = [cls.dbus_name for cls in classes if cls is not broker_errors.HostFailure]
    assert sorted(names) == sorted(errors())
    assert broker_errors.HostFailure.dbus_name == broker_errors.BrokerError.dbus_name


def test_the_session_side_has_words_for_every_error() -> None:
    assert errors() - set(wording._WORDINGS) == set()


def _calls() -> dict[tuple[str, str], Member]:
    """What broker_client.py calls: the constant arguments of _ask() and _call()."""
    tree = ast.parse((ROOT / "src/sessionvirt/broker_client.py").read_text())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            arguments: list[Any] = [getattr(one, "value", None) for one in node.args]
            keywords = {word.arg: word.value for word in node.keywords}
            if node.func.attr in ("_ask", "_call") and isinstance(arguments[0], str):
                answers = keywords.get("answers", node.args[-1])
                own = "interface" not in keywords
                interface = service.NAME if own else service.LEASE_INTERFACE
                assert isinstance(answers, ast.Constant)
                found[interface, arguments[0]] = Member(arguments[1], str(answers.value))
    return found


def test_the_session_side_calls_what_there_is() -> None:
    calls = _calls()
    assert len(calls) >= 8
    contract = members()
    assert {key: contract.get(key) for key in calls} == calls


def _reads() -> dict[str, dict[str, str]]:
    """Which keys the read functions of answers and grants read, as which type."""
    files = [ROOT / f"src/sessionvirt/broker_{name}.py" for name in ("data", "grants")]
    body = [node for file in files for node in ast.parse(file.read_text()).body]
    names = {
        "read_tap": "grant",
        "read_pci": "pci",
        "read_bandwidth": "bandwidth",
        "read_published": "publish",
        "read_plan": "plan",
        "read_network": "networks",
        "read_device": "devices",
        "read_lease": "leases",
        "read_diagnosis": "facts",
        "read_obstacle": "obstacles",
        "read_trace": "steps",
    }
    found: dict[str, dict[str, str]] = {name: {} for name in (*names.values(), "requests")}
    for function in body:
        if isinstance(function, ast.FunctionDef) and function.name in names:
            for node in ast.walk(function):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                texts = [one.value for one in node.args if isinstance(one, ast.Constant)]
                if node.func.attr in (*READERS, "numbers") and texts:
                    owner = getattr(node.func.value, "id", "")
                    what = "requests" if owner == "row" else names[function.name]
                    type_ = str(texts[1]) if len(texts) > 1 else READERS[node.func.attr]
                    found[what][str(texts[0])] = type_
    return found


@pytest.mark.parametrize("what", list(documented()))
def test_the_session_side_reads_the_keys_that_are_documented(what: str) -> None:
    assert _reads()[what] == documented()[what]


def test_the_session_side_sends_the_parameters_that_are_documented() -> None:
    """What has a default is sent where it differs from it, and not else."""
    requests: dict[str, tuple[Request, ...]] = {
        "tap": (
            TapRequest(network="default", mac="52:54:00:00:00:01", queues=2, vhost=True),
            TapRequest(bridge="br0", name="web", vlan=42, isolated=True),
        ),
        "direct": (
            DirectRequest("eth0", mac="52:54:00:00:00:01", queues=2, vhost=True),
            DirectRequest("eth0", mode="private", name="web"),
        ),
        "pci": (
            PciRequest(
                "0000:03:00.0",
                with_group=True,
                also=("0000:03:00.1",),
                managed=False,
                fds=True,
                driver="vfio-pci",
            ),
            PciRequest("0000:03:10.0", mac="52:54:00:00:00:01", vlan=42),
        ),
        "bandwidth": (BandwidthRequest("tap0", Rate(1, 2, 3), Rate(1, 2, 3)),),
        "filter": (
            FilterRequest(
                "tap0",
                deny_outbound=("tcp:1",),
                allow_outbound=("tcp:1",),
                deny_inbound=("tcp:1",),
                allow_inbound=("tcp:1",),
                deny=("arp",),
                only_mac=("52:54:00:00:00:01",),
                addresses=("10.0.0.1",),
                no_broadcast=True,
                no_multicast4=True,
                no_multicast6=True,
            ),
        ),
        "publish": (PublishRequest("tap0", "udp", 8080, 80, ports=2, address="127.0.0.1"),),
    }
    assert {one.kind for each in requests.values() for one in each} == set(parameters())
    for kind, each in requests.items():
        sent = {name: typed[0] for one in each for name, typed in one.parameters().items()}
        assert sent == parameters()[kind]
    assert PciRequest("0000:03:00.0").parameters() == {"address": ("s", "0000:03:00.0")}


def test_the_contract_names_the_limits_of_a_name() -> None:
    """Where the file gives a number, it is the code's."""
    text = (ROOT / "broker/org.sessionvirt.Broker1.xml").read_text()
    assert re.search(r"name \(1 to 11 of a-z 0-9 _, a letter first\)", text)
    assert re.search(r"the VM's name, 1 to 64 bytes of UTF-8", text)

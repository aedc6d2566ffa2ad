# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains and the exact command lines they become. ``SESSIONVIRT_UPDATE_GOLDEN=1`` rewrites them.

tests/qemu/test_golden_start.py shows that a real QEMU takes the same lines.
"""

from __future__ import annotations

import dataclasses
import os

import pytest

from golden.cases import BINARY, CASES, DIRECTORY, parsed, wiring
from sessionvirt import xmlmap
from sessionvirt.model.domain import Domain, dump_domain, parse_domain
from sessionvirt.qemu.command import build
from sessionvirt.qemu.wiring import HostdevWiring
from sessionvirt.xmlfields import declared
from sessionvirt.xmlmap import Element

pytestmark = pytest.mark.unit


def compare(name: str, content: str) -> None:
    path = DIRECTORY / name
    if os.environ.get("SESSIONVIRT_UPDATE_GOLDEN") and (content or path.exists()):
        path.write_text(content)
    assert content == (path.read_text() if path.exists() else "")


@pytest.mark.parametrize("case", CASES)
def test_command_line(case: str) -> None:
    domain = parsed(case).value
    command = build(domain, BINARY, wiring(domain))
    assert command == build(domain, BINARY, wiring(domain))
    lines = [f"{name}={value}" for name, value in command.environment] + list(command.argv)
    assert not any("\n" in line for line in lines)
    compare(f"{case}.args", "\n".join(lines) + "\n")


def test_command_line_of_host_devices_as_descriptors() -> None:
    domain = parsed("hostdevs").value
    given = dataclasses.replace(wiring(domain), hostdevs=HostdevWiring(40, (41, 42, 43)))
    assert given.passed_fds == (*wiring(domain).passed_fds, 40, 41, 42, 43)
    compare("hostdevs-iommufd.args", "\n".join(build(domain, BINARY, given).argv) + "\n")


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_understood(case: str) -> None:
    found = parsed(case).unknown
    compare(f"{case}.unknown", "".join(f"{thing.line}: {thing.path}\n" for thing in found))


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case: str) -> None:
    first = parsed(case)
    text = dump_domain(first.value)
    second = parse_domain(text)
    assert second.value == first.value
    assert [thing.path for thing in second.unknown] == [thing.path for thing in first.unknown]
    assert dump_domain(second.value) == text


@pytest.mark.parametrize("case", CASES)
def test_every_declared_value_reaches_the_document(case: str) -> None:
    """Without the nodes it was read from, a domain is written from its fields alone."""
    domain = parsed(case).value
    assert parse_domain(dump_domain(bare(domain))).value == domain


def bare(element: Element) -> Domain:
    """The same values, read from nowhere."""
    values = {}
    for field, _spec in declared(type(element)):
        value = getattr(element, field.name)
        if isinstance(value, Element):
            value = bare(value)
        elif isinstance(value, tuple):
            value = tuple(bare(each) if isinstance(each, Element) else each for each in value)
        values[field.name] = value
    made: Domain = type(element)(**values)  # type: ignore[assignment]
    return made


def test_every_declaration_is_exercised() -> None:
    """A declared path that no golden domain has is a declaration that nobody tried."""
    touched: set[tuple[str, str]] = set()
    reachable: set[type[Element]] = set()

    def touch(element: Element) -> None:
        for field, spec in declared(type(element)):
            value = getattr(element, field.name)
            assert element.origin is not None
            node = xmlmap.walk(element.origin.node, spec.steps)
            if node is not None and (spec.attribute is None or spec.attribute in node.attributes):
                touched.add((type(element).__name__, field.name))
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, Element):
                    touch(each)

    def reach(cls: type[Element]) -> None:
        reachable.add(cls)
        for _field, spec in declared(cls):
            if spec.element is not None and spec.element not in reachable:
                reach(spec.element)

    for case in CASES:
        touch(parsed(case).value)
    reach(Domain)
    wanted = {(cls.__name__, field.name) for cls in reachable for field, _spec in declared(cls)}
    # A place is tried where devices share its declaration; no device has one in every class.
    shared = {(cls.__name__, name) for cls in reachable for name in ("alias", "address")}
    assert sorted(wanted - shared - touched) == []
    assert {("Disk", "alias"), ("Disk", "address")} <= touched

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The import rule: who may import whom, as tables and a walk over the syntax trees.

The two halves never import each other: a package shared between them would put the user's code into
the privileged process. Each library has its few users, so that it can be exchanged; pure modules
stay pure, so that they can be tested with golden files; mechanisms of the broker know no bus and no
loop.
"""

from __future__ import annotations

import ast
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
HALVES = {"sessionvirt": ROOT / "src", "sessionvirt_broker": ROOT / "broker"}

#: The session half: each part (the first name after the package; xml* are one) and what it
#: may import of the others. Everything may import ``sessionvirt`` itself, for the version.
SESSION_PARTS: dict[str, set[str]] = {
    "errors": set(),
    "descriptors": set(),
    "states": {"errors"},
    "xml": {"errors"},
    "model": {"errors", "xml"},
    "host": {"errors", "descriptors"},
    "qemu": {"errors", "descriptors", "states", "xml", "model", "host"},
    "broker_values": {"errors", "descriptors"},
    "broker_requests": {"errors"},
    "broker_grants": {"errors", "descriptors", "broker_values", "broker_requests"},
    "broker_data": {
        "errors",
        "descriptors",
        "broker_values",
        "broker_requests",
        "broker_grants",
    },
    "broker_errors": {"errors"},
    "broker_client": {
        "errors",
        "descriptors",
        "broker_values",
        "broker_data",
        "broker_errors",
    },
}
SESSION_PARTS["driver"] = set(SESSION_PARTS)
SESSION_PARTS["cli"] = set(SESSION_PARTS)
SESSION_PARTS["__main__"] = {"cli"}

#: The broker's modules that know the bus and the event loop. Those below never import one of them.
BROKER_EDGE = {
    "__main__", "authority", "broker", "bus", "consent", "custody", "daemon", "following", "intake",
    "mending", "pace", "service", "termination", "worker",
}  # fmt: skip

#: Modules of the standard library and others that only these may import.
RESTRICTED: dict[str, tuple[str, ...]] = {
    "asyncio": (
        "sessionvirt.broker_client",
        "sessionvirt.cli*",
        "sessionvirt.driver*",
        "sessionvirt.qemu.capabilities",
        "sessionvirt.qemu.launch",
        "sessionvirt.qemu.process",
        "sessionvirt.qemu.qmp",
        *(f"sessionvirt_broker.{name}" for name in BROKER_EDGE),
    ),
    "dbus_fast": (
        "sessionvirt.broker_client",
        *(f"sessionvirt_broker.{name}" for name in ("authority", "bus", "intake", "service")),
    ),
    "nftables": ("sessionvirt_broker.firewall",),
    "pyroute2": ("sessionvirt_broker.netlink",),
    "qemu": ("sessionvirt.qemu.qmp",),
    # The broker starts dnsmasq and, as root, its own keeper; no argv has a thing of a caller. A
    # write to a driver's file is a child's, for it may never end: its argv is what sysfs listed.
    # hostnames is a program of its own, without a right, and its argv is of root's file.
    "subprocess": (
        "sessionvirt.*",
        "sessionvirt_broker.hostnames",
        "sessionvirt_broker.keeper",
        "sessionvirt_broker.patience",
        "sessionvirt_broker.privileges",
    ),
}


def imported(source: str, package: str) -> set[str]:
    """The absolute names of the modules that *source*, a module of *package*, imports.

    ``from a import b`` counts as ``a`` and, where a is the package itself, as ``a.b``, too.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found.add(origin)
            if node.module is None:
                found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def modules(half: str) -> dict[str, set[str]]:
    """Each module of *half*, with what it imports."""
    found = {}
    for path in sorted((HALVES[half] / half).rglob("*.py")):
        parts = path.relative_to(HALVES[half]).with_suffix("").parts
        package = ".".join(parts[:-1])
        name = package if path.name == "__init__.py" else ".".join(parts)
        found[name] = imported(path.read_text(), package)
    return found


def part_of(name: str) -> str:
    """``sessionvirt.qemu.command`` is of the part qemu; the package itself of the part ""."""
    first = [*name.split("."), ""][1]
    return "xml" if first.startswith("xml") else first


EVERY_MODULE = [(name, names) for half in HALVES for name, names in modules(half).items()]


def test_neither_half_imports_the_other() -> None:
    wrong = []
    for name, names in EVERY_MODULE:
        others = set(HALVES) - {name.split(".")[0]}
        wrong += [f"{name} imports {one}" for one in names if one.split(".")[0] in others]
    assert wrong == []


def test_every_library_has_only_its_users() -> None:
    strangers = []
    for name, names in EVERY_MODULE:
        for root in sorted({one.split(".")[0] for one in names} - set(HALVES)):
            users = RESTRICTED.get(root, () if root not in sys.stdlib_module_names else ("*",))
            if not any(fnmatchcase(name, user) for user in users):
                strangers.append(f"{name} imports {root}")
    assert strangers == []


def test_the_session_half_is_layered() -> None:
    wrong = []
    for name, names in modules("sessionvirt").items():
        part = part_of(name)
        for other in {part_of(one) for one in names if one.startswith("sessionvirt.")}:
            if part and other and other != part and other not in SESSION_PARTS[part]:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_the_brokers_mechanisms_do_not_know_its_edge() -> None:
    wrong = [
        f"{name} imports {one}"
        for name, names in modules("sessionvirt_broker").items()
        for one in names
        if part_of(one) in BROKER_EDGE and part_of(name) not in BROKER_EDGE
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os.path", {"os.path"}),
        ("from os import path", {"os"}),
        ("from . import errors", {"a.b", "a.b.errors"}),
        ("from .errors import Root", {"a.b.errors"}),
        ("from ..errors import Root", {"a.errors"}),
        ("def f():\n    import asyncio", {"asyncio"}),
        ("if TYPE_CHECKING:\n    from x import y", {"x"}),
    ],
)
def test_the_walk_sees(source: str, expected: set[str]) -> None:
    assert imported(source, "a.b") == expected

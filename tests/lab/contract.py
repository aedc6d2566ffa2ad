# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contract, read from its file: members and signatures, and the keys its comments document."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from lab.stage import ROOT

__all__ = ["FILE", "Member", "documented", "errors", "members", "parameters"]

FILE = ROOT / "broker/org.sessionvirt.Broker1.xml"

#: One type of the D-Bus, as the comments use them.
_TYPE = r"(?:s|o|u|t|i|b|as|ah|aa\{sv\}|a\(ss\)|a\{st\})"


@dataclass(frozen=True)
class Member:
    """One method: what it takes and what it answers."""

    takes: str
    answers: str


def members() -> dict[tuple[str, str], Member]:
    """Every method, by interface and name."""
    found = {}
    for interface in ET.parse(FILE).getroot().iter("interface"):
        for method in interface.iter("method"):
            arguments = [(arg.get("direction"), arg.get("type", "")) for arg in method.iter("arg")]
            found[interface.get("name", ""), method.get("name", "")] = Member(
                "".join(type_ for direction, type_ in arguments if direction == "in"),
                "".join(type_ for direction, type_ in arguments if direction == "out"),
            )
    return found


def errors() -> set[str]:
    """The names of the errors that the head of the file lists."""
    return set(re.findall(r"^    (org\.[\w.]+)\s", FILE.read_text(), flags=re.MULTILINE))


def documented() -> dict[str, dict[str, str]]:
    """Key to type, as the comments say, of all that is answered as a dictionary.

    ``grant`` is that of a TAP or macvtap device, ``pci`` that of a PCI device,
    ``bandwidth`` that of a limit, ``publish`` that of published ports; ``requests`` are those of
    a plan. A key that is there or not (network, bridge) is listed.
    """
    text = FILE.read_text()
    grant = _between(text, "A grant of a TAP is a{sv} with", "A grant of")
    plan = _between(text, "         plan      verdict", "-->")
    found = {
        "grant": _table(grant),
        "pci": _table(_between(text, "A grant of a PCI device is a{sv} with", "A grant of")),
        "bandwidth": _table(_between(text, "A grant of a bandwidth is a{sv} with", "A grant of")),
        "publish": _table(_between(text, "A grant of published ports is a{sv} with", "-->")),
        "plan": _table(" " * 19 + "verdict" + plan),
        "requests": _inline(_between(plan, "in order: kind", "steps "), "kind"),
        "networks": _inline(_between(text, "networks  each: name", "-->"), "name"),
        "devices": _inline(_between(text, "devices   each: address", "-->"), "address"),
        "leases": _inline(_between(text, "leases    each: lease", "-->"), "lease"),
        "obstacles": _inline(_between(text, "obstacles each: lease", "-->"), "lease"),
        "steps": _inline(_between(text, "of 32 packets: packet", "-->"), "packet"),
        "facts": _inline(_between(text, "facts     version", "-->"), "version"),
    }
    if "or bridge s, as asked for" in grant:
        found["grant"]["bridge"] = "s"
    return found


def parameters() -> dict[str, dict[str, str]]:
    """Key to type, as the comments say, of each kind of request."""
    text = FILE.read_text()
    return {
        "tap": _table(_between(text, '"tap"  a TAP device', '"direct"')),
        "direct": _table(_between(text, '"direct"  a macvtap device', '"pci"')),
        "pci": _table(_between(text, '"pci"  a PCI device', '"bandwidth"')),
        "bandwidth": _table(_between(text, '"bandwidth"  how much', '"filter"')),
        "filter": _table(_between(text, '"filter"  what a guest may not', "A TCP segment")),
        "publish": _table(_between(text, '"publish"  ports of the host', "A grant of")),
    }


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0]


def _table(text: str) -> dict[str, str]:
    """``  key   type   words`` in lines."""
    return dict(re.findall(rf"^\s+(\w+) +({_TYPE})(?=\s)", text, flags=re.MULTILINE))


def _inline(text: str, first: str) -> dict[str, str]:
    """``key (type, words), key (type)``."""
    return dict(re.findall(rf"(\w+) \(({_TYPE})(?=[,)])", first + text))

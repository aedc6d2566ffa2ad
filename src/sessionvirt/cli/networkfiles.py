# SPDX-License-Identifier: LGPL-2.1-or-later
"""``sessionvirt networks import`` and ``export``: libvirt's network XML to broker.toml, and back.

What an import prints is for an administrator to read and to install; nothing is written here, and
the broker is not asked. Whatever the document has is in the text: as a key, or in a comment that
says what it means here, or what to do instead. An export is what the broker tells, which is not all
that broker.toml has; a comment says so.
"""

from __future__ import annotations

import ipaddress
import sys
import textwrap
from typing import TYPE_CHECKING, Final

from sessionvirt.broker_values import malformed
from sessionvirt.errors import NotFoundError, UsageError
from sessionvirt.model.network import Mode, bridge_toml, printable, to_toml
from sessionvirt.model.networkexport import network_xml
from sessionvirt.model.networkxml import parse_network
from sessionvirt.xmltree import MAX_BYTES

from .output import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sessionvirt.broker_data import NetworkInfo
    from sessionvirt.model.network import Range
    from sessionvirt.model.networkxml import Imported, Remark

__all__ = ["export_network", "import_file"]

#: Remarks that are printed; a real document has a dozen.
_MOST_REMARKS: Final = 200
_WIDTH: Final = 98

_UNTOLD: Final = (
    "Only in /etc/sessionvirt/broker.toml: NAT of IPv6, domain, static hosts, names, DHCP options.",
    "libvirt chooses the bridge's name, and gives addresses of the first range of each family.",
)


def import_file(name: str) -> str:
    """Return the text for broker.toml that a file comes to.

    :param name: of the file; "-": standard input.
    :raise NotFoundError: it cannot be read.
    :raise DefinitionError: it is no network, or none that can be had here.
    """
    shown = "standard input" if name == "-" else name
    return _text(parse_network(_read(name), file=shown), shown)


def _read(name: str) -> bytes:
    """Read a file; a byte more than is allowed is enough to refuse it."""
    try:
        if name == "-":
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        with open(name, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        cause = f"{name} cannot be read"
        raise NotFoundError(cause, evidence=error.strerror or str(error)) from error


def _text(imported: Imported, file: str) -> str:
    network, bridge = imported.network, imported.bridge
    lines = list(_comment(f"From {file}, for /etc/sessionvirt/broker.toml: see broker.toml(5)."))
    if network is not None:
        if network.name != "default":
            lines += _comment(
                "Where no other table [network.NAME] is in that file yet, the built-in network "
                '"default" goes with this one, unless it is written out.'
            )
        lines += _comment(
            "Add 'autostart = true' where 'virsh net-info' says so: it is not in libvirt's XML."
        )
    elif not bridge:
        lines += _comment("There is nothing to install.")
    different = [remark for remark in imported.remarks if not remark.left_out]
    lines += _remarks("Not the same as in libvirt:", different)
    left_out = [remark for remark in imported.remarks if remark.left_out]
    lines += _remarks("Left out:", left_out)
    text = "\n".join(lines) + "\n"
    if network is not None:
        return f"{text}\n{to_toml(network)}"
    return f"{text}\n{bridge_toml(bridge)}" if bridge else text


def _remarks(title: str, remarks: Sequence[Remark]) -> Iterator[str]:
    if remarks:
        yield "#"
        yield from _comment(title)
    for remark in remarks[:_MOST_REMARKS]:
        yield from _comment(f"- line {remark.line}, {printable(remark.path)}: {remark.text}", "  ")
    if len(remarks) > _MOST_REMARKS:
        yield from _comment(f"- and {len(remarks) - _MOST_REMARKS} more", "  ")


def _comment(text: str, further_in: str = "") -> Iterator[str]:
    """Lines that TOML reads as comments, whatever the text."""
    return iter(
        textwrap.wrap(
            printable(text, 1000),
            _WIDTH,
            initial_indent="# ",
            subsequent_indent=f"# {further_in}",
            break_on_hyphens=False,
        )
    )


def export_network(networks: Sequence[NetworkInfo]) -> str:
    """Return libvirt's XML of a network, or of a bridge.

    :param networks: those of the name; a network has precedence.
    :raise UsageError: it is of a kind that libvirt has not.
    """
    network = networks[0]
    if network.type == "direct":
        raise UsageError(
            f"{network.name} is an interface of the host, which is written here for no network",
            advice=f"write <interface type='direct'><source dev='{network.name}' mode='bridge'/>"
            "</interface> into the machine",
        )
    if len(networks) > 1:
        say(f"{network.name} is a network and a bridge; this is the {network.type}")
    if network.mode not in [*(mode.value for mode in Mode), "lan"]:
        raise UsageError(
            f"{network.name} is of the mode {network.mode!r}, which cannot be exported",
            advice="install the same version of sessionvirt and sessionvirt-broker",
        )
    return network_xml(
        network.name,
        mode=network.mode,
        bridge=network.bridge,
        mtu=network.mtu,
        ranges=[_range(text) for text in (*network.ipv4, *network.ipv6)],
        remarks=() if network.mode == "lan" else _UNTOLD,
    )


def _range(text: str) -> Range:
    try:
        return ipaddress.ip_interface(text)
    except ValueError as error:
        raise malformed(f"{text!r} is not an address") from error

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt has ebtables do for each of its stock filters: as recorded, or by libvirt, now.

No QEMU is needed: a filter is bound to a TAP by the code that the start of a machine runs
(``nwfilter_bench.py`` says which). The addresses are told, so it learns none from traffic.

libvirt runs 60 to 120 programs to bind one filter, which takes 5 to 15 seconds where the host is
emulated. So what comes of it is kept, in ``stock.ebtables``, as **ebtables-save**\\(8) has it; one
call of **ebtables-restore**\\(8) puts it back. To record it anew, in an hour without other work::

    ./dev host run -- sh -c 'cd /srv/sessionvirt/tests && python3 -m host.inside.stockrules'
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from host.inside import units
from lab.filterframes import GATEWAY, MAC, OWN, OWN6, PEER, PEER6
from sessionvirt.model.filterref import STOCK
from sessionvirt_broker.tun import create

if TYPE_CHECKING:
    from collections.abc import Iterator

    import libvirt

__all__ = ["PORT", "bind", "clean", "daemon", "filterref", "installed", "now", "put", "recorded"]

PORT = "peer9"
#: What the daemon remembers.
BOUND = Path(f"/run/libvirt/nwfilter-binding/{PORT}.xml")
RECORD = Path(__file__).with_name("stock.ebtables")
BINDING = f"""\
<filterbinding>
  <owner><name>stock</name><uuid>{{uuid}}</uuid></owner>
  <portdev name='{PORT}'/>
  <mac address='{MAC}'/>
  {{filterref}}
</filterbinding>
"""
HEAD = ("*nat", ":PREROUTING ACCEPT", ":OUTPUT ACCEPT", ":POSTROUTING ACCEPT")


def filterref(name: str) -> str:
    """The element, with every parameter that there is."""
    server = PEER6 if name == "allow-dhcpv6-server" else PEER
    given = {"IP": OWN, "IPV6": OWN6, "GATEWAY_MAC": GATEWAY, "DHCPSERVER": server}
    inside = "".join(f"<parameter name='{n}' value='{v}'/>" for n, v in given.items())
    return f"<filterref filter='{name}'>{inside}</filterref>"


# By libvirt


@contextlib.contextmanager
def daemon() -> Iterator[libvirt.virConnect]:
    """libvirt's, in system mode. It does not remember a binding that is still there at the end.

    To delete one takes as long as to make it; :func:`clean` has the rules go.
    """
    import libvirt

    units.systemctl("start", "libvirtd.service")
    try:
        connection = libvirt.open("qemu:///system")
        try:
            yield connection
        finally:
            connection.close()
    finally:
        units.systemctl("stop", "libvirtd.service")
        BOUND.unlink(missing_ok=True)


def installed(connection: libvirt.virConnect) -> set[str]:
    """The names of the filters that it has."""
    return set(connection.listNWFilters())


def bind(connection: libvirt.virConnect, name: str) -> libvirt.virNWFilterBinding:
    """What the start of a machine with this filter would have libvirt do to its TAP."""
    text = BINDING.format(uuid=uuid.uuid4(), filterref=filterref(name))
    return connection.nwfilterBindingCreateXML(text, 0)


# As rules


def now() -> list[str]:
    """The table ``nat``, but for what is always in it."""
    done = subprocess.run(["ebtables-save"], check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("#")]
    assert tuple(lines[: len(HEAD)]) == HEAD
    return lines[len(HEAD) :]


def recorded() -> dict[str, list[str]]:
    """By filter."""
    parts = re.split(r"^\[(.+)\]\n", RECORD.read_text(encoding="ascii"), flags=re.MULTILINE)
    return {name: text.splitlines() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def put(rules: list[str]) -> None:
    """These, and no others."""
    text = "".join(f"{line}\n" for line in (*HEAD, *rules))
    subprocess.run(["ebtables-restore"], input=text, check=True, text=True)


@contextlib.contextmanager
def clean() -> Iterator[None]:
    """At the end ebtables has left no table: with Debian's it is one of nft's."""

    def there() -> bool:
        asked = ["nft", "list", "tables", "bridge"]
        done = subprocess.run(asked, check=True, capture_output=True, text=True)
        return "table bridge nat" in done.stdout.splitlines()

    assert not there()
    try:
        yield
    finally:
        if there():
            subprocess.run(["nft", "delete", "table", "bridge", "nat"], check=True)


def main() -> None:
    import os

    with clean(), daemon() as connection:
        assert installed(connection) == set(STOCK)
        (descriptor,) = create(PORT, 1)
        print(f"# libvirt {connection.getLibVersion()}: stockrules.py")
        for name in STOCK:
            binding = bind(connection, name)
            print(f"[{name}]", *now(), sep="\n", flush=True)
            binding.delete()
        os.close(descriptor)


if __name__ == "__main__":
    main()

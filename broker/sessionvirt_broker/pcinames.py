# SPDX-License-Identifier: LGPL-2.1-or-later
"""What people call a PCI function: "Intel Corporation 82574L Gigabit Network Connection".

From udev's database, which root's udevd writes, else from pci.ids, else the numbers. A name is for
reading only: nothing is decided by it, and it is cleaned (:func:`wire.legible`). Nothing is
kept: pci.ids is read when it is needed and forgotten. Never fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import sysfs
from .wire import legible

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from .pci import Function, PciAddress

#: Longest name.
LIMIT = 96
#: A record of udev's is a few kilobytes.
_RECORD_BYTES = 64 * 1024
#: pci.ids has 1.5 MB; of a larger one the rest is not read.
_IDS_BYTES = 8 * 1024 * 1024
_VENDOR, _MODEL = "E:ID_VENDOR_FROM_DATABASE=", "E:ID_MODEL_FROM_DATABASE="


class PciNames:
    """Where names are found.

    :param udev: /run/udev/data
    :param pci_ids: /usr/share/misc/pci.ids
    """

    def __init__(self, udev: Path, pci_ids: Path) -> None:
        self._udev = udev
        self._pci_ids = pci_ids

    def name(self, function: Function) -> str:
        """The name of one."""
        return self.names((function,))[function.address]

    def names(self, functions: Iterable[Function]) -> dict[PciAddress, str]:
        """The names of several: pci.ids is read once at most."""
        found: dict[PciAddress, tuple[str, str]] = {}
        missing: list[Function] = []
        for function in functions:
            found[function.address] = self._of_udev(function.address)
            if not all(found[function.address]):
                missing.append(function)
        if missing:
            known = self._of_pci_ids(missing)
            for function in missing:
                vendor, model = found[function.address]
                vendor = vendor or known.get((function.vendor, None), "")
                model = model or known.get((function.vendor, function.device), "")
                # A vendor's name alone would look like a name of the device.
                found[function.address] = (
                    (vendor, model) if vendor and model else ("PCI device", function.ids)
                )
        return {
            address: legible(" ".join(" ".join(words).split()), LIMIT)
            for address, words in found.items()
        }

    def _of_udev(self, address: PciAddress) -> tuple[str, str]:
        # The address is the kernel's and was matched: no slash is in it.
        record = sysfs.raw(f"{self._udev}/+pci:{address}", _RECORD_BYTES).decode(errors="replace")
        vendor = model = ""
        for line in record.split("\n"):
            if line.startswith(_VENDOR):
                vendor = line.removeprefix(_VENDOR).strip()
            elif line.startswith(_MODEL):
                model = line.removeprefix(_MODEL).strip()
        return vendor, model

    def _of_pci_ids(self, functions: Iterable[Function]) -> dict[tuple[int, int | None], str]:
        """The names of their vendors (device None) and models, in one pass.

        Its lines are ``8086  Intel Corporation`` and, below, ``<tab>10d3  82574L ...``; subsystems
        have two tabs, and classes (``C 02``) come last.
        """
        wanted: dict[bytes, dict[bytes, tuple[int, int]]] = {}
        for one in functions:
            models = wanted.setdefault(b"%04x" % one.vendor, {})
            models[b"%04x" % one.device] = (one.vendor, one.device)
        found: dict[tuple[int, int | None], str] = {}
        models = {}
        for line in sysfs.raw(str(self._pci_ids), _IDS_BYTES).split(b"\n"):
            if line[:1] == b"\t":
                key = models.get(line[1:5]) if models else None
                if key is not None and line[5:7] == b"  ":
                    found[key] = _words(line[7:])
            elif line[:1] not in (b"", b"#"):
                models = wanted.get(line[:4], {}) if line[4:6] == b"  " else {}
                for vendor, _ in models.values():
                    found[vendor, None] = _words(line[6:])
        return found


def _words(raw: bytes) -> str:
    return raw.decode(errors="replace").strip()

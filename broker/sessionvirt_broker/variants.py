# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which module has a VFIO driver for one model of device, as the kernel's modules.alias says.

Such a variant does what vfio-pci cannot: it migrates a virtual function, or shows a GPU's coherent
memory. Its lines are ``alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci``; libvirt
takes the one with the fewest wildcards, too (virPCIDeviceFindBestVFIOVariant()). vfio-pci itself
has one that is nothing but wildcards, which makes it nobody's variant.

Invariants: a field is a number or a wildcard and never half of each (do_pci_entry() in the kernel's
scripts/mod/file2alias.c), so numbers are compared and nothing is a pattern. The facts of a device
are those that its ``modalias`` is made of. Read once: what is installed later is the next broker's
to find, and the unit shows each one file.

Never loads anything, and never says that a driver is there: ``vfio.py`` does. Built-in drivers are
not in that file.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import sysfs

if TYPE_CHECKING:
    from pathlib import Path

    from .pci import Function

__all__ = ["Variants"]

log = logging.getLogger(__name__)

#: Debian's has a megabyte and a half.
_FILE_BYTES = 16 << 20
#: Linux 6.18 has some thirty lines of this kind.
_MOST_LINES = 1024
_START = b"\nalias vfio_pci:"
_WORD, _BYTE = rb"(\*|[0-9A-F]{8})", rb"(\*|[0-9A-F]{2})"
#: add_wildcard() puts one at the end where there is none.
_LINE = re.compile(
    _START
    + rb"v%bd%bsv%bsd%bbc%bsc%bi%b\*? ([A-Za-z0-9_]{1,55})(?=\n)"
    % (_WORD, _WORD, _WORD, _WORD, _BYTE, _BYTE, _BYTE)
)


@dataclass(frozen=True, slots=True)
class _Line:
    """One alias. ``fields`` are vendor, device, the board's two, and the three of the class."""

    fields: tuple[int | None, ...]
    module: str
    numbers: int

    def fits(self, facts: tuple[int, ...]) -> bool:
        return all(one in (None, fact) for one, fact in zip(self.fields, facts, strict=True))


class Variants:
    """The lines, by vendor and device.

    :param aliases: modules.alias of the kernel that runs; it need not be there.
    """

    def __init__(self, aliases: Path) -> None:
        self._aliases = aliases
        self._lines: dict[tuple[int | None, ...], list[_Line]] | None = None

    def module(self, function: Function) -> str:
        """The module that is made for it; empty: none, so that vfio-pci has it."""
        if self._lines is None:
            self._lines = self._read()
        lines, vendor, device = self._lines, function.vendor, function.device
        keys = ((vendor, device), (vendor, None), (None, device), (None, None))
        candidates = [line for key in keys for line in lines.get(key, ())]
        if not candidates:
            return ""
        board = (function.subsystem_vendor, function.subsystem_device)
        facts = (vendor, device, *board, *function.class_code.to_bytes(3))
        fitting = [line for line in candidates if line.fits(facts)]
        # Of equals the first in the file.
        return max(fitting, key=lambda line: line.numbers).module if fitting else ""

    def _read(self) -> dict[tuple[int | None, ...], list[_Line]]:
        text = b"\n" + sysfs.raw(str(self._aliases), _FILE_BYTES)
        if len(text) == 1:
            log.info("%s cannot be read: every device is vfio-pci's", self._aliases)
        lines: dict[tuple[int | None, ...], list[_Line]] = {}
        at = text.find(_START)
        for _ in range(_MOST_LINES):
            if at < 0:
                break
            if match := _LINE.match(text, at):
                *words, module = match.groups()
                fields = tuple(None if one == b"*" else int(one, 16) for one in words)
                line = _Line(fields, module.decode("ascii"), len(words) - fields.count(None))
                if line.numbers:
                    lines.setdefault(fields[:2], []).append(line)
            at = text.find(_START, at + 1)
        return lines

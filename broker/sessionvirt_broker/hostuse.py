# SPDX-License-Identifier: LGPL-2.1-or-later
"""What on the host would suffer if a PCI function were taken from it, in short phrases.

One snapshot, then a question for each function. Whatever lies below a function's directory in
/sys/devices is lost with it: disks behind it, its network interfaces, a keyboard at a USB
controller. Any phrase is a reason to refuse, whatever polkit says.

Invariants: what cannot be told apart from a use is one. The order of the phrases is fixed, their
number and length are bounded, and texts from devices or users are cleaned.

What it cannot see, because the kernel says it nowhere that may be read:

* a file system in another mount namespace (a container's; with ProtectHome=, also one below /home)
  of a kind without superblocks in /sys/fs: vfat, exfat, ntfs3, iso9660, ...; of ext4, xfs, f2fs,
  nilfs2, erofs, btrfs and bcachefs it is seen;
* a disk that a program has opened: a database, another VM, an ordinary user's FUSE, a loop device
  on it, a target that exports it;
* a network interface that is up without address, route or upper device: a packet capture, XDP; and
  a route that is not a default route (its interface has an address in nearly all cases);
* a GPU that computes, or shows something by a render node alone; what a USB device without disk,
  network, sound or input does (a modem, a printer, a security key); MIDI.

Never writes, opens no device node, decides nothing by a name that a user chose.
"""

from __future__ import annotations

import os
import re
from enum import IntEnum
from typing import TYPE_CHECKING, Self

from . import sysfs
from .hostdisks import TEXT_LIMIT, Use, disk_uses
from .vfio import is_vfio
from .wire import legible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from .pci import Function

#: Phrases of one function; a USB controller may have a hundred devices.
_PHRASES = 32
#: Addresses that are told of one interface.
_ADDRESSES = 4
_ROOT_BUS = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_NETWORK_CLASS = 0x02
_AMD = 0x1022

#: Parts of the host itself, by class and subclass (pci_ids.h): a guest that had one would have
#: power over all of it, and some have no driver whose loss would show.
_HOST_PARTS = {
    0x0502: "memory of the host, by CXL",
    0x0600: "a host bridge",
    0x0601: "the chipset's bridge to ISA",
    0x0806: "an IOMMU",
    0x0C05: "the chipset's SMBus",
}
#: The same of what is on a root bus. Behind a bridge it is a card of that class: an FPGA, a
#: multi-function board. Not in here, for it does no harm and is in one group with the USB
#: controller of many boards: a chipset's shared RAM (0500) and thermal sensor (1180).
_CHIPSET_PARTS = {
    0x0580: "the chipset's power or memory controller",
    0x0680: "a bridge of the chipset",
    0x0780: "the chipset's management engine, or a controller like it",
    0x0800: "an interrupt controller of the chipset",
    0x0801: "a DMA controller of the chipset",
    0x0802: "a timer of the chipset",
    0x0803: "a clock of the chipset",
    0x0804: "a hot-plug controller of the chipset",
    0x0807: "an event collector of the root complex",
    0x0880: "a system peripheral of the processor or chipset",
    0x0C80: "a serial bus of the chipset, which may reach the firmware",
    0x1101: "performance counters of the processor",
}


class _Rank(IntEnum):
    """The order of the phrases."""

    DISK = 0
    NETWORK = 1
    BOOT_DISPLAY = 2
    DISPLAY = 3
    CONSOLE = 4
    SOUND = 5
    INPUT = 6
    TPM = 7
    VIRTUAL_FUNCTIONS = 8
    PART = 9


class HostUse:
    """What is in use, as it was at one moment: :meth:`look`, then :meth:`of` for each function.

    :param found: each use with its rank.
    :param interfaces: the directories of the network interfaces that can be seen.
    """

    def __init__(self, found: Iterable[tuple[_Rank, Use]], interfaces: Iterable[str]) -> None:
        #: By every directory that a use is below: a question is one look-up.
        self._below: dict[str, list[tuple[_Rank, str]]] = {}
        for rank, use in found:
            for directory in _above(use.path):
                self._below.setdefault(directory, []).append((rank, use.phrase))
        self._with_interface = {above for path in interfaces for above in _above(path)}

    @classmethod
    def look(
        cls,
        sys: Path,
        proc: Path,
        addresses: Mapping[int, Sequence[str]],
        default_routes: frozenset[int],
    ) -> Self:
        """Take the snapshot.

        :param addresses: by ifindex, those that are not link-local.
        :param default_routes: the ifindexes that a default route goes by.
        :raise OSError: something could not be read; then nothing is known to be unused.
        :raise ValueError: likewise, a file of the kernel's was not understood.
        """
        root, kernel = os.path.realpath(sys), str(proc)
        physical = {
            name: path
            for name, path in sysfs.members(root, "class/net").items()
            if not path.startswith(f"{root}/devices/virtual/")
        }
        ranked: tuple[tuple[_Rank, Iterator[Use]], ...] = (
            (_Rank.DISK, disk_uses(root, kernel)),
            (_Rank.NETWORK, _interfaces(physical, addresses, default_routes)),
            (_Rank.NETWORK, _pppoe(physical, kernel)),
            (_Rank.DISPLAY, _displays(root)),
            (_Rank.CONSOLE, _consoles(root)),
            (_Rank.SOUND, _sounds(root, kernel)),
            (_Rank.INPUT, _inputs(root)),
            (_Rank.TPM, _tpms(root)),
        )
        return cls(((rank, use) for rank, uses in ranked for use in uses), physical.values())

    def of(self, function: Function) -> tuple[str, ...]:
        """What would suffer; empty: nothing that is known of.

        A bridge has no uses: it is never given, and those of what is behind it are theirs.
        """
        if not function.endpoint:
            return ()
        found = [*self._below.get(str(function.path), ()), *self._own(function)]
        # sorted() is stable: within a rank the order is that of the snapshot.
        phrases = list(dict.fromkeys(phrase for _, phrase in sorted(found, key=lambda one: one[0])))
        if len(phrases) > _PHRASES:
            phrases[_PHRASES - 1 :] = [f"{len(phrases) - _PHRASES + 1} other uses"]
        return tuple(phrases)

    def _own(self, function: Function) -> Iterator[tuple[_Rank, str]]:
        """What the function itself says, and not something below it."""
        if self._is_hidden(function):
            yield (
                _Rank.NETWORK,
                "its network interface is in another network namespace, or hidden",
            )
        if function.boot_vga:
            yield _Rank.BOOT_DISPLAY, "boot display"
        if function.numvfs:
            some = "virtual function exists" if function.numvfs == 1 else "virtual functions exist"
            yield _Rank.VIRTUAL_FUNCTIONS, f"{function.numvfs} {some}"
        part = _part(function)
        if part:
            yield _Rank.PART, part

    def _is_hidden(self, function: Function) -> bool:
        """A network card with a driver has an interface. Where none is seen, somebody has it.

        sysfs shows those of one network namespace (net_class in net/core/net-sysfs.c), and DPDK's
        drivers have none. VFIO's, variants too, and pci-stub are for nobody on the host.
        """
        if function.class_code >> 16 != _NETWORK_CLASS or not function.driver:
            return False
        if is_vfio(function.driver) or function.driver == "pci-stub":
            return False
        return str(function.path) not in self._with_interface


def _above(path: str) -> Iterator[str]:
    """Every directory above a path."""
    end = path.rfind("/")
    while end > 0:
        yield path[:end]
        end = path.rfind("/", 0, end)


def _part(function: Function) -> str:
    """Which part of the host a function is; empty: it is a device."""
    kind = function.class_code >> 8
    if kind == 0x1080 and function.vendor == _AMD:
        return "the processor's security processor"
    if kind in _HOST_PARTS:
        return _HOST_PARTS[kind]
    on_root_bus = _ROOT_BUS.fullmatch(function.path.parent.name) is not None
    return _CHIPSET_PARTS.get(kind, "") if on_root_bus else ""


def _interfaces(
    physical: Mapping[str, str],
    addresses: Mapping[int, Sequence[str]],
    default_routes: frozenset[int],
) -> Iterator[Use]:
    for name, path in physical.items():
        shown = legible(name, TEXT_LIMIT)
        index = sysfs.text(f"{path}/ifindex")
        ifindex = int(index) if index.isascii() and index.isdigit() else 0
        if ifindex in default_routes:
            yield Use(path, f"default route via {shown}")
        own = [legible(address, TEXT_LIMIT) for address in addresses.get(ifindex, ())]
        for address in own[:_ADDRESSES]:
            yield Use(path, f"address {address} on {shown}")
        if len(own) > _ADDRESSES:
            yield Use(path, f"{len(own) - _ADDRESSES} other addresses on {shown}")
        yield from _uppers(path, shown)


def _uppers(path: str, shown: str) -> Iterator[Use]:
    """What is on top of an interface: netdev_adjacent_sysfs_add() in net/core/dev.c."""
    master = sysfs.link(path, "master")
    upper = os.path.basename(master)
    if master:
        kinds = [kind for kind in ("bridge", "bonding") if os.path.isdir(f"{master}/{kind}")]
        kind = f" ({kinds[0].replace('bonding', 'bond')})" if kinds else ""
        yield Use(path, f"{shown} is a port of {legible(upper, TEXT_LIMIT)}{kind}")
    for entry in sysfs.listed(path):
        above = entry.removeprefix("upper_")
        if above not in (entry, upper):
            yield Use(path, f"{shown} is below {legible(above, TEXT_LIMIT)}")


def _pppoe(physical: Mapping[str, str], proc: str) -> Iterator[Use]:
    """A PPP interface is not an upper device; its sessions have a list."""
    try:
        lines = sysfs.whole(f"{proc}/net/pppoe").decode(errors="replace").splitlines()[1:]
    except FileNotFoundError:
        return
    for words in map(str.split, lines):
        if words and words[-1] in physical:
            yield Use(
                physical[words[-1]], f"a PPPoE connection by {legible(words[-1], TEXT_LIMIT)}"
            )


def _numbered(sys: str, cls: str, pattern: str) -> Iterator[tuple[str, str]]:
    """The members of a class with names of this kind, each with its path."""
    for name, path in sysfs.members(sys, f"class/{cls}").items():
        if re.fullmatch(pattern, name):
            yield name, path


def _displays(sys: str) -> Iterator[Use]:
    for name, path in _numbered(sys, "drm", r"card[0-9]+-.+"):
        if sysfs.text(f"{path}/enabled") == "enabled":
            yield Use(path, f"active display {legible(name, TEXT_LIMIT)}")
    for name, path in _numbered(sys, "graphics", r"fb[0-9]+"):
        yield Use(path, f"framebuffer {name}")


def _consoles(sys: str) -> Iterator[Use]:
    for name in sysfs.text(f"{sys}/class/tty/console/active").split():
        path = sysfs.link(f"{sys}/class/tty", name)
        if path:
            yield Use(path, f"console on {legible(name, TEXT_LIMIT)}")


def _sounds(sys: str, proc: str) -> Iterator[Use]:
    for name, path in _numbered(sys, "sound", r"card[0-9]+"):
        card = f"{proc}/asound/{name}"
        streams = [
            f"{card}/{pcm}/{sub}/status"
            for pcm in sysfs.listed(card)
            if pcm.startswith("pcm")
            for sub in sysfs.listed(f"{card}/{pcm}")
            if sub.startswith("sub")
        ]
        if any(sysfs.text(stream) not in ("closed", "") for stream in streams):
            yield Use(path, f"sound card {name.removeprefix('card')} is playing or recording")


def _inputs(sys: str) -> Iterator[Use]:
    for _, path in _numbered(sys, "input", r"input[0-9]+"):
        # Bitmaps of what it can send, "10000 0 0". A jack that notices a plug has "sw" alone.
        sends = "".join(sysfs.text(f"{path}/capabilities/{kind}") for kind in ("key", "rel", "abs"))
        if sends.strip("0 "):
            yield Use(path, f"input device: {legible(sysfs.text(f'{path}/name'), TEXT_LIMIT)}")


def _tpms(sys: str) -> Iterator[Use]:
    for name, path in _numbered(sys, "tpm", r"tpm[0-9]+"):
        yield Use(path, f"TPM {name}")

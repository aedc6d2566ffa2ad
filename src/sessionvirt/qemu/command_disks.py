# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks: two block nodes (file and format) and a device each, named after the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sessionvirt.model.devices import Cache, ControllerType, DiskBus, DiskDevice

from .option import structured

if TYPE_CHECKING:
    from sessionvirt.model.devices import Disk

    from .board import Board

__all__ = ["disk_arguments"]

#: A SATA controller's ports.
_PORTS: Final = 6
_AHCI: Final = "sata0"

#: cache= -> (past the host's page cache, ignore the guest's flushes, the guest sees a write cache);
#: qemu-system-x86_64(1), -drive cache=.
_CACHE: Final = {
    Cache.NONE: (True, False, True),
    Cache.WRITEBACK: (False, False, True),
    Cache.WRITETHROUGH: (False, False, False),
    Cache.DIRECTSYNC: (True, False, False),
    Cache.UNSAFE: (False, True, True),
}


def disk_arguments(board: Board) -> list[str]:
    """Every disk, in order."""
    arguments: list[str] = []
    sata = [disk for disk in board.domain.disks if disk.effective_bus is DiskBus.SATA]
    if sata and not board.express:
        place = board.pci.place(board.controller(ControllerType.SATA))
        arguments += board.device("ich9-ahci", _AHCI, sata[0].where, place)
    for disk in board.domain.disks:
        arguments += _nodes(disk)
        arguments += _virtio(board, disk) if disk not in sata else _sata(board, disk)
    return arguments


def _node(disk: Disk) -> str | None:
    return f"{disk.target}-format" if disk.file is not None else None


def _read_only(disk: Disk) -> bool:
    return disk.readonly or disk.device is DiskDevice.CDROM


def _nodes(disk: Disk) -> list[str]:
    if disk.file is None:
        return []
    direct, no_flush, _write_cache = _CACHE.get(disk.cache, (None, None, None))
    cache = None if direct is None else {"direct": direct, "no-flush": no_flush}
    file = {
        "driver": "file",
        "node-name": f"{disk.target}-file",
        "filename": disk.file,
        "aio": disk.io,
        "read-only": _read_only(disk),
        "discard": "unmap",
        "cache": cache,
    }
    form = {
        "driver": str(disk.format),
        "node-name": _node(disk),
        "file": f"{disk.target}-file",
        "read-only": _read_only(disk),
        "discard": disk.discard,
        "cache": cache,
    }
    return ["-blockdev", structured(file), "-blockdev", structured(form)]


def _common(disk: Disk) -> dict[str, object]:
    write_cache = _CACHE.get(disk.cache, (None, None, None))[2]
    return {
        "drive": _node(disk),
        "serial": disk.serial,
        "share-rw": True if disk.shareable else None,
        "write-cache": None if write_cache is None else "on" if write_cache else "off",
    }


def _virtio(board: Board, disk: Disk) -> list[str]:
    place = board.pci.place(disk)
    return board.device("virtio-blk-pci", disk.target, disk.where, _common(disk) | place)


def _sata(board: Board, disk: Disk) -> list[str]:
    if disk.index >= _PORTS:
        disk.at("target/@dev").refuse(
            f"the SATA controller has {_PORTS} ports, sda to sdf", "Use bus='virtio' for this disk."
        )
    bus = f"ide.{disk.index}" if board.express else f"{_AHCI}.{disk.index}"
    driver = "ide-cd" if disk.device is DiskDevice.CDROM else "ide-hd"
    return board.device(driver, disk.target, disk.where, {"bus": bus} | _common(disk))

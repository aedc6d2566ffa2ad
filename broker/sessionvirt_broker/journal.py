# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is held, on disk, so that a crash at any point loses nothing.

::

    /run/sessionvirt-broker/        0711, the broker's
    ├── lock                        held by the one broker that runs
    ├── records/                    0700; one file a record, ID.json, written whole (fsync, rename)
    │   └── quarantine/             what could not be understood, kept for a person
    ├── holds/                      0700; one FIFO a lease
    └── networks/                   0755; what dnsmasq, another user, reads

A record is a header and the steps that were begun, in order, by part. It lives under /run and names
the boot it belongs to: after a reboot nothing in it is true, so it is dropped without touching the
host.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import HostFailure
from .steps import Step, decode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

VERSION = 1
#: A lease, or something that leases share.
_ID = re.compile(
    r"lease-[0-9a-f]{32}|network-svn_[a-z][a-z0-9_]{0,10}|firewall|egress|forwarding6?"
    r"|(?:published|localnet)-svn_[a-z][a-z0-9_]{0,10}|vfio-[0-9]{1,6}"
)
_MAX_BYTES = 1 << 20
_QUARANTINE = "quarantine"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Record:
    """One journal entry.

    :param header: what the owner of the record needs beside the steps; plain JSON.
    :param parts: the steps begun, in order, by what can be given back on its own.
    """

    id: str
    header: dict[str, object] = field(default_factory=dict)
    parts: dict[str, list[Step]] = field(default_factory=dict)


class Journal:
    """The records of this boot. Used on the worker thread only."""

    def __init__(self, directory: Path, boot_id: str, types: Mapping[str, type[Step]]) -> None:
        self._directory = directory
        self._boot_id = boot_id
        self._types = types
        directory.mkdir(mode=0o700, exist_ok=True)

    def write(self, record: Record) -> None:
        """Put the record down whole; the former one stands until then.

        :raise HostFailure: the directory cannot be written; the caller must not go on.
        """
        content = json.dumps(
            {
                "version": VERSION,
                "boot_id": self._boot_id,
                "id": record.id,
                "header": record.header,
                "parts": {
                    name: [step.encode() for step in steps] for name, steps in record.parts.items()
                },
            }
        )
        path = self._path(record.id)
        part = path.with_suffix(".part")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(part, flags, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
        except OSError as error:
            raise HostFailure("write the journal below /run") from error

    def remove(self, record_id: str) -> None:
        """Forget a record whose steps are all undone.

        One that cannot be removed is no reason to keep a lease: the next broker undoes it again.
        """
        try:
            self._path(record_id).unlink(missing_ok=True)
        except OSError:
            log.exception("a journal record cannot be removed")

    def load(self) -> Iterator[Record]:
        """Every record of this boot. Those of another boot are removed, strange ones set aside."""
        for path in sorted(self._directory.iterdir()):
            if path.suffix == ".part":
                path.unlink()
            elif path.suffix == ".json":
                try:
                    record = self._read(path)
                except (OSError, ValueError, TypeError, RecursionError) as error:
                    self._set_aside(path, error)
                    continue
                if record is None:
                    path.unlink()
                else:
                    yield record

    def of_other_boots(self) -> list[str]:
        """The ids of the records that :meth:`load` would drop."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
                if self._read(path) is None:
                    found.append(path.stem)
        return found

    def _read(self, path: Path) -> Record | None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(file.fileno()).st_uid not in (0, os.geteuid()):
                raise ValueError("not ours")
            raw = json.loads(file.read(_MAX_BYTES))
        if not isinstance(raw, dict) or raw.get("version") != VERSION:
            raise ValueError("not a record of this version")
        if raw.get("boot_id") != self._boot_id:
            return None
        header, parts = raw.get("header"), raw.get("parts")
        if raw.get("id") != path.stem or not _ID.fullmatch(path.stem):
            raise ValueError("id: not the file's name")
        if not isinstance(header, dict) or not isinstance(parts, dict):
            raise ValueError("header or parts: missing")
        return Record(
            path.stem,
            header,
            {name: [decode(step, self._types) for step in steps] for name, steps in parts.items()},
        )

    def _set_aside(self, path: Path, error: Exception) -> None:
        """Out of the way, so that one bad file is not a crash loop; never deleted unread."""
        log.error("journal record %s cannot be used (%s); set aside", path.name, error)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._directory / _QUARANTINE, 0o700)
        try:
            aside = os.open(self._directory / _QUARANTINE, _DIRECTORY)
        except OSError:
            # A link, or a file. Followed, it would lead this record to wherever somebody wanted it,
            # when --return-leases runs outside of the unit's sandbox.
            os.unlink(self._directory / _QUARANTINE)
            os.mkdir(self._directory / _QUARANTINE, 0o700)
            aside = os.open(self._directory / _QUARANTINE, _DIRECTORY)
        try:
            os.rename(path, path.name, dst_dir_fd=aside)
        finally:
            os.close(aside)

    def set_aside(self) -> list[Path]:
        """The records that could not be used, this time or an earlier one."""
        try:
            aside = os.open(self._directory / _QUARANTINE, _DIRECTORY)
        except OSError:
            return []
        try:
            return [self._directory / _QUARANTINE / name for name in sorted(os.listdir(aside))]
        finally:
            os.close(aside)

    def _path(self, record_id: str) -> Path:
        if not _ID.fullmatch(record_id):
            raise ValueError(f"not a record id: {record_id!a}")
        return self._directory / f"{record_id}.json"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of users and groups that ``broker.toml`` may use: those of passwd(5) and group(5).

The two are read as files, never by NSS: a directory server may take for ever to answer, and what an
administrator wrote must not mean something else while it is away. Who is known to such a server
only is written as a number. A name is looked up when the configuration is read, never for a caller:
what a caller is, the bus has recorded in numbers.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: (uid_t) -1 and (gid_t) -1 mean "leave it alone" to the kernel, and are nobody's.
LARGEST = (1 << 32) - 2
#: A host with more accounts than that keeps them in a directory.
_MAX_BYTES = 16 << 20
_NUMBER = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class AccountFile:
    """One of the two; of each line the first field and the third count.

    :param noun: ``user`` or ``group``.
    """

    path: Path
    noun: str

    def stamp(self) -> tuple[int, ...]:
        """Another one when the file is another; empty where there is none."""
        try:
            status = os.stat(self.path)
        except OSError:
            return ()
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def numbers(self) -> Mapping[str, int]:
        """Every name with its number; as for getpwnam(3), the first line of a name counts."""
        try:
            with self.path.open("rb") as file:
                text = file.read(_MAX_BYTES).decode("utf-8", "replace")
        except OSError:
            return {}
        found: dict[str, int] = {}
        for line in text.split("\n"):
            name, *fields = line.split(":")
            # "+" and "-" are NIS's, and no names.
            if len(fields) > 1 and name and name[0] not in "+-#":
                number = fields[1]
                if _NUMBER.fullmatch(number) and int(number) <= LARGEST:
                    found.setdefault(name, int(number))
        return found


USERS = AccountFile(Path("/etc/passwd"), "user")
GROUPS = AccountFile(Path("/etc/group"), "group")


def stamp() -> tuple[tuple[int, ...], ...]:
    """Another one when either file is another."""
    return USERS.stamp(), GROUPS.stamp()

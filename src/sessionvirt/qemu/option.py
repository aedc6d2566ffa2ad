# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two ways to write an option of QEMU so that no value can become another option.

JSON where QEMU takes it (``-device``, ``-blockdev``, ``-object``, ``-netdev``; all since 7.2),
where a value cannot leave its quotes; ``key=value,...`` elsewhere, with commas doubled.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["joined", "structured"]


def joined(*words: str, **values: object) -> str:
    """``word,key=value``; None leaves a key out, booleans are on and off, ``_`` in a key is ``-``.

    :param words: given as they are: only constants and what cannot have a comma.
    """
    parts = [*words]
    for key, value in values.items():
        if isinstance(value, bool):
            value = "on" if value else "off"
        if value is not None:
            text = str(value).replace(",", ",,")
            parts.append(f"{key.replace('_', '-')}={text}")
    return ",".join(parts)


def structured(values: Mapping[str, object]) -> str:
    """JSON in ASCII, without blanks; None leaves a key out."""
    present = {key: value for key, value in values.items() if value is not None}
    return json.dumps(present, separators=(",", ":"))

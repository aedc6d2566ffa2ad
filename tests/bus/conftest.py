# SPDX-License-Identifier: LGPL-2.1-or-later
"""A polkit that misbehaves, and the names of what is asked again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.fakepolkit import FakePolkit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.polkit import Polkit


@pytest.fixture
def authority(polkit: Polkit) -> Iterator[FakePolkit]:
    """polkit's name, owned by the test; the real polkitd is away meanwhile."""
    polkit.stop()
    with FakePolkit() as fake:
        yield fake

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests beside ``inside`` share: they drive the test host from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.connection import Connection
    from host.machine import Machine


@pytest.fixture
def host(testhost: Machine) -> Iterator[Connection]:
    """A way into the host."""
    with testhost.connect() as connection:
        yield connection

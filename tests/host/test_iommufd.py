# SPDX-License-Identifier: LGPL-2.1-or-later
"""PCI devices as descriptors: a host of its own, with a kernel that has IOMMUFD.

Debian's kernels have it not, so this boots another one, where somebody has made it: that takes
eleven minutes, and is no test's business (``./dev host --kernel iommufd start`` does it). What is
done in the host is ``host.inside.iommufd_job``'s; each job has it as it was at its end.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from host import install, kernel, machine
from host.build import built
from host.emulator import emulator
from host.inside import iommufd_job
from sessionvirt.host.kvm import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from host.connection import Connection

pytestmark = [
    pytest.mark.host,
    pytest.mark.reboot,
    pytest.mark.apart,
    # The machine goes by its monitor and its pid; nobody keeps the object that started it.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

#: One that runs already; ``./dev host --name NAME --kernel iommufd start`` starts it.
VARIABLE = "SESSIONVIRT_TESTHOST_IOMMUFD"
NAME = "iommufd-test"


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A way into a host with that kernel."""
    if name := os.environ.get(VARIABLE):
        running = machine.running(name)
        assert running is not None, f"no test host {name!r} is running"
        with running.connect() as connection:
            install.put_tests(connection)
            yield connection
        return
    if kernel.ready() is None:
        pytest.skip("no kernel with IOMMUFD was made")
    request.getfixturevalue("host_parts")
    parts = (kernel.chosen(built(print), "iommufd", print), emulator(print))
    with (
        machine.boot(parts, NAME, print, kvm=probe().usable) as booted,
        booted.connect() as connection,
    ):
        install.furnish(connection, print)
        yield connection


@pytest.mark.parametrize("job", iommufd_job.JOBS, ids=lambda job: job.__name__)
def test_with_iommufd(job: Callable[[], None], host: Connection) -> None:
    """What the job's name says."""
    host.run(install.module("host.inside.iommufd_job", job.__name__), timeout=240)

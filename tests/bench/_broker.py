# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab as the broker's benchmarks need it: bus, polkit that says yes, one ordinary user."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lab import namespaces
from lab.bus import SystemBus
from lab.polkit import Polkit
from lab.stage import Flavour
from lab.users import User

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Room for a thousand leases of one user who asks as fast as it can.
POLICY = "share/polkit-1/actions/org.sessionvirt.Broker1.policy"
LIMITS = """\
[limits]
leases_per_user = 2000
leases_total = 2000
taps_per_user = 2000
queues_per_user = 2000
calls_per_second = 60000
"""


class Alice:
    """The client process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, *order: object) -> Any:
        """One order, its answer."""
        stdin, stdout = _pipes(self._process)
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise SystemExit("the client ended")
        return json.loads(answer)


@contextmanager
def laboratory() -> Iterator[None]:
    """Namespaces, the bus, polkitd with a rule that permits the network, broker.toml."""
    namespaces.enter()
    namespaces.enter_processes()
    namespaces.install()
    # The action's own default says yes to everybody, as it does to the person at the machine; a
    # rule would add its interpreter's two milliseconds.
    policy = namespaces.LAB / f"stage-{Flavour.PYPI}" / POLICY
    policy.write_text(policy.read_text().replace("auth_admin</allow_any>", "yes</allow_any>"))
    namespaces.install()
    with SystemBus(), Polkit():
        Path("/etc/sessionvirt/broker.toml").write_text(LIMITS)
        yield


@contextmanager
def alice() -> Iterator[Alice]:
    """The ordinary user's client; what it still holds ends with it."""
    user = User.named("alice")
    script = user.home / "client.py"
    shutil.copyfile(Path(__file__).with_name("_client.py"), script)
    process = subprocess.Popen(
        ["/usr/bin/python3", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        user=user.uid,
        group=user.gid,
        extra_groups=[],
        env=user.environment,
        cwd=user.home,
    )
    try:
        yield Alice(process)
    finally:
        for pipe in _pipes(process):
            pipe.close()
        process.wait()


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(pid)


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout

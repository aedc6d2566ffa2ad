# SPDX-License-Identifier: LGPL-2.1-or-later
"""The test host's disk, booted in a container: the same Debian at native speed, with less in it.

For writing tests, not for proving anything: the kernel is this machine's, there is no IOMMU, no
device and no virtual terminal, hence no active session. systemd, logind, polkitd, udevd, dbus and
the packages are real. Under TCG a command of Python takes seconds; here it takes what it takes.

As a program, inside: the agent on sockets (``python3 container.py``), started by :func:`start`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from host.build import Built

HERE = Path(__file__).resolve().parent
if __name__ != "__main__":
    from host import board
    from host.connection import HostError
    from host.machine import Machine, machines, running

#: Where the container sees the machine's directory, and this one.
INSIDE = "/run/testhost"
SOURCE = "/run/testhost-source/host"

#: systemd in a container hears of a new network device when it reads everything again.
UDEV_RULE = (
    'SUBSYSTEM=="net", ACTION=="add|remove", KERNEL=="svn_*", '
    'RUN+="/usr/bin/systemctl --no-block daemon-reload"\n'
)


def start(built: Built, name: str) -> Machine:
    """Boot it; it stays until it is ended.

    :raise HostError: one of that name runs, or it does not start.
    """
    if running(name):
        raise HostError(f"a test host {name!r} is running; ./dev host stop ends it")
    files = board.Files(machines() / name)
    shutil.rmtree(files.directory, ignore_errors=True)
    for part in ("lower", "upper", "work", "root"):
        (files.directory / part).mkdir(parents=True)
    script = f"""\
set -e
cd {files.directory}
mount --make-rprivate / 2>/dev/null || true
mount -o loop,ro,noload {built.image} lower
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root
mkdir -p root/etc/udev/rules.d
printf '%s' '{UDEV_RULE}' > root/etc/udev/rules.d/99-testhost.rules
ln -sf /dev/null root/etc/systemd/system/testhost-agent.service
echo $$ > qemu.pid
exec systemd-nspawn --boot --register=no --keep-unit --private-network --capability=all \\
    --bind=/dev/net/tun --bind={files.directory}:{INSIDE} --bind-ro={HERE}:{SOURCE} \\
    --machine=testhost --console=pipe --directory=root
"""
    environment = os.environ | {
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
    }
    with files.console.open("wb") as console:
        subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env=environment,
            start_new_session=True,
        )
    machine = Machine(files)
    leader = _leader(machine)
    # systemd's own socket is there before it has read its units.
    while not Path(f"/proc/{leader}/root/run/systemd/private").exists() and machine.alive():
        time.sleep(0.05)
    agent = ["nsenter", f"--target={leader}", "--all", "python3", f"{SOURCE}/container.py"]
    # Not with our output: whoever reads that to its end would wait for the container's.
    null = subprocess.DEVNULL
    subprocess.Popen(agent, stdin=null, stdout=null, stderr=null, start_new_session=True)
    return machine


def _leader(machine: Machine) -> int:
    """The container's first process, once it is systemd.

    :raise HostError: there is none after ten seconds.
    """
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if machine.files.pid.exists() and machine.alive():
            parent = machine.files.pid.read_text().strip()
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            if children and "systemd" in Path(f"/proc/{children[0]}/cmdline").read_text():
                return int(children[0])
        time.sleep(0.05)  # nothing says when
    raise HostError(f"the container does not start\n{machine.last_words()}")


def _serve() -> None:
    """The agent's conversations, on sockets instead of ports."""
    sys.path.insert(0, str(HERE.parent))
    from host import agent, channel

    class SocketPort(agent.Port):
        def __init__(self, descriptor: int) -> None:
            self._fd = descriptor
            self._writing = threading.Lock()

    def converse(connection: socket.socket) -> None:
        with connection:
            port = SocketPort(connection.fileno())
            mark = port.read_exactly(len(channel.MARK) + channel.TOKEN_BYTES)
            port.write(mark)
            agent.serve(port, mark[-channel.TOKEN_BYTES :])

    def listen(number: int) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{INSIDE}/channel{number}")
            listener.listen()
            while True:
                converse(listener.accept()[0])

    os.environ |= {"HOME": "/root", "LANG": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    for number in range(channel.PORTS):
        threading.Thread(target=listen, args=(number,)).start()


if __name__ == "__main__":
    _serve()

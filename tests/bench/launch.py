# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev bench launch``: from a definition to a running guest, beside raw QEMU and virt-qemu-run.

The guest has no network and nothing to boot: what is measured is the launcher. "Running" is the
answer to QMP's ``cont``; for the two commands it is the line in which they say so. Raw QEMU gets
the very argv that ours made, and the same QMP conversation over a bare socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

from bench._rows import Row, in_turn, report
from lab import namespaces
from lab.users import User
from sessionvirt.driver.domain import VirtualMachine
from sessionvirt.model.domain import parse_domain

ROUNDS = 15
DOMAIN = """\
<domain type='{type}'>
  <name>bench</name>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices><memballoon model='none'/></devices>
</domain>
"""


async def embedded() -> tuple[float, tuple[str, ...]]:
    """Once in this process: ms to running, and the argv."""
    domain = parse_domain(DOMAIN.format(type="kvm")).value
    start = time.perf_counter()
    async with VirtualMachine(domain) as vm:
        await vm.start()
        took = (time.perf_counter() - start) * 1e3
        await vm.kill()
        return took, vm.command


def raw(argv: tuple[str, ...]) -> float:
    """Once: ms from fork to the answer to ``cont``, by nothing but a socket."""
    number = int(next(m[1] for word in argv if (m := re.search(r"id=monitor,fd=(\d+)", word))))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.dup2(theirs.fileno(), number)
        try:
            start = time.perf_counter()
            with subprocess.Popen(argv, pass_fds=[number], stdin=subprocess.DEVNULL) as process:
                stream = ours.makefile("rw")
                stream.readline()
                for command in ("qmp_capabilities", "cont"):
                    stream.write(json.dumps({"execute": command}) + "\n")
                    stream.flush()
                    while "return" not in json.loads(stream.readline()):
                        pass
                took = (time.perf_counter() - start) * 1e3
                process.kill()
        finally:
            os.close(number)
    return took


def command(argv: list[str], sign: str, user: User, end: signal.Signals) -> float:
    """Once: ms from exec of a command to the line that holds ``sign``; as an ordinary user."""
    start = time.perf_counter()
    with subprocess.Popen(
        argv,
        env=user.environment,
        cwd=user.home,
        user=user.uid,
        group=user.gid,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if sign in line:
                took = (time.perf_counter() - start) * 1e3
                process.send_signal(end)
                process.wait()
                return took
    raise SystemExit(f"{argv[0]} never said {sign!r}:\n{''.join(said)}")


def main() -> None:
    # No process namespace: this would be its init, and virt-qemu-run waits for init to reap QEMU.
    namespaces.enter()
    namespaces.install()
    alice = User.named("alice")
    guest = alice.write("guest.xml", DOMAIN.format(type="kvm"))
    # virt-qemu-run takes "kvm" for a promise, which this machine may not keep.
    plain = alice.write("plain.xml", DOMAIN.format(type="qemu"))

    def ours() -> float:
        argv = ["sessionvirt", "run", "-v", "--no-console", str(guest)]
        return command(argv, "QEMU is process", alice, signal.SIGKILL)

    def theirs() -> float:
        argv = ["virt-qemu-run", "-v", f"--root={alice.home / 'root'}", str(plain)]
        return command(argv, "guest running", alice, signal.SIGTERM)  # it destroys its guest

    cold = ours()
    os.environ["XDG_CACHE_HOME"] = str(namespaces.LAB / "cache")
    argv = asyncio.run(embedded())[1]
    in_process, bare = in_turn(ROUNDS, lambda: asyncio.run(embedded())[0], lambda: raw(argv))
    peer = theirs if shutil.which("virt-qemu-run") else None
    with_cache, libvirt = in_turn(ROUNDS, ours, peer)
    report(
        "launch",
        [
            Row(
                "in process, to running", in_process, "raw QEMU, same argv", bare, "ms", "<= 1.5 x"
            ),
            Row("command, warm cache", with_cache, "virt-qemu-run", libvirt, "ms", "<= 0.4 x"),
            Row("command, warm cache", with_cache, "raw QEMU, same argv", bare, "ms"),
            Row("command, cold cache (once)", cold, "", None, "ms"),
        ],
    )


if __name__ == "__main__":
    main()

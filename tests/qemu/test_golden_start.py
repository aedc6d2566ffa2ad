# SPDX-License-Identifier: LGPL-2.1-or-later
"""The golden command lines, taken by the QEMU at hand: it starts, answers on QMP, and quits.

Same domains, same builder; only what cannot be the same is not: files are in a temporary directory,
TAPs are stream sockets (a TAP needs privilege), and KVM is TCG.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from golden.cases import BINARY, CASES, DIRECTORY
from sessionvirt.model.addresses import MacAddress
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.needs import needs
from sessionvirt.qemu.command import build, preparations
from sessionvirt.qemu.wiring import Accelerator, PasstWiring, UserWiring, Wiring

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sessionvirt.model.domain import Domain
    from sessionvirt.qemu.capabilities import Capabilities
    from sessionvirt.qemu.wiring import InterfaceWiring

pytestmark = pytest.mark.qemu

PATIENCE = 60.0
QEMU = shutil.which("qemu-system-x86_64")


def binary() -> Capabilities:
    """The golden binary's capabilities, at the real one's path, with its machine types."""
    import asyncio

    from sessionvirt.qemu import capabilities

    if QEMU is None:
        pytest.skip("needs qemu-system-x86_64")
    return asyncio.run(capabilities.probe(QEMU))


@pytest.fixture(scope="module")
def real() -> Capabilities:
    return binary()


def qcow2(path: Path) -> None:
    """An empty image of 1 MiB: header, refcount table, one refcount block, an empty L1 table."""
    cluster = 1 << 16
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        *(b"QFI\xfb", 3, 0, 0, 16, 1 << 20, 0, 1, 3 * cluster, cluster, 1, 0, 0),
        *(0, 0, 0, 4, 104),
    )
    table = struct.pack(">Q", 2 * cluster)
    counts = struct.pack(">4H", 1, 1, 1, 1)
    path.write_bytes(b"".join(part.ljust(cluster, b"\0") for part in (header, table, counts, b"")))


def kernel(path: Path) -> None:
    """What QEMU's loader takes for a bzImage; it is never run."""
    image = bytearray(8192)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = b"\x0c\x02"
    image[0x211] = 1
    image[0x22C:0x230] = b"\xff\xff\xff\x7f"
    path.write_bytes(image)


def prepare(case: str, where: Path) -> Domain:
    """The golden domain with its files, all below ``where``."""
    text = (DIRECTORY / f"{case}.xml").read_text()
    for name in ("images", "logs"):
        (where / name).mkdir()
        text = text.replace(f"/{name}", f"{where}/{name}")
    text = text.replace("machine='pc-q35-7.2'", "machine='q35'")
    text = text.replace("port='5907' autoport='no'", "port='-1'")  # may be taken here
    if case == "hostdevs":  # other guests have a bus 3 of their own
        text = text.replace("domain='0x0000' bus='0x03'", "domain='0xfffe' bus='0x03'")  # nowhere
    domain = parse_domain(text, file=case).value
    for disk in domain.disks:
        if disk.file is not None and disk.format == "qcow2":
            qcow2(where / disk.file)
        elif disk.file is not None:
            (where / disk.file).write_bytes(bytes(1 << 20))
    for nic in domain.interfaces:
        if nic.rom_file is not None:
            (where / nic.rom_file).write_bytes(bytes(512))
    if domain.os is not None and domain.os.kernel is not None:
        kernel(where / domain.os.kernel)
    if domain.os is not None and domain.os.initrd is not None:
        (where / domain.os.initrd).write_bytes(bytes(512))
    return domain


def test_qemu_knows_what_is_said_of_a_host_device(real: Capabilities, tmp_path: Path) -> None:
    """There is no such device here: what QEMU refuses is that, and nothing it is told before."""
    domain = prepare("hostdevs", tmp_path)
    ours, theirs = socket.socketpair()
    wiring = Wiring(
        theirs.fileno(), Accelerator.TCG, (UserWiring(MacAddress("52:54:00:11:22:05")),)
    )
    with ours, theirs:
        done = subprocess.run(
            build(domain, real, wiring).argv,
            pass_fds=wiring.passed_fds,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 1
    assert "fffe:03:00.0: no such host device" in done.stderr


def quit_politely(ours: socket.socket, domain: Domain) -> list[dict[str, object]]:
    """A QMP conversation: what prepares the domain, what is there, and the end."""
    commands: list[tuple[str, Mapping[str, object]]] = [
        ("qmp_capabilities", {}),
        *preparations(domain),
        *((name, {}) for name in ("query-status", "query-pci", "query-block", "quit")),
    ]
    replies: list[dict[str, object]] = []
    with ours.makefile("rw") as stream:
        assert "QMP" in json.loads(stream.readline())
        for name, arguments in commands:
            stream.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        stream.flush()
        while len(replies) < len(commands):
            reply = json.loads(stream.readline())
            replies += [] if "event" in reply else [reply]
    return replies


@pytest.mark.parametrize("case", [case for case in CASES if case != "hostdevs"])
def test_qemu_takes_it(case: str, real: Capabilities, tmp_path: Path) -> None:
    domain = prepare(case, tmp_path)
    assert real.devices >= BINARY.devices
    assert real.netdevs >= BINARY.netdevs
    ours, theirs = socket.socketpair()
    ends: list[socket.socket] = [ours, theirs]
    interfaces: list[InterfaceWiring] = []
    for need in needs(domain):
        mac = need.mac or MacAddress(f"52:54:00:00:00:{need.interface:02x}")
        if need.kind == "user" and case != "passt":
            interfaces.append(UserWiring(mac))
        else:
            ends += socket.socketpair()
            interfaces.append(PasstWiring(ends[-1].fileno(), mac))
    wiring = Wiring(theirs.fileno(), Accelerator.TCG, tuple(interfaces))
    command = build(domain, real, wiring)
    with subprocess.Popen(
        command.argv,
        pass_fds=wiring.passed_fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    ) as child:
        theirs.close()
        ours.settimeout(PATIENCE)
        try:
            replies = quit_politely(ours, domain)
            output, _ = child.communicate(timeout=PATIENCE)
        except (OSError, ValueError, AssertionError):
            child.kill()
            pytest.fail(child.communicate()[0] or "QEMU went away in silence")
        finally:
            for end in ends:
                end.close()
    assert child.returncode == 0, output
    if not case.startswith("kvm"):  # TCG has fewer features
        assert "arning" not in output
    assert not [reply for reply in replies if "error" in reply]
    assert '"status": "prelaunch"' in json.dumps(replies)
    if case == "hostile":
        assert (tmp_path / 'logs/a,append=on,,b=".log').exists()

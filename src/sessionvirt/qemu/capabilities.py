# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one QEMU binary can do: asked of it once, then remembered.

The question is one QMP conversation with ``-machine none``, all commands sent at once (some 60
ms). The answer is kept below ``$XDG_CACHE_HOME/sessionvirt`` under the binary's path, with the
identity of what was asked: real path, device, inode, size, time of change, and the same of the
module directories, because a module package that comes or goes changes what the binary can do. An
answer for another identity, of another format or that cannot be read is no answer: QEMU is asked
again. So the cache may be deleted at any time, is shared by all programs of the user, and is never
trusted beyond its owner (:func:`..host.paths.cache_directory`).

What this never does: ask binaries that nobody wants to start, ask about CPU features, fail because
of the cache. Not seen: a wrapper script that starts another binary than last time; :func:`forget`
is for a caller who finds QEMU greeting with another version than is written here.

Source: QEMU QMP reference: query-machines, qom-list-types, query-qmp-schema, query-cpu-definitions.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from sessionvirt.errors import LaunchError, NotFoundError, QemuError
from sessionvirt.host.paths import cache_directory, find_program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .qmp import Monitor

__all__ = ["Capabilities", "find_binary", "forget", "load", "probe"]

#: Raised when the fields or the way they are found change.
_FORMAT: Final = 1
#: Seconds for a QEMU without a machine to answer a few questions.
_PROBE_PATIENCE: Final = 30.0
#: The first QEMU with ``-object iommufd`` and ``fd=`` of vfio-pci.
_IOMMUFD_SINCE: Final = (9, 0, 0)


@dataclass(frozen=True)
class Capabilities:
    """What a binary can do.

    :param binary: absolute path, as it is to be executed.
    :param version: major, minor, micro.
    :param machines: each machine type and each alias, to the machine type.
    :param default_machine: the type without ``-machine``; empty where there is none.
    :param devices: what ``-device`` takes.
    :param objects: what ``-object`` takes.
    :param netdevs: what ``-netdev`` takes.
    :param cpu_models: what ``-cpu`` takes; empty where the target cannot tell.
    """

    binary: str
    version: tuple[int, int, int]
    machines: Mapping[str, str]
    default_machine: str
    devices: frozenset[str]
    objects: frozenset[str]
    netdevs: frozenset[str]
    cpu_models: frozenset[str]

    @property
    def takes_iommufd(self) -> bool:
        """Whether it takes a host device as descriptors (docs/devel/vfio-iommufd.rst)."""
        return "iommufd" in self.objects and self.version >= _IOMMUFD_SINCE


def find_binary(arch: str | None = None) -> str:
    """Find QEMU's system emulator for an architecture.

    :param arch: as in ``qemu-system-ARCH``; by default the host's.
    :raise NotFoundError: it is not installed.
    """
    arch = arch or os.uname().machine
    path = find_program(f"qemu-system-{arch}")
    if path is None:
        # Red Hat's only QEMU has a name of its own and is not in PATH.
        path = find_program("qemu-kvm") if arch == os.uname().machine else None
    if path is None:
        raise NotFoundError(
            f"QEMU for {arch} is not installed",
            evidence=f"no qemu-system-{arch} in {os.environ.get('PATH', os.defpath)}",
            advice="install qemu-system-x86 (Debian), qemu-system-x86-core (Fedora) or the like",
        )
    return path


async def load(binary: str, *, cache: str | None = None) -> Capabilities:
    """Return what a binary can do, from the cache if it is there.

    :param binary: absolute path of a QEMU system emulator.
    :param cache: directory to use instead of the user's.
    :raise NotFoundError: there is no such file.
    :raise LaunchError: it does not answer.
    """
    try:
        identity = _identity(binary)
    except OSError as error:
        raise NotFoundError(f"cannot find QEMU at {binary}: {error.strerror}") from error
    path = _cache_path(binary, cache)
    if path is not None and (found := _read(path, identity)) is not None:
        return found
    found = await probe(binary)
    if path is not None:
        _write(path, identity, found)
    return found


def forget(binary: str, *, cache: str | None = None) -> None:
    """Drop what is remembered of a binary."""
    path = _cache_path(binary, cache)
    if path is not None:
        with contextlib.suppress(OSError):
            os.unlink(path)


# --- asking


async def probe(binary: str) -> Capabilities:
    """Ask a binary, without the cache.

    :raise LaunchError: it does not start, or not answer as QEMU does.
    """
    from .launch import launch

    argv = [
        binary, "-S", "-no-user-config", "-nodefaults", "-display", "none", "-machine", "none",
    ]  # fmt: skip
    async with launch(argv, patience=_PROBE_PATIENCE) as running:
        try:
            return await _ask_in_time(binary, running.monitor)
        except QemuError as error:
            raise LaunchError(
                f"{binary} does not answer as QEMU does: {error.cause}",
                exit_code=running.child.returncode,
                command=tuple(argv),
                stderr="\n".join(filter(None, (error.evidence, running.child.stderr))),
            ) from error


async def _ask_in_time(binary: str, monitor: Monitor) -> Capabilities:
    import asyncio

    try:
        async with asyncio.timeout(_PROBE_PATIENCE):
            return await _ask(binary, monitor)
    except TimeoutError:
        raise QemuError(f"no answer within {_PROBE_PATIENCE:g} s") from None


async def _ask(binary: str, monitor: Monitor) -> Capabilities:
    import asyncio

    async def types(implements: str) -> frozenset[str]:
        arguments = {"implements": implements, "abstract": False}
        return _names(await monitor.execute("qom-list-types", arguments), "qom-list-types")

    async def cpus() -> frozenset[str]:
        # Some targets do not have the command; that is an answer, too.
        with contextlib.suppress(QemuError):
            reply = await monitor.execute("query-cpu-definitions")
            return _names(reply, "query-cpu-definitions")
        return frozenset()

    machines, schema, devices, objects, cpu_models = await asyncio.gather(
        monitor.execute("query-machines"),
        monitor.execute("query-qmp-schema"),
        types("device"),
        types("user-creatable"),
        cpus(),
    )
    names, default = _machines(machines)
    return Capabilities(
        binary=binary,
        version=monitor.version,
        machines=names,
        default_machine=default,
        devices=devices,
        objects=objects,
        netdevs=_netdevs(schema),
        cpu_models=cpu_models,
    )


def _rows(reply: object, what: str) -> list[dict[str, object]]:
    from .qmp import expect

    return [expect(dict, row, f"{what}[{n}]") for n, row in enumerate(expect(list, reply, what))]


def _names(reply: object, what: str) -> frozenset[str]:
    from .qmp import expect

    return frozenset(expect(str, row.get("name"), f"{what}.name") for row in _rows(reply, what))


def _machines(reply: object) -> tuple[dict[str, str], str]:
    from .qmp import expect

    names: dict[str, str] = {}
    default = ""
    for row in _rows(reply, "query-machines"):
        name = expect(str, row.get("name"), "query-machines.name")
        names[name] = name
        alias = row.get("alias")
        if isinstance(alias, str):
            names[alias] = name
        if row.get("is-default") is True:
            default = name
    return names, default


def _netdevs(reply: object) -> frozenset[str]:
    """Find the types of ``netdev_add`` in the schema: its names are masked, so by reference."""
    rows = {str(row.get("name")): row for row in _rows(reply, "query-qmp-schema")}
    command = rows.get("netdev_add", {})
    argument = rows.get(str(command.get("arg-type")), {})
    variants = _rows(argument.get("variants", []), "query-qmp-schema.variants")
    return frozenset(str(variant.get("case")) for variant in variants)


# --- remembering


def _identity(binary: str) -> list[list[str | int]]:
    """Return what tells whether the answer of last time is still true.

    :raise OSError: there is no such binary.
    """
    real = os.path.realpath(binary)
    identity = [_file_identity(real)]
    # Where distributions have --with-moddir, and QEMU's own override.
    triplet = f"{os.uname().machine}-linux-gnu"
    for directory in (
        os.environ.get("QEMU_MODULE_DIR", ""),
        f"/usr/lib/{triplet}/qemu",
        "/usr/lib64/qemu",
        "/usr/lib/qemu",
        "/usr/libexec/qemu",
    ):
        if directory:
            with contextlib.suppress(OSError):
                identity.append(_file_identity(directory))
    return identity


def _file_identity(path: str) -> list[str | int]:
    found = os.stat(path)
    return [path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def _cache_path(binary: str, cache: str | None) -> str | None:
    directory = cache if cache is not None else cache_directory()
    if directory is None:
        return None
    name = os.path.realpath(binary).replace("%", "%25").replace("/", "%2F")
    return os.path.join(directory, f"{name}.json")


def _read(path: str, identity: list[list[str | int]]) -> Capabilities | None:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if content["format"] != _FORMAT or content["identity"] != identity:
            return None
        return _decode(content["capabilities"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _decode(content: Mapping[str, object]) -> Capabilities:
    """Check and convert what the cache holds.

    :raise KeyError, TypeError, ValueError: it is not what was written.
    """

    def strings(key: str) -> frozenset[str]:
        values = content[key]
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            raise TypeError(key)
        return frozenset(values)

    binary, default = content["binary"], content["default_machine"]
    machines, version = content["machines"], content["version"]
    if not (isinstance(binary, str) and isinstance(default, str)):
        raise TypeError("binary")
    if not isinstance(machines, dict) or not all(isinstance(v, str) for v in machines.values()):
        raise TypeError("machines")
    if not isinstance(version, list):
        raise TypeError("version")
    major, minor, micro = (int(number) for number in version)
    return Capabilities(
        binary=binary,
        version=(major, minor, micro),
        machines=machines,
        default_machine=default,
        devices=strings("devices"),
        objects=strings("objects"),
        netdevs=strings("netdevs"),
        cpu_models=strings("cpu_models"),
    )


def _write(path: str, identity: list[list[str | int]], found: Capabilities) -> None:
    """Replace the file as a whole; where that fails there is no cache, and no harm."""
    values = {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in asdict(found).items()
    }
    content = {"format": _FORMAT, "identity": identity, "capabilities": values}
    fresh = f"{path}.{os.getpid()}"
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file)
        os.replace(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(fresh)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``/etc/sessionvirt/broker.toml``: what the administrator offers, and the limits.

A missing file is the built-in default: one NAT network, no LAN bridge. A wrong file opens nothing:
as long as it stands, nothing new is given, and the error says file, line and reason. Leases that
exist are not touched by it, and can always be given back.

The file is read again when it has changed; a network that is up keeps what it was started with.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import tomllib
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from . import accounts
from .bridges import read_bridge
from .direct import read_direct
from .errors import ConfigurationError
from .limits import Limits
from .networkconfig import BRIDGE_PREFIX, Network, default_domain, read_networks
from .pci import is_address
from .private import PrivatePolicy, read_private
from .publishpolicy import NO_PUBLISH_POLICY, PublishPolicy, read_publish
from .tomlsource import Source
from .wire import TAP_PREFIX, BridgeName, DeviceName, NetworkName, is_interface_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .bridges import LanBridge
    from .direct import DirectInterface

_MAX_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class PciPolicy:
    """What root says about the host's PCI devices, beyond what is found out.

    :param allow: whatever the host uses them for, they may be given.
    :param deny: they are never given.
    :param weak_isolation: groups are given although the IOMMU does not isolate as they say.
    """

    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    weak_isolation: bool = False


@dataclass(frozen=True, slots=True)
class Configuration:
    """What may be asked for at all."""

    limits: Limits
    networks: Mapping[NetworkName, Network]
    bridges: Mapping[BridgeName, LanBridge]
    directs: Mapping[DeviceName, DirectInterface]
    pci: PciPolicy
    private: PrivatePolicy
    source: str
    publish: PublishPolicy = NO_PUBLISH_POLICY


BUILTIN = Configuration(
    limits=Limits(),
    networks=MappingProxyType(
        {
            NetworkName("default"): Network(
                NetworkName("default"),
                (ipaddress.IPv4Interface("10.213.80.1/20"),),
                (ipaddress.IPv6Interface("fd53:7669:7274:1::1/64"),),
                domain=default_domain("default"),
            )
        }
    ),
    bridges=MappingProxyType({}),
    directs=MappingProxyType({}),
    pci=PciPolicy(),
    private=PrivatePolicy(),
    source="builtin",
)


@dataclass(slots=True)
class ConfigFile:
    """The file, read when it is new or has changed. By the worker's thread alone."""

    path: Path
    #: Those that :meth:`current` found last, the built-in ones where the file is wrong. The loop's
    #: thread goes by them: it neither waits for a file system nor meets a file that is half read.
    limits: Limits = BUILTIN.limits
    _seen: tuple[tuple[int, ...], ...] | None = None
    _last: Configuration | ConfigurationError = field(default_factory=lambda: BUILTIN)

    def current(self) -> Configuration:
        """What holds now.

        :raise ConfigurationError: the file is there and wrong.
        """
        try:
            configuration = self._read()
        except ConfigurationError:
            self.limits = BUILTIN.limits
            raise
        self.limits = configuration.limits
        return configuration

    def _read(self) -> Configuration:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            self._seen, self._last = None, BUILTIN
            return BUILTIN
        except OSError as error:
            raise ConfigurationError(f"{self.path}: {os.strerror(error.errno or 0)}") from error
        mine = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        identity = (mine, *accounts.stamp())  # names in it may be somebody else's by now
        if identity != self._seen:
            try:
                self._last = _load(self.path)
            except ConfigurationError as error:
                self._last = error
            self._seen = identity
        if isinstance(self._last, ConfigurationError):
            raise ConfigurationError(str(self._last)) from self._last
        return self._last


def _load(path: Path) -> Configuration:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigurationError(f"{path}: {os.strerror(error.errno or 0)}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path}: is not a regular file")
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise ConfigurationError(f"{path}: must be root's, and writable for root only")
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise ConfigurationError(f"{path}: is larger than {_MAX_BYTES} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 at byte {error.start}") from error
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number, or a nesting, beyond Python's own
        where = re.search(r"at line (\d+)", str(error))
        line = int(where[1]) if where else text.count("\n") + 1
        reason = str(error).partition(" (at ")[0]
        raise ConfigurationError(f"{path}:{line}: {reason}") from error
    return _Reader(path, text).configuration(table)


class _Reader(Source):
    """Turns the parsed table into a :class:`Configuration`."""

    def configuration(self, table: dict[str, object]) -> Configuration:
        self.only(table, (), "limits", "network", "private", "bridge", "direct", "pci", "publish")
        networks = read_networks(self, table)
        bridges: dict[BridgeName, LanBridge] = {}
        for name, body in self.tables(table, ("bridge",)).items():
            if not is_interface_name(name) or name.startswith(BRIDGE_PREFIX):
                raise self.wrong(("bridge", name), "is not the name of a bridge of the LAN")
            bridges[BridgeName(name)] = read_bridge(name, body, self)
        directs: dict[DeviceName, DirectInterface] = {}
        for name, body in self.tables(table, ("direct",)).items():
            if not is_interface_name(name) or name.startswith((BRIDGE_PREFIX, TAP_PREFIX)):
                raise self.wrong(("direct", name), "is not the name of an interface of the host's")
            directs[DeviceName(name)] = read_direct(name, body, self)
        return Configuration(
            limits=self._limits(self.tables(table, ("limits",), leaf=True)["limits"]),
            networks=MappingProxyType(networks if "network" in table else dict(BUILTIN.networks)),
            bridges=MappingProxyType(bridges),
            directs=MappingProxyType(directs),
            pci=self._pci(self.tables(table, ("pci",), leaf=True)["pci"]),
            private=read_private(self, table),
            source="file",
            publish=read_publish(self.tables(table, ("publish",), leaf=True)["publish"], self),
        )

    def _limits(self, body: dict[str, object]) -> Limits:
        known = {item.name for item in fields(Limits)}
        limits = Limits()
        for key, value in body.items():
            if key not in known:
                raise self.wrong(("limits", key), f"{key!a} is not a limit")
            if type(value) is not int or not 1 <= value <= Limits.CEILING:
                raise self.wrong(("limits", key), f"must be from 1 to {Limits.CEILING}")
            limits = replace(limits, **{key: value})
        return limits

    def _pci(self, body: dict[str, object]) -> PciPolicy:
        self.only(body, ("pci",), "allow", "deny", "weak_isolation")
        weak = self.flag(body, ("pci",), "weak_isolation")
        return PciPolicy(self._addresses(body, "allow"), self._addresses(body, "deny"), weak)

    def _addresses(self, body: dict[str, object], key: str) -> frozenset[str]:
        value = body.get(key, [])
        if not isinstance(value, list):
            raise self.wrong(("pci", key), "must be a list of PCI addresses")
        for one in value:
            if not isinstance(one, str) or not is_address(one):
                raise self.wrong(("pci", key), "has an entry that is not like 0000:03:00.0")
        return frozenset(value)

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
from typing import TYPE_CHECKING, TypeVar

from .errors import ConfigurationError
from .limits import Limits
from .pci import is_address
from .wire import BridgeName, NetworkName, is_interface_name, is_network_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

AddressT = TypeVar("AddressT", ipaddress.IPv4Interface, ipaddress.IPv6Interface)

BRIDGE_PREFIX = "svn_"
_MAX_BYTES = 256 * 1024
#: Below 4 usable addresses a network has no room for a guest; above this the hash set has no aim.
_PREFIX_LENGTHS = range(12, 30)
_UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")


@dataclass(frozen=True, slots=True)
class Network:
    """One managed network. The addresses are the gateway's own, with the prefix length."""

    name: NetworkName
    ipv4: ipaddress.IPv4Interface
    ipv6: ipaddress.IPv6Interface | None
    mtu: int = 1500
    mode: str = "nat"

    @property
    def bridge(self) -> BridgeName:
        """Its bridge: the prefix is what the firewall knows it by, so it is not configurable."""
        return BridgeName(BRIDGE_PREFIX + self.name)


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
    bridges: frozenset[BridgeName]
    pci: PciPolicy
    source: str


BUILTIN = Configuration(
    limits=Limits(),
    networks=MappingProxyType(
        {
            NetworkName("default"): Network(
                NetworkName("default"),
                ipaddress.IPv4Interface("10.213.80.1/20"),
                ipaddress.IPv6Interface("fd53:7669:7274:1::1/64"),
            )
        }
    ),
    bridges=frozenset(),
    pci=PciPolicy(),
    source="builtin",
)


@dataclass(slots=True)
class ConfigFile:
    """The file, read when it is new or has changed. By the worker's thread alone."""

    path: Path
    #: Those that :meth:`current` found last, the built-in ones where the file is wrong. The loop's
    #: thread goes by them: it neither waits for a file system nor meets a file that is half read.
    limits: Limits = BUILTIN.limits
    _seen: tuple[int, ...] | None = None
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
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
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


class _Reader:
    """Turns the parsed table into a :class:`Configuration`, and keys back into line numbers."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def configuration(self, table: dict[str, object]) -> Configuration:
        self._only(table, (), "limits", "network", "bridge", "pci")
        networks: dict[NetworkName, Network] = {}
        for name, body in self._tables(table, "network").items():
            network = self._network(name, body)
            self._apart(network, networks)
            networks[network.name] = network
        bridges = set()
        for name, body in self._tables(table, "bridge").items():
            if not is_interface_name(name) or name.startswith(BRIDGE_PREFIX):
                raise self._wrong(("bridge", name), "is not the name of a bridge of the LAN")
            self._only(body, ("bridge", name))
            bridges.add(BridgeName(name))
        return Configuration(
            limits=self._limits(self._tables(table, "limits", leaf=True)["limits"]),
            networks=MappingProxyType(networks if "network" in table else dict(BUILTIN.networks)),
            bridges=frozenset(bridges),
            pci=self._pci(self._tables(table, "pci", leaf=True)["pci"]),
            source="file",
        )

    def _tables(
        self, table: dict[str, object], key: str, *, leaf: bool = False
    ) -> dict[str, dict[str, object]]:
        found = {key: table.get(key, {})} if leaf else table.get(key, {})
        if not isinstance(found, dict):
            raise self._wrong((key,), "must be a table")
        result: dict[str, dict[str, object]] = {}
        for name, body in found.items():
            if not isinstance(body, dict):
                raise self._wrong((key,) if leaf else (key, name), "must be a table")
            result[name] = body
        return result

    def _limits(self, body: dict[str, object]) -> Limits:
        known = {item.name for item in fields(Limits)}
        limits = Limits()
        for key, value in body.items():
            if key not in known:
                raise self._wrong(("limits", key), f"{key!a} is not a limit")
            if type(value) is not int or not 1 <= value <= Limits.CEILING:
                raise self._wrong(("limits", key), f"must be from 1 to {Limits.CEILING}")
            limits = replace(limits, **{key: value})
        return limits

    def _pci(self, body: dict[str, object]) -> PciPolicy:
        self._only(body, ("pci",), "allow", "deny", "weak_isolation")
        weak = body.get("weak_isolation", False)
        if not isinstance(weak, bool):
            raise self._wrong(("pci", "weak_isolation"), "must be true or false")
        return PciPolicy(self._addresses(body, "allow"), self._addresses(body, "deny"), weak)

    def _addresses(self, body: dict[str, object], key: str) -> frozenset[str]:
        value = body.get(key, [])
        if not isinstance(value, list):
            raise self._wrong(("pci", key), "must be a list of PCI addresses")
        for one in value:
            if not isinstance(one, str) or not is_address(one):
                raise self._wrong(("pci", key), "has an entry that is not like 0000:03:00.0")
        return frozenset(value)

    def _network(self, name: str, body: dict[str, object]) -> Network:
        at = ("network", name)
        if not is_network_name(name):
            raise self._wrong(at, "a name has 1 to 11 of a-z, 0-9 and _, a letter first")
        self._only(body, at, "mode", "ipv4", "ipv6", "mtu")
        if body.get("mode", "nat") != "nat":
            raise self._wrong((*at, "mode"), 'must be "nat"')
        mtu = body.get("mtu", 1500)
        if type(mtu) is not int or not 1280 <= mtu <= 65521:
            raise self._wrong((*at, "mtu"), "must be from 1280 to 65521 bytes")
        ipv4 = self._interface(at, "ipv4", body, ipaddress.IPv4Interface)
        if ipv4 is None:
            raise self._wrong(at, "ipv4 is missing: the gateway's address, like 10.1.0.1/24")
        if ipv4.network.prefixlen not in _PREFIX_LENGTHS:
            raise self._wrong((*at, "ipv4"), "must have a prefix length from 12 to 29")
        ipv6 = self._interface(at, "ipv6", body, ipaddress.IPv6Interface)
        if ipv4.ip.is_loopback or ipv4.ip.is_multicast or ipv4.ip.is_link_local:
            raise self._wrong((*at, "ipv4"), "must not be loopback, link-local or multicast")
        if ipv6 is not None and not (ipv6.network.prefixlen == 64 and ipv6.ip in _UNIQUE_LOCAL):
            raise self._wrong((*at, "ipv6"), "must be a unique local address (fc00::/7) with /64")
        return Network(NetworkName(name), ipv4, ipv6, mtu)

    def _interface(
        self,
        at: tuple[str, ...],
        key: str,
        body: dict[str, object],
        make: Callable[[str], AddressT],
    ) -> AddressT | None:
        text = body.get(key)
        if text is None:
            return None
        try:
            if not isinstance(text, str) or "/" not in text or "%" in text:
                raise ValueError(text)
            interface = make(text)
        except ValueError as error:
            raise self._wrong((*at, key), "must be an address with a prefix length") from error
        network = interface.network
        if interface.ip in (network.network_address, network.broadcast_address):
            raise self._wrong((*at, key), "must be the gateway's own address in the network")
        return interface

    def _apart(self, network: Network, others: Mapping[NetworkName, Network]) -> None:
        for other in others.values():
            if network.ipv4.network.overlaps(other.ipv4.network):
                raise self._wrong(
                    ("network", network.name, "ipv4"), f"overlaps that of {other.name}"
                )
            if network.ipv6 and other.ipv6 and network.ipv6.network.overlaps(other.ipv6.network):
                raise self._wrong(
                    ("network", network.name, "ipv6"), f"overlaps that of {other.name}"
                )

    def _only(self, body: dict[str, object], at: tuple[str, ...], *known: str) -> None:
        for key in body:
            if key not in known:
                raise self._wrong((*at, key), f"{key!a} is not known here")

    def _wrong(self, key: tuple[str, ...], reason: str) -> ConfigurationError:
        return ConfigurationError(f"{self._path}:{self._line(key)}: {'.'.join(key)!a}: {reason}")

    def _line(self, key: tuple[str, ...]) -> int:
        """The line that gives ``key``, or the nearest one above it; 1 where none is found.

        tomllib keeps no positions. This reads headers and ``key =`` lines as people write them; a
        strange spelling costs a less exact line number, never a wrong decision.
        """
        best, header = 1, ""
        for number, line in enumerate(self._lines, 1):
            stripped = line.strip().replace('"', "").replace("'", "")
            if stripped.startswith("["):
                header = stripped.split("#")[0].strip("[] ")
                if ".".join(key[: len(header.split("."))]) == header:
                    best = number
            elif "=" in stripped:
                full = ".".join(filter(None, (header, stripped.partition("=")[0].strip())))
                if full == ".".join(key):
                    return number
        return best

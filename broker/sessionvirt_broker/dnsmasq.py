# SPDX-License-Identifier: LGPL-2.1-or-later
"""DHCP and DNS of a managed network: dnsmasq's files, and who starts it.

dnsmasq runs as a user of its own, never as root and never as the broker. Under systemd the broker
starts nothing: udev's rule for the bridge wants ``sessionvirt-dnsmasq@BRIDGE.service``. Elsewhere
the :class:`Keeper`, a process that was started before the broker gave root's uid up, does.

Only hosts that were allocated are answered: one file a TAP in a directory that dnsmasq watches. An
entry that is removed stays in its memory until it ends; that is harmless as long as an address goes
to another MAC as late as possible, which ``addresses.py`` sees to. Names lie in a directory of
their own, whose files dnsmasq also forgets.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from .dnsmasqfile import configuration, host_line, name_lines
from .errors import HostFailure
from .networkconfig import PRIVATE, Mode, Network, StaticHost, network_of
from .steps import Step
from .wire import Mac

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from .host import Host

PROGRAM = "/usr/sbin/dnsmasq"
#: The keeper answers at once; this is for one that hangs.
_KEEPER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class NetworkFiles(Step):
    """The directory that dnsmasq reads. As it has all of the network, the journal has."""

    NAME: ClassVar[str] = "network-files"

    bridge: str
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    mtu: int
    mode: str = Mode.NAT.value
    nat6: int = 0
    ipv6_out: int = 0
    domain: str = ""
    #: "NUMBER TEXT", "LABEL MAC ADDRESS...", "NAME ADDRESS".
    options: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    records: tuple[str, ...] = ()

    @classmethod
    def of(cls, network: Network, *, ipv6_out: bool) -> Self:
        """The step for a network."""
        return cls(
            network.bridge,
            tuple(map(str, network.ipv4)),
            tuple(map(str, network.ipv6)),
            network.mtu,
            network.mode.value,
            int(network.nat6),
            int(ipv6_out),
            network.domain,
            tuple(f"{number} {text}" for number, text in network.options),
            tuple(
                " ".join((host.label, host.mac, *map(str, host.addresses())))
                for host in network.hosts
            ),
            tuple(f"{name} {address}" for name, address in network.records),
        )

    def network(self) -> Network:
        """The network again, as it was started."""
        options = (one.partition(" ") for one in self.options)
        records = (one.split(" ") for one in self.records)
        name = network_of(self.bridge)
        return Network(
            name,
            tuple(map(ipaddress.IPv4Interface, self.ipv4)),
            tuple(map(ipaddress.IPv6Interface, self.ipv6)),
            mtu=self.mtu,
            mode=Mode(self.mode),
            nat6=bool(self.nat6),
            domain=self.domain,
            options=tuple((int(number), text) for number, _, text in options),
            hosts=tuple(_static_host(*one.split(" ")) for one in self.hosts),
            records=tuple((name, ipaddress.ip_address(text)) for name, text in records),
            own_bridge=self.bridge if name == PRIVATE else "",
        )

    def describe(self) -> str:
        return f"write the DHCP and DNS configuration of {self.bridge}"

    def describe_undo(self) -> str:
        return f"remove the DHCP and DNS configuration of {self.bridge}"

    def execute(self, host: Host) -> Self:
        directory = host.paths.networks / self.bridge
        # Nobody is on this network yet: entries that lie here are of guests that are gone, and
        # their addresses may be somebody else's next.
        shutil.rmtree(directory, ignore_errors=True)
        for path in (directory, directory / "hosts", directory / "names"):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        text = configuration(directory, self.network(), ipv6_out=bool(self.ipv6_out))
        _publish(directory / "dnsmasq.conf", text)
        return self

    def undo(self, host: Host) -> None:
        directory = host.paths.networks / self.bridge
        shutil.rmtree(directory, ignore_errors=True)  # which takes no link for a directory
        if not directory.is_symlink():
            _part(directory / "dnsmasq.conf").unlink(missing_ok=True)


def _static_host(label: str, mac: str, *texts: str) -> StaticHost:
    host = StaticHost(label, Mac(mac))
    for address in map(ipaddress.ip_address, texts):
        if isinstance(address, ipaddress.IPv4Address):
            host = replace(host, ipv4=address)
        else:
            host = replace(host, ipv6=address)
    return host


@dataclass(frozen=True, slots=True)
class HostEntry(Step):
    """The addresses that one MAC gets by DHCP, and its name.

    :param name: its label in DNS; empty: it has none.
    :param domain: as of the network.
    """

    NAME: ClassVar[str] = "dhcp-host"

    bridge: str
    ifname: str
    mac: str
    ipv4: str
    ipv6: tuple[str, ...]
    name: str = ""
    domain: str = ""

    def describe(self) -> str:
        # Without the name: Plan would tell whether somebody else's machine has it.
        return f"let DHCP on {self.bridge} give {self.addresses} to {self.mac}"

    def describe_undo(self) -> str:
        return f"remove {self.mac} from DHCP on {self.bridge}"

    @property
    def addresses(self) -> str:
        """For a person: one address or several."""
        return " and ".join(filter(None, (self.ipv4, *self.ipv6)))

    def execute(self, host: Host) -> Self:
        directory = host.paths.networks / self.bridge
        # A network that an earlier edition of the broker started knows no names.
        if self.name and (directory / "names").is_dir():
            lines = name_lines(self.domain, self.name, self.ipv4, self.ipv6)
            _publish(directory / "names" / self.ifname, lines)
        entry = host_line(self.mac, self.ipv4, self.ipv6)
        _publish(directory / "hosts" / self.ifname, entry)
        return self

    def undo(self, host: Host) -> None:
        directory = host.paths.networks / self.bridge
        for path in (directory / kind / self.ifname for kind in ("hosts", "names")):
            # Not through a link that somebody has put there: see steps.decode().
            if not directory.is_symlink() and not path.parent.is_symlink():
                path.unlink(missing_ok=True)
                _part(path).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RunDnsmasq(Step):
    """Where there is no systemd: have the keeper run it."""

    NAME: ClassVar[str] = "dnsmasq"

    bridge: str

    def describe(self) -> str:
        return f"run dnsmasq on {self.bridge}"

    def describe_undo(self) -> str:
        return f"end dnsmasq on {self.bridge}"

    def execute(self, host: Host) -> Self:
        if host.keeper is None:
            raise HostFailure("nothing on this host starts dnsmasq")
        host.keeper.command("start", self.bridge)
        return self

    def undo(self, host: Host) -> None:
        # A keeper that died with the former broker took its dnsmasq with it.
        if host.keeper is not None:
            host.keeper.command("stop", self.bridge)

    def resume(self, host: Host) -> None:
        self.execute(host)


class Keeper:
    """The broker's end of the socket to ``keeper.py``; owns it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(_KEEPER_SECONDS)

    def command(self, verb: str, bridge: str) -> None:
        """One request, one answer.

        :raise HostFailure: it is gone, or could not.
        """
        request = f"{verb} {bridge}".encode("ascii")
        try:
            self._connection.send(request)
            answer = self._connection.recv(64)
            # An answer that came too late last time is not this one's.
            while answer and not answer.startswith(request + b" "):
                answer = self._connection.recv(64)
        except OSError as error:
            raise HostFailure("the keeper of dnsmasq does not answer") from error
        if answer != request + b" ok":
            raise HostFailure(f"dnsmasq could not {verb}")

    def close(self) -> None:
        """The keeper ends, and its dnsmasq with it."""
        self._connection.close()


def _part(path: Path) -> Path:
    """Where a file lies until it is whole: outside of ``hosts`` and ``names``."""
    return path.parent.parent / f".{path.name}.part"


def _publish(path: Path, text: str) -> None:
    """Put a file there whole, readable for dnsmasq."""
    part = _part(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(part, flags, 0o644)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o644)  # the umask is 0077
        file.write(text)
    part.rename(path)

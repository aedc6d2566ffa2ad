# SPDX-License-Identifier: LGPL-2.1-or-later
"""DHCP and DNS of a managed network: dnsmasq's files, and who starts it.

dnsmasq runs as a user of its own, never as root and never as the broker. Under systemd the broker
starts nothing: udev's rule for the bridge wants ``sessionvirt-dnsmasq@BRIDGE.service``. Elsewhere
the :class:`Keeper`, a process that was started before the broker gave root's uid up, does.

Only hosts that were allocated are answered: one file a TAP in a directory that dnsmasq watches. An
entry that is removed stays in its memory until it ends; that is harmless as long as an address goes
to another MAC as late as possible, which ``addresses.py`` sees to.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from .errors import HostFailure
from .steps import Step

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from .host import Host

PROGRAM = "/usr/sbin/dnsmasq"
#: The keeper answers at once; this is for one that hangs.
_KEEPER_SECONDS = 5.0


def configuration(directory: Path, bridge: str, ipv4: str, ipv6: str, mtu: int) -> str:
    """dnsmasq's configuration file for one network; see dnsmasq(8) for each line."""
    network4 = ipaddress.IPv4Interface(ipv4).network
    lines = [
        f"interface={bridge}",
        "except-interface=lo",
        "bind-dynamic",
        "no-hosts",
        "domain-needed",
        "bogus-priv",
        "pid-file=",
        "leasefile-ro",
        "dhcp-authoritative",
        "no-ping",
        f"dhcp-lease-max={network4.num_addresses}",
        f"dhcp-range={network4.network_address},static,{network4.netmask},1h",
        f"dhcp-option=option:mtu,{mtu}",
        f"dhcp-hostsdir={directory / 'hosts'}",
    ]
    if ipv6:
        lines += [
            f"dhcp-range={ipaddress.IPv6Interface(ipv6).network.network_address},static,64,1h",
            # Router lifetime 0: addresses by DHCPv6, and no default route that leads nowhere.
            "enable-ra",
            f"ra-param={bridge},60,0",
        ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class NetworkFiles(Step):
    """The directory that dnsmasq reads."""

    NAME: ClassVar[str] = "network-files"

    bridge: str
    ipv4: str
    ipv6: str
    mtu: int

    def describe(self) -> str:
        return f"write the DHCP and DNS configuration of {self.bridge}"

    def describe_undo(self) -> str:
        return f"remove the DHCP and DNS configuration of {self.bridge}"

    def execute(self, host: Host) -> Self:
        directory = host.paths.networks / self.bridge
        # Nobody is on this network yet: entries that lie here are of guests that are gone, and
        # their addresses may be somebody else's next.
        shutil.rmtree(directory, ignore_errors=True)
        for path in (directory, directory / "hosts"):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        text = configuration(directory, self.bridge, self.ipv4, self.ipv6, self.mtu)
        _publish(directory / "dnsmasq.conf", text)
        return self

    def undo(self, host: Host) -> None:
        directory = host.paths.networks / self.bridge
        shutil.rmtree(directory, ignore_errors=True)
        _part(directory / "dnsmasq.conf").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class HostEntry(Step):
    """The addresses that one MAC gets by DHCP."""

    NAME: ClassVar[str] = "dhcp-host"

    bridge: str
    ifname: str
    mac: str
    ipv4: str
    ipv6: str

    def describe(self) -> str:
        return f"let DHCP on {self.bridge} give {self.addresses} to {self.mac}"

    def describe_undo(self) -> str:
        return f"remove {self.mac} from DHCP on {self.bridge}"

    @property
    def addresses(self) -> str:
        """For a person: one or two addresses."""
        return " and ".join(filter(None, (self.ipv4, self.ipv6)))

    def execute(self, host: Host) -> Self:
        entry = ",".join([self.mac, self.ipv4, *([f"[{self.ipv6}]"] if self.ipv6 else [])])
        _publish(host.paths.networks / self.bridge / "hosts" / self.ifname, entry + "\n")
        return self

    def undo(self, host: Host) -> None:
        path = host.paths.networks / self.bridge / "hosts" / self.ifname
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
    """Where a file lies until it is whole: outside of ``hosts``."""
    return path.parent.parent / f".{path.name}.part"


def _publish(path: Path, text: str) -> None:
    """Put a file there whole, readable for dnsmasq."""
    part = _part(path)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o644)  # the umask is 0077
        file.write(text)
    part.rename(path)

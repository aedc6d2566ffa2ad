# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain's interfaces made real: TAP devices from the broker, or user-mode networks.

The TAPs come with everything else that the start asks of the broker (:mod:`.lease`). A user-mode
interface is passt, over a socket pair that we make, where passt and a QEMU that can use it are
installed and the host has a way out; else QEMU's own.

What this never does: keep a descriptor that QEMU has. The caller closes the exit stack's part of
them (:meth:`Network.handed_over`) as soon as QEMU has been spawned.
"""

from __future__ import annotations

import binascii
import os
import socket
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sessionvirt.descriptors import Fd
from sessionvirt.errors import LaunchError, NotFoundError, UsageError
from sessionvirt.host.paths import find_program
from sessionvirt.host.routes import has_default_route
from sessionvirt.host.userns import may_make_user_namespaces
from sessionvirt.model.addresses import MacAddress, parse_mac
from sessionvirt.model.needs import NeedKind, needs
from sessionvirt.qemu.process import Child, describe_exit
from sessionvirt.qemu.wiring import HostdevWiring, PasstWiring, TapWiring, UserWiring

from .lease import connect_broker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AsyncExitStack, ExitStack

    from sessionvirt.broker_data import Lease, TapGrant
    from sessionvirt.broker_requests import Request
    from sessionvirt.model.domain import Domain
    from sessionvirt.model.needs import Need
    from sessionvirt.model.portforward import Ports
    from sessionvirt.qemu.capabilities import Capabilities
    from sessionvirt.qemu.wiring import InterfaceWiring

__all__ = [
    "Joined", "Network", "connect", "default_mac", "find_passt", "join_user", "tap_wiring",
]  # fmt: skip

_VHOST_NET = "/dev/vhost-net"


@dataclass(frozen=True)
class Joined:
    """One interface's other end.

    :param tap: what the broker gave; None: it was not asked.
    :param helper: the process that is its network; None: there is none.
    """

    wiring: InterfaceWiring
    tap: TapGrant | None = None
    helper: Child | None = None


@dataclass(frozen=True)
class Network:
    """The interfaces of one start.

    :param joined: one for each interface, in order.
    :param lease: what the broker granted; None where it was not asked.
    """

    joined: tuple[Joined, ...]
    lease: Lease | None

    @property
    def wirings(self) -> tuple[InterfaceWiring, ...]:
        """One for each interface, in order."""
        return tuple(one.wiring for one in self.joined)

    @property
    def hold_fds(self) -> tuple[int, ...]:
        """Descriptors that QEMU inherits and never uses."""
        return () if self.lease is None else (self.lease.hold.fileno(),)

    @property
    def hostdevs(self) -> HostdevWiring | None:
        """The host's devices, where the broker gave them as descriptors.

        Each came with an iommufd; the first serves all, and the others are closed with ours.
        """
        given = [grant.fds for grant in self.lease.devices] if self.lease is not None else []
        if not given or not all(given):
            return None
        return HostdevWiring(
            iommufd=given[0][0].fileno(), devices=tuple(device.fileno() for _, device in given)
        )

    def check(self) -> None:
        """Find out whether every helper still runs: QEMU goes on without, and says nothing.

        :raise LaunchError: one does not.
        """
        for helper in (one.helper for one in self.joined):
            if helper is not None and helper.returncode is not None:
                raise LaunchError(
                    f"{helper.command[0]} {describe_exit(helper.returncode)}, so the guest would "
                    "have no network",
                    exit_code=helper.returncode,
                    command=helper.command,
                    stderr=helper.stderr,
                    advice="passt(1) may tell why; --network none starts the machine without",
                )


def default_mac(vm: str, interface: int) -> MacAddress:
    """Return an address for a user-mode interface without one; the same at every start."""
    number = binascii.crc32(f"{os.getuid()}/{vm}/{interface}".encode()) & 0xFFFFFF
    return parse_mac(
        ":".join(f"{byte:02x}" for byte in b"\x52\x54\x00" + number.to_bytes(3, "big"))
    )


async def connect(
    domain: Domain,
    capabilities: Capabilities,
    requests: Sequence[Request],
    *,
    resources: AsyncExitStack,
    handed_over: ExitStack,
    vhost: bool,
    interactive: bool,
    bus_address: str | None,
) -> Network:
    """Make every interface of a domain, and take what else its start needs of the broker.

    :param requests: the domain's, to the broker, its TAPs in order among them.
    :param resources: gets what has to live as long as QEMU.
    :param handed_over: gets the descriptors that QEMU inherits; to be closed when it has.
    :param vhost: let the kernel move the packets, where it can and no document says otherwise.
    :param interactive: the broker may show a prompt.
    :param bus_address: of the system bus; by default the usual one.
    :raise SessionvirtError: whatever the broker or passt says.
    """
    lease: Lease | None = None
    if requests:
        async with await connect_broker(bus_address) as client:
            lease = await client.acquire(requests, domain.name, interactive=interactive)
        handed_over.callback(lease.close)
    taps = iter(lease.taps if lease is not None else ())
    joined: list[Joined] = []
    for need in needs(domain):
        if need.kind is NeedKind.TAP:
            grant = next(taps)
            joined.append(Joined(tap_wiring(need, grant, handed_over, vhost=vhost), grant))
            continue
        joined.append(join_user(need, domain.name, capabilities, handed_over))
        if (helper := joined[-1].helper) is not None:
            await resources.enter_async_context(helper)
    return Network(tuple(joined), lease)


def join_user(need: Need, vm: str, capabilities: Capabilities, handed_over: ExitStack) -> Joined:
    """Make a user-mode interface; the helper, if it has one, is the caller's.

    :param handed_over: as of :func:`connect`.
    """
    mac = need.mac or default_mac(vm, need.interface)
    passt = find_passt(capabilities)
    if passt is None:
        _refuse_for_slirp(need)
        return Joined(UserWiring(mac, need.ports))
    helper, fd = _start_passt(passt, need.ports, handed_over)
    return Joined(PasstWiring(fd, mac), helper=helper)


def tap_wiring(need: Need, grant: TapGrant, handed_over: ExitStack, *, vhost: bool) -> TapWiring:
    """What QEMU is told of a TAP.

    The descriptors of /dev/vhost-net come from the broker. Where they did not fit into its answer,
    a user who may opens them here.

    :param vhost: as of :func:`connect`.
    :raise NotFoundError: the document insists on vhost, and there is none.
    """
    vhost_fds = [fd.fileno() for fd in grant.vhost_fds]
    wanted = vhost if need.vhost is None else need.vhost
    if wanted and not vhost_fds and os.access(_VHOST_NET, os.R_OK | os.W_OK):
        for _ in grant.fds:
            fd = handed_over.enter_context(Fd(os.open(_VHOST_NET, os.O_RDWR | os.O_CLOEXEC)))
            vhost_fds.append(fd.fileno())
    if need.vhost and not vhost_fds:
        raise NotFoundError(
            f"interface {need.interface} is to have vhost, and it cannot",
            evidence=f"the broker gave no descriptor of {_VHOST_NET}, and you may not open it",
            advice="write no name='vhost', which is used anyway where it can be; 'modprobe "
            "vhost_net' shows whether this host has it, and one start has at most 16 descriptors",
        )
    return TapWiring(
        fds=tuple(fd.fileno() for fd in grant.fds),
        mac=parse_mac(grant.mac),
        mtu=grant.mtu,
        vhost_fds=tuple(vhost_fds),
    )


def find_passt(capabilities: Capabilities) -> str | None:
    """Return the program for a user-mode network; None: it is QEMU's own.

    passt refuses to start on a host without a default route or where this user may not make user
    namespaces, QEMU's own does not. The passt of Debian 12 repeats what it sent where a guest has
    closed its half of a connection (measured), so it is used only where there is nothing else.

    :raise NotFoundError: there is neither.
    """
    passt = find_program("passt") if "stream" in capabilities.netdevs else None
    if "user" in capabilities.netdevs:
        usable = passt and has_default_route() and _says_its_version(passt)
        return passt if usable and may_make_user_namespaces() else None
    if passt is None:
        raise NotFoundError(
            "no user-mode network is available",
            evidence=f"{capabilities.binary} has no slirp, and passt is not installed",
            advice="install passt",
        )
    return passt


def _says_its_version(passt: str) -> bool:
    """Whether it is one that knows: that of Debian 12 (2023-03-09) says "unknown version"."""
    said = subprocess.run([passt, "--version"], capture_output=True, check=False, timeout=5)
    return said.returncode == 0 and b"unknown version" not in said.stdout


def _refuse_for_slirp(need: Need) -> None:
    six = [ports for ports in need.ports if ports.address and ":" in ports.address]
    if six:
        raise UsageError(
            f"interface {need.interface}: QEMU's own user-mode network has no ports on IPv6",
            evidence=", ".join(map(str, six)),
            advice="install passt, name an IPv4 address, or use a managed network: --network NAME",
        )


def _start_passt(program: str, ports: Sequence[Ports], handed_over: ExitStack) -> tuple[Child, int]:
    """Start passt; returns it and the descriptor that QEMU is to inherit."""
    ours, theirs = socket.socketpair()
    handed_over.enter_context(ours)
    with theirs:
        fd = theirs.fileno()
        return Child.spawn(
            (program, "--foreground", "--fd", str(fd), *_passt_ports(ports)), pass_fds=(fd,)
        ), ours.fileno()


def _passt_ports(ports: Iterable[Ports]) -> Iterator[str]:
    """passt(1): ``--tcp-ports [ADDRESS/]FIRST-LAST:FIRST-LAST``."""
    for one in ports:
        ends = [f"{first}-{first + one.count - 1}" for first in (one.host, one.guest)]
        address = f"{one.address}/" if one.address else ""
        yield from (f"--{one.protocol}-ports", address + ":".join(ends))

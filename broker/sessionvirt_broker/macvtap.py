# SPDX-License-Identifier: LGPL-2.1-or-later
"""The resource kind ``direct``: a macvtap device on an interface of the host's, filtered.

It is a guest's place on a LAN where the host has no bridge. As of a TAP (``tap.py``), whoever holds
its fd is taken to be hostile, and may change the device's MAC without any capability
(SIOCSIFHWADDR, tap_ioctl() in drivers/net/tap.c): that ends the lease.

What is different. The device's own MAC is the guest's, for by it the kernel finds it. It outlives
its descriptors, so that none of them is its end: the hold is. Its character device, ``/dev/tapN``,
is found by its ifindex alone, and devtmpfs is the same for every network namespace: where a
container has a macvtap of the same index, the node may be *that* one's. So the index is a random
one, asked for, and what was opened is compared with sysfs.

The host and its guests do not reach each other by it, and nothing of the host's stack reads what is
for them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, cast

from .direct import DirectMode
from .egress import MacvtapRules
from .errors import Busy, HostFailure, InvalidRequest, NotSupported, StateChanged
from .guestcard import guest_mac, readable_name
from .kind import Offer, Owner, Plan, Request, Shared
from .limits import Share
from .lower import find_lower, offer
from .steps import Step
from .vhost import OpenVhost, has_vhost
from .wire import TAP_PREFIX, DeviceName, Mac, TapName, device_name, mac, shown, tap_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import Configuration
    from .direct import DirectInterface
    from .host import Host
    from .kind import Adopted, Watched
    from .lower import Lower
    from .wire import Fields

#: The shared record of the table.
EGRESS = "egress"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
#: struct ifreq, as in ``tun.py``; the name in it is not looked at.
_IFREQ = struct.Struct("16sH22x")
#: Indexes that are asked for, beyond those that the kernel counts through.
_INDEXES = range(1 << 24, 1 << 30)


@dataclass(frozen=True, slots=True)
class DirectRequest(Request):
    """A validated ``direct``."""

    device: DeviceName
    mode: DirectMode
    mac: Mac | None
    queues: int
    vhost: bool
    name: TapName | None


@dataclass(frozen=True, slots=True)
class EgressTable(Step):
    """The fixed rules."""

    NAME: ClassVar[str] = "egress-table"

    def describe(self) -> str:
        return "create the nft table netdev sessionvirt"

    def describe_undo(self) -> str:
        return "delete the nft table netdev sessionvirt"

    def execute(self, host: Host) -> Self:
        host.firewall.egress.ensure()
        return self

    def undo(self, host: Host) -> None:
        host.firewall.egress.remove()


@dataclass(frozen=True, slots=True)
class FilterMacvtap(Step):
    """What its frames may carry; there before the device is, and undone after it."""

    NAME: ClassVar[str] = "macvtap-filter"

    ifname: str
    mac: str

    def describe(self) -> str:
        return f"let {self.ifname} send from {self.mac} and any address only"

    def describe_undo(self) -> str:
        return f"remove {self.ifname} from the nft sets"

    def rules(self) -> MacvtapRules:
        """For the firewall."""
        return MacvtapRules(self.ifname, self.mac)

    def execute(self, host: Host) -> Self:
        host.firewall.egress.add(self.rules())
        return self

    def undo(self, host: Host) -> None:
        host.firewall.egress.forget(self.rules())


@dataclass(frozen=True, slots=True)
class CreateMacvtap(Step):
    """The device, down, with its chain of the firewall.

    :param lower: the ifindex of the interface below.
    :param ifindex: its own, asked for.
    """

    NAME: ClassVar[str] = "macvtap-create"

    ifname: str
    device: str
    lower: int
    mode: str
    mac: str
    ifindex: int

    def describe(self) -> str:
        return f"create the macvtap {self.ifname} on {self.device}, mode {self.mode}"

    def describe_undo(self) -> str:
        return f"delete the macvtap {self.ifname}"

    def execute(self, host: Host) -> Self:
        try:
            host.links.create_macvtap(
                *(self.ifname, self.ifindex), lower=self.lower, mode=self.mode, mac=self.mac
            )
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise StateChanged(f"{self.device} is gone; ask again") from error
            if error.errno == errno.EOPNOTSUPP:
                raise NotSupported("this host's kernel has no macvtap") from error
            if error.errno in (errno.EBUSY, errno.EINVAL):
                # Another's macvlan has it in the mode passthru, or it has become a port meanwhile.
                raise Busy(f"{self.device} is in use in a way that it cannot be shared") from error
            raise
        host.firewall.egress.guard(self.ifname)
        return self

    def undo(self, host: Host) -> None:
        host.close_fds(self.ifname)
        # With it goes whatever its holder can send; the rules are undone after that. It may have
        # been renamed by an administrator, or its address changed by its holder; another's, which
        # had the index when this was to be made, has neither.
        link = host.links.by_index(self.ifindex)
        if link is None or link.kind != "macvtap":
            return
        if link.name == self.ifname or link.mac == self.mac:
            host.links.delete(link.ifindex)


@dataclass(frozen=True, slots=True)
class OpenMacvtap(Step):
    """One descriptor for each queue; then the device is up."""

    NAME: ClassVar[str] = "macvtap-open"

    ifname: str
    ifindex: int
    device: str
    mac: str
    mtu: int
    queues: int
    altname: str

    def describe(self) -> str:
        queues = f" with {self.queues} queues" if self.queues > 1 else ""
        return f"open {self.ifname}{queues} and set it up"

    def describe_undo(self) -> str:
        return "nothing: it ends with the macvtap"

    def execute(self, host: Host) -> Self:
        named = host.links.add_altname(self.ifindex, self.altname)
        # The host has no part in this LAN by it.
        disable = host.paths.proc_net / "ipv6/conf" / self.ifname / "disable_ipv6"
        if disable.exists():
            disable.write_text("1\n", encoding="ascii")
        host.fds[self.ifname] = open_queues(self.ifname, self.ifindex, self.queues)
        try:
            host.links.up_for_groups(self.ifindex)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Busy(f"the MAC address {self.mac} is in use on {self.device}") from error
            raise
        return replace(self, altname=self.altname if named else "")

    def undo(self, host: Host) -> None:
        pass


def open_queues(
    ifname: str,
    ifindex: int,
    queues: int,
    dev: Path = Path("/dev"),
    sys_class_net: Path = Path("/sys/class/net"),
) -> list[int]:
    """Descriptors of a macvtap.

    :return: one a queue, close-on-exec; the caller owns them.
    :raise NotSupported: they are not for this process.
    :raise HostFailure: the node is another device's.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    number = (sys_class_net / ifname / f"tap{ifindex}/dev").read_text(encoding="ascii").strip()
    descriptors: list[int] = []
    try:
        for _ in range(queues):
            # PRIVILEGE: CAP_DAC_OVERRIDE; the node is root's. To open it makes a queue.
            descriptor = os.open(dev / f"tap{ifindex}", os.O_RDWR | os.O_CLOEXEC)
            descriptors.append(descriptor)
            opened = os.fstat(descriptor).st_rdev
            if f"{os.major(opened)}:{os.minor(opened)}" != number:
                raise HostFailure(f"/dev/tap{ifindex} is not {ifname}'s")
            fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(b"", flags))
    except BaseException as error:
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.ENOENT):
            raise NotSupported(
                f"the broker may not open /dev/tap{ifindex}, or it is not there: the module macvtap"
                " must be loaded when the broker starts, and /dev be a devtmpfs"
            ) from error
        raise
    return descriptors


class DirectKind:
    """The kind.

    :param lan_macs: addresses of guests on LANs, those of :class:`.tap.TapKind`, too.
    """

    name = "direct"
    fds_fact = "ifname"

    def __init__(self, machine_id: str, sys_class_net: Path, lan_macs: set[str]) -> None:
        self._machine_id = machine_id
        self._sys_class_net = sys_class_net
        self._lan_macs = lan_macs

    def parse(self, fields: Fields, position: int, configuration: Configuration) -> DirectRequest:
        request = DirectRequest(
            position=position,
            device=device_name(fields),
            mode=_mode(fields),
            mac=mac(fields),
            queues=fields.count("queues", default=1, limit=configuration.limits.queues_per_tap),
            vhost=fields.flag("vhost"),
            name=tap_name(fields),
        )
        fields.finish()
        return request

    def is_ready(self, request: Request, host: Host) -> bool:
        return True  # the unit has macvtap loaded

    def prepare(self, request: Request, host: Host) -> None:
        pass

    def survey(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Offer:
        wanted = cast("DirectRequest", request)
        address = self._mac(wanted, owner)
        lower, offered = self._lower(wanted, configuration, host)
        self._not_in_use(address, lower)
        details = (("vm", shown(owner.vm)), ("uid", str(owner.uid)), ("mac", address))
        queues = wanted.queues
        share = Share(taps=1, queues=queues, fds=queues if wanted.vhost else 0)
        return offer(lower, offered, address, details, share)

    def plan(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Plan:
        wanted = cast("DirectRequest", request)
        address = self._mac(wanted, owner)
        lower, _ = self._lower(wanted, configuration, host)
        self._not_in_use(address, lower)  # another request of the same call may be there
        ifname = TAP_PREFIX + secrets.token_hex(6)
        ifindex = secrets.choice(_INDEXES)
        altname = readable_name(wanted.name, wanted.position, owner)
        most = configuration.limits.vhost_descriptors
        vhost = (OpenVhost(ifname, wanted.queues, most),) if wanted.vhost else ()
        mode = lower.mode.value
        return Plan(
            shared=(Shared(EGRESS, lambda: (EgressTable(),)),),
            steps=(
                FilterMacvtap(ifname, address),
                CreateMacvtap(ifname, lower.device, lower.ifindex, mode, address, ifindex),
                OpenMacvtap(
                    *(ifname, ifindex, lower.device, address, lower.mtu, wanted.queues, altname)
                ),
                *vhost,
            ),
        )

    def grant(self, steps: Sequence[Step]) -> dict[str, object]:
        made, opened = _steps(steps)
        return {
            "kind": self.name,
            "ifname": made.ifname,
            "ifindex": made.ifindex,
            "altname": opened.altname,
            "vhost": has_vhost(steps),
            "mac": made.mac,
            "mtu": opened.mtu,
            "device": made.device,
            "mode": made.mode,
            "ipv4": (),
            "ipv6": (),
            "dns": "",
        }

    def share(self, steps: Sequence[Step]) -> Share:
        queues = _steps(steps)[1].queues
        return Share(taps=1, queues=queues, fds=queues if has_vhost(steps) else 0)

    def watched(self, steps: Sequence[Step]) -> tuple[Watched, ...]:
        # It goes with the interface below.
        return (_steps(steps)[0].ifindex,)

    def adopt(self, steps: Sequence[Step], adopted: Adopted) -> None:
        adopted.macvtaps += [step.rules() for step in steps if isinstance(step, FilterMacvtap)]
        self.begun(steps)

    def begun(self, steps: Sequence[Step]) -> None:
        self._lan_macs |= {step.mac for step in steps if isinstance(step, FilterMacvtap)}

    def ended(self, steps: Sequence[Step]) -> None:
        self._lan_macs -= {step.mac for step in steps if isinstance(step, FilterMacvtap)}

    def intact(self, steps: Sequence[Step], host: Host) -> str:
        made, _ = _steps(steps)
        device = self._sys_class_net / made.ifname
        try:
            if int((device / "ifindex").read_text(encoding="ascii")) != made.ifindex:
                return "the macvtap is gone"
            address = (device / "address").read_text(encoding="ascii").strip()
        except OSError:
            return "the macvtap is gone"
        return "" if address == made.mac else "the macvtap's address was changed by its holder"

    def is_gone(self, steps: Sequence[Step], host: Host) -> bool:
        return host.links.by_index(_steps(steps)[0].ifindex) is None

    def _mac(self, request: DirectRequest, owner: Owner) -> Mac:
        return guest_mac(request.mac, request.position, owner, self._machine_id)

    def _lower(
        self, request: DirectRequest, configuration: Configuration, host: Host
    ) -> tuple[Lower, DirectInterface]:
        return find_lower(request.device, request.mode, configuration, host, self._sys_class_net)

    def _not_in_use(self, address: str, lower: Lower) -> None:
        if address in self._lan_macs:
            raise Busy(f"the MAC address {address} is in use on {lower.device}")


def _mode(fields: Fields) -> DirectMode:
    text = fields.text("mode")
    if text in ("passthrough", "passthru"):
        raise InvalidRequest(
            f"{fields.where}.mode: passthrough would take the interface from the host, and give"
            " the guest every address on it; a virtual function of a card is given as a PCI device"
        )
    if text is not None and text not in tuple(DirectMode):
        raise InvalidRequest(f'{fields.where}.mode: must be "bridge", "private" or "vepa"')
    return DirectMode(text or DirectMode.BRIDGE)


def _steps(steps: Sequence[Step]) -> tuple[CreateMacvtap, OpenMacvtap]:
    made = next(step for step in steps if isinstance(step, CreateMacvtap))
    opened = next(step for step in steps if isinstance(step, OpenMacvtap))
    return made, opened

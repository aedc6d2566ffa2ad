# SPDX-License-Identifier: LGPL-2.1-or-later
"""The domain that a command line means: an XML file, or a disk image and a few options."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sessionvirt.errors import NotFoundError, UsageError

from .output import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from sessionvirt.model.addresses import PciAddress
    from sessionvirt.model.bandwidth import Bandwidth
    from sessionvirt.model.domain import Domain
    from sessionvirt.model.filter import GuestFilter
    from sessionvirt.model.quick import QuickNetwork

__all__ = ["lists_of", "load_domain"]

#: Options that describe a machine without XML.
_QUICK: Final = (
    "name", "memory", "vcpus", "network", "bridge", "direct", "limit_inbound", "limit_outbound",
    "pci", "kernel", "initrd", "append",
)  # fmt: skip
#: No definition is longer; a disk image given by mistake is not read whole.
_MAX_XML: Final = 4 << 20


def load_domain(args: argparse.Namespace) -> Domain:
    """Read or make the domain, and tell on stderr what of an XML file is not understood.

    :raise UsageError: options that contradict each other.
    :raise NotFoundError: a file cannot be read.
    :raise DefinitionError: the XML is wrong.
    """
    if args.guest is not None and _is_xml(args.guest):
        return _published(_from_xml(args), args)
    from sessionvirt.model.quick import QuickDisk, quick_domain

    given = {"name": args.name, "vcpus": args.vcpus, "memory_mib": args.memory}
    domain = quick_domain(
        () if args.guest is None else (QuickDisk(Path(args.guest)),),
        **{name: value for name, value in given.items() if value is not None},
        networks=_networks(args),
        pci=_devices(args),
        kernel=_readable(args.kernel),
        initrd=_readable(args.initrd),
        append=args.append,
    )
    return _published(domain, args)


def _published(domain: Domain, args: argparse.Namespace) -> Domain:
    """The domain, with what ``--publish`` says on its first interface that can have it.

    :raise UsageError: it has none.
    """
    if not args.publish:
        return domain
    import dataclasses

    from sessionvirt.model.check import check_domain
    from sessionvirt.model.interface import InterfaceType
    from sessionvirt.model.portforward import PortForward, read_ports

    more = tuple(PortForward.of(read_ports(text)) for text in args.publish)
    interfaces = list(domain.interfaces)
    for kind in (InterfaceType.NETWORK, InterfaceType.USER):
        for index, nic in enumerate(interfaces):
            if nic.type is kind:
                forwards = (*nic.port_forwards, *more)
                interfaces[index] = dataclasses.replace(nic, port_forwards=forwards)
                domain = dataclasses.replace(domain, interfaces=tuple(interfaces))
                check_domain(domain)
                return domain
    raise UsageError(
        "--publish: the machine has no interface that ports of this host can lead to",
        advice="write --network NAME; a guest on the LAN itself is reached by its own address",
    )


def lists_of(args: argparse.Namespace) -> GuestFilter:
    """The lists of a command line.

    :raise UsageError: an entry is none.
    """
    from sessionvirt.model.filter import LISTS, NO_FILTER, check_entry

    said: dict[str, Any] = {
        name: tuple(map(check_entry, getattr(args, name) or ())) for name in LISTS
    }
    return replace(NO_FILTER, **said)


def _from_xml(args: argparse.Namespace) -> Domain:
    from sessionvirt.model.domain import parse_domain

    extra = [f"--{name.replace('_', '-')}" for name in _QUICK if getattr(args, name) is not None]
    if extra:
        raise UsageError(
            f"{', '.join(extra)} cannot be combined with an XML definition",
            advice=f"write it into {args.guest}",
        )
    parsed = parse_domain(_read(args.guest), file=args.guest, strict=args.strict)
    if not getattr(args, "quiet", False):
        for unknown in parsed.unknown:
            say(f"{args.guest}:{unknown.line}: not understood, has no effect: {unknown.path}")
    return parsed.value


def _networks(args: argparse.Namespace) -> tuple[QuickNetwork, ...]:
    from sessionvirt.model.nic import MAX_QUEUES
    from sessionvirt.model.quick import QuickNetwork

    limits = _limits(args)
    if args.bridge is not None:
        known = {"vlan": 4094, "queues": MAX_QUEUES}
        text, isolated = _isolated(args.bridge)
        bridge, numbers = _numbers("--bridge", text, known)
        return (
            QuickNetwork(
                bridge=bridge,
                vlan=numbers.get("vlan"),
                queues=numbers.get("queues", 1),
                isolated=isolated,
                bandwidth=limits,
            ),
        )
    if args.direct is not None:
        if limits is not None:
            raise _cannot_be_limited("--direct")
        return (_direct(args.direct),)
    text, isolated = _isolated(args.network or "user")
    name, numbers = _numbers("--network", text, {"queues": MAX_QUEUES})
    queues = numbers.get("queues", 1)
    if name in ("none", "user") and isolated:
        raise UsageError(
            f"--network {name} has nobody to be isolated from",
            advice="write a managed network, or --bridge",
        )
    if name in ("none", "user") and queues > 1:
        raise UsageError(
            f"--network {name} has no queues", advice="write a managed network, or --bridge"
        )
    if name in ("none", "user") and limits is not None:
        raise _cannot_be_limited(f"--network {name}")
    if name == "none":
        return ()
    network = None if name == "user" else name
    return (QuickNetwork(network, queues=queues, isolated=isolated, bandwidth=limits),)


def _isolated(text: str) -> tuple[str, bool]:
    """Take the word ``isolated`` out of what follows a name."""
    name, *words = text.split(",")
    rest = [word for word in words if word != "isolated"]
    return ",".join((name, *rest)), len(rest) < len(words)


def _limits(args: argparse.Namespace) -> Bandwidth | None:
    """Read both limits.

    :raise UsageError: one is no rate.
    """
    if args.limit_inbound is None and args.limit_outbound is None:
        return None
    from sessionvirt.model.bandwidth import Bandwidth, BandwidthRate

    from .rates import parse_rate

    def read(option: str, text: str | None) -> BandwidthRate | None:
        if text is None:
            return None
        rate = parse_rate(option, text)
        return BandwidthRate(average=rate.average, peak=rate.peak or None, burst=rate.burst or None)

    return Bandwidth(
        inbound=read("--limit-inbound", args.limit_inbound),
        outbound=read("--limit-outbound", args.limit_outbound),
    )


def _cannot_be_limited(option: str) -> UsageError:
    return UsageError(
        f"--limit-inbound and --limit-outbound do not go with {option}",
        advice="write --network and a managed network's name, or --bridge",
    )


def _direct(text: str) -> QuickNetwork:
    """Read ``DEVICE[,mode=MODE][,queues=N]``.

    :raise UsageError: a mode that there is not, or is not for a guest.
    """
    from sessionvirt.model.interface import DirectMode
    from sessionvirt.model.nic import MAX_QUEUES
    from sessionvirt.model.quick import QuickNetwork

    words = text.split(",")
    modes = [word for word in words[1:] if word.startswith("mode=")]
    rest = ",".join(word for word in words if word not in modes)
    device, numbers = _numbers("--direct", rest, {"queues": MAX_QUEUES})
    mode = modes[0].removeprefix("mode=") if modes else DirectMode.BRIDGE.value
    known = [one.value for one in DirectMode if one is not DirectMode.PASSTHROUGH]
    if len(modes) > 1 or mode not in known:
        raise UsageError(
            f"--direct: {modes[-1][:40]!a} cannot be said after {device[:40]!a}",
            advice="write one of " + ", ".join(f"mode={one}" for one in known),
        )
    return QuickNetwork(device=device, mode=DirectMode(mode), queues=numbers.get("queues", 1))


def _numbers(option: str, text: str, known: Mapping[str, int]) -> tuple[str, dict[str, int]]:
    """Read ``NAME``, or ``NAME,KEY=NUMBER,...``.

    :param known: keys, each with its largest number.
    :raise UsageError: another key, one twice, or a number that it cannot have.
    """
    name, *rest = text.split(",")
    found: dict[str, int] = {}
    for part in rest:
        key, _, number = part.partition("=")
        most = known.get(key, 0) if key not in found else 0
        if not re.fullmatch(r"[1-9][0-9]{0,5}", number) or int(number) > most:
            form = " or ".join(f"{key}=1 to {key}={last}" for key, last in known.items())
            raise UsageError(
                f"{option}: {part[:40]!a} cannot be said after {name[:40]!a}",
                advice=f"write {form}",
            )
        found[key] = int(number)
    return name, found


def _devices(args: argparse.Namespace) -> tuple[PciAddress, ...]:
    if args.pci is None:
        return ()
    from sessionvirt.model.addresses import PciAddress

    try:
        return tuple(PciAddress.parse(text) for text in args.pci)
    except ValueError as error:
        raise UsageError(f"--pci: {error}", advice="'sessionvirt devices' lists them") from error


def _is_xml(name: str) -> bool:
    if name.endswith(".xml"):
        return True
    try:
        with open(name, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise _unreadable(name, error) from error
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


def _read(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            content = file.read(_MAX_XML + 1)
    except OSError as error:
        raise _unreadable(name, error) from error
    if len(content) > _MAX_XML:
        raise UsageError(f"{name} is longer than {_MAX_XML >> 20} MiB: not a definition")
    return content


def _readable(name: str | None) -> Path | None:
    """QEMU would say so, too; but only after the network is there."""
    if name is None:
        return None
    try:
        with open(name, "rb"):
            return Path(name)
    except OSError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError) -> NotFoundError:
    return NotFoundError(f"{name} cannot be read", evidence=error.strerror or str(error))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The resource kind ``filter``: what a guest may not, of what its TAP permits.

A filter only ever takes away. Whoever has the TAP may have one, and may have it back; so it is no
wall between a user and what he may reach, but one that he puts before a guest of his. It names no
interface: it rests on a grant of the same lease, and the addresses and ports in it are only
compared with what that one's frames carry.

libvirt's filters are the session's; here are the few words that they come down to. A word that says
what is so anyway costs nothing, and none says less than that.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, cast

from .errors import InvalidRequest, NotSupported
from .filterlists import ENTRIES, parse_entry
from .filterrules import FilterRules
from .firewall import link_local
from .kind import Offer, Owner, Plan, Resting
from .limits import Share
from .steps import Step
from .tapsteps import FilterTap
from .wire import Fields, grant_of, shown, unicast_mac

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import Configuration
    from .host import Host
    from .kind import Adopted, Request, Watched
    from .networks import Networks

__all__ = ["FilterFrames", "FilterKind", "FilterRequest"]

LISTS: Final = ("deny_outbound", "allow_outbound", "deny_inbound", "allow_inbound")
_ETHERTYPES: Final = frozenset({"arp", "ipv4", "ipv6", "rarp", "other"})
_FLAGS: Final = ("no_broadcast", "no_multicast4", "no_multicast6")


@dataclass(frozen=True, slots=True)
class FilterRequest(Resting):
    """A validated ``filter``; every text is in its one form."""

    deny_outbound: tuple[str, ...]
    allow_outbound: tuple[str, ...]
    deny_inbound: tuple[str, ...]
    allow_inbound: tuple[str, ...]
    deny: tuple[str, ...]
    only_mac: tuple[str, ...]
    addresses: tuple[str, ...]
    no_broadcast: bool
    no_multicast4: bool
    no_multicast6: bool

    @property
    def entries(self) -> int:
        """What it counts for."""
        lists = (getattr(self, name) for name in (*LISTS, "only_mac", "addresses"))
        return max(1, sum(map(len, lists)))


@dataclass(frozen=True, slots=True)
class FilterFrames(Step):
    """The rules of one filter.

    :param position: its grant's.
    :param on: the TAP's grant.
    :param mac: the guest's.
    :param gateways: addresses of the network's gateway, whose DNS is not cut off.
    :param uid: whose the guest is.
    """

    NAME: ClassVar[str] = "filter-frames"

    ifname: str
    position: int
    on: str
    mac: str
    gateways: tuple[str, ...]
    deny_outbound: tuple[str, ...]
    allow_outbound: tuple[str, ...]
    deny_inbound: tuple[str, ...]
    allow_inbound: tuple[str, ...]
    deny: tuple[str, ...]
    only_mac: tuple[str, ...]
    addresses: tuple[str, ...]
    no_broadcast: int
    no_multicast4: int
    no_multicast6: int
    uid: int = 0

    def describe(self) -> str:
        said = [f"{n.replace('_', ' ')} {', '.join(v)}" for n in LISTS if (v := getattr(self, n))]
        said += [f"no frames of the types {', '.join(self.deny)}"] if self.deny else []
        said += [f"only with {', '.join(self.only_mac)}"] if self.only_mac else []
        said += [f"only from {', '.join(self.addresses)}"] if self.addresses else []
        words = {
            "no_broadcast": "no broadcast of IPv4",
            "no_multicast4": "no multicast of IPv4",
            "no_multicast6": "no multicast of IPv6",
        }
        said += [words[name] for name in _FLAGS if getattr(self, name)]
        return f"filter {self.ifname}: {'; '.join(said)}"

    def describe_undo(self) -> str:
        return f"remove this filter from {self.ifname}"

    def rules(self) -> FilterRules:
        """For the firewall.

        :raise ValueError: it is not what a request can say.
        """
        if not re.fullmatch(r"svt[0-9a-f]{12}", self.ifname):
            raise ValueError("ifname: not a TAP of ours")
        return FilterRules(
            ifname=self.ifname,
            position=self.position,
            link_local=str(link_local(self.mac)),
            lists={name: tuple(map(parse_entry, getattr(self, name))) for name in LISTS},
            deny=frozenset(self.deny),
            only_mac=self.only_mac,
            addresses=tuple(map(_address, self.addresses)),
            no_broadcast=bool(self.no_broadcast),
            no_multicast=frozenset(
                version
                for version, flag in ((4, self.no_multicast4), (6, self.no_multicast6))
                if flag
            ),
            gateways=tuple(map(_address, self.gateways)),
            uid=self.uid,
        )

    def execute(self, host: Host) -> Self:
        host.firewall.filters.add(self.rules())
        return self

    def undo(self, host: Host) -> None:
        host.firewall.filters.remove(self.ifname, self.position)


class FilterKind:
    """The kind. It keeps no account: the firewall knows what each TAP has."""

    name = "filter"
    fds_fact = "id"  # of which there are none

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def parse(self, fields: Fields, position: int, configuration: Configuration) -> FilterRequest:
        on = _tap(fields)
        texts = {name: _entries(fields, name) for name in LISTS}
        request = FilterRequest(
            position=position,
            on=on,
            **texts,
            deny=_words(fields),
            only_mac=_macs(fields),
            addresses=_addresses(fields),
            no_broadcast=fields.flag("no_broadcast"),
            no_multicast4=fields.flag("no_multicast4"),
            no_multicast6=fields.flag("no_multicast6"),
        )
        fields.finish()
        if not any(getattr(request, name) for name in _SAID):
            raise InvalidRequest(f"{fields.where}: a filter forbids something")
        return request

    def is_ready(self, request: Request, host: Host) -> bool:
        return True

    def prepare(self, request: Request, host: Host) -> None:
        pass

    def survey(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Offer:
        wanted = cast("FilterRequest", request)
        tap = _filter_of(owner, wanted.on)
        given = {*tap.ipv4, *tap.ipv6, str(link_local(tap.mac))}
        if not tap.unbound and not given >= set(wanted.addresses):
            raise InvalidRequest(
                "addresses: the network gave the guest others; see its TAP's grant"
            )
        return Offer(
            action="guest-limits",
            sentence="Authentication is required to limit what the virtual machine"
            ' "$(vm)" may send and receive',
            details=(("vm", shown(owner.vm)), ("uid", str(owner.uid)), ("mac", tap.mac)),
            summary="a filter of what it may send and receive",
            share=Share(filter_entries=wanted.entries),
            facts=(wanted, tap.mac, tap.ipv4, tap.ipv6, tap.unbound, tap.bridge),
        )

    def plan(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Plan:
        wanted = cast("FilterRequest", request)
        tap = _filter_of(owner, wanted.on)
        network = self._networks.as_started(tap.bridge) if tap.bridge else None
        gateways = (*network.ipv4, *network.ipv6) if network else ()
        said: dict[str, Any] = {name: getattr(wanted, name) for name in _SAID}
        said |= {name: int(said[name]) for name in _FLAGS}
        step = FilterFrames(
            ifname=tap.ifname,
            position=wanted.position,
            on=wanted.on,
            mac=tap.mac,
            gateways=tuple(str(one).partition("/")[0] for one in gateways),
            uid=tap.uid,
            **said,
        )
        return Plan(shared=(), steps=(step,))

    def grant(self, steps: Sequence[Step]) -> dict[str, object]:
        step = _step(steps)
        step.rules()  # one of a journal may be none
        return {
            "kind": self.name,
            "tap": step.on,
            **{name: getattr(step, name) for name in _SAID if name not in _FLAGS},
            **{name: bool(getattr(step, name)) for name in _FLAGS},
        }

    def share(self, steps: Sequence[Step]) -> Share:
        step = _step(steps)
        lists = (getattr(step, name) for name in (*LISTS, "only_mac", "addresses"))
        return Share(filter_entries=max(1, sum(map(len, lists))))

    def watched(self, steps: Sequence[Step]) -> tuple[Watched, ...]:
        return ()

    def adopt(self, steps: Sequence[Step], adopted: Adopted) -> None:
        adopted.filters += [step.rules() for step in steps if isinstance(step, FilterFrames)]

    def begun(self, steps: Sequence[Step]) -> None:
        pass

    def ended(self, steps: Sequence[Step]) -> None:
        pass

    def intact(self, steps: Sequence[Step], host: Host) -> str:
        return ""  # what it rests on is looked at; the rules are put back, not given back

    def is_gone(self, steps: Sequence[Step], host: Host) -> bool:
        return False


#: Fields of a request and of the step that are the same.
_SAID: Final = (*LISTS, "deny", "only_mac", "addresses", *_FLAGS)


def _step(steps: Sequence[Step]) -> FilterFrames:
    return next(step for step in steps if isinstance(step, FilterFrames))


def _filter_of(owner: Owner, on: str) -> FilterTap:
    """What binds the TAP that a request rests on."""
    return next(step for step in owner.parts[on] if isinstance(step, FilterTap))


# The door


def _tap(fields: Fields) -> str:
    text = fields.text("tap")
    if text is not None and re.fullmatch(r"direct[0-9]{1,5}", text):
        raise NotSupported(
            f"{fields.where}.tap: the frames of a macvtap device pass no bridge, where filters are"
        )
    return grant_of(Fields(fields.where, {"tap": ("s", text)} if text is not None else {}), "tap")


def _entries(fields: Fields, name: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for number, text in enumerate(fields.texts(name, limit=ENTRIES)):
        try:
            found[str(parse_entry(text))] = None
        except ValueError as error:
            raise InvalidRequest(f"{fields.where}.{name}[{number}]: {error}") from None
    return tuple(found)


def _words(fields: Fields) -> tuple[str, ...]:
    found = fields.texts("deny", limit=len(_ETHERTYPES))
    if not set(found) <= _ETHERTYPES:
        raise InvalidRequest(f"{fields.where}.deny: knows {', '.join(sorted(_ETHERTYPES))} only")
    return tuple(dict.fromkeys(found))


def _macs(fields: Fields) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for number, text in enumerate(fields.texts("only_mac", limit=ENTRIES)):
        address = unicast_mac(text)
        if address is None:
            raise InvalidRequest(f"{fields.where}.only_mac[{number}]: is no unicast MAC address")
        found[address] = None
    return tuple(found)


def _addresses(fields: Fields) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for number, text in enumerate(fields.texts("addresses", limit=ENTRIES)):
        try:
            found[_address(text)] = None
        except ValueError:
            raise InvalidRequest(f"{fields.where}.addresses[{number}]: is no address") from None
    return tuple(found)


def _address(text: str) -> str:
    """An address of one host in its one form.

    :raise ValueError: it is none.
    """
    if not re.fullmatch(r"[0-9a-f.:]{2,45}", text):
        raise ValueError("not an address")
    address = ipaddress.ip_address(text)
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    if address.is_multicast or address.is_unspecified or mapped:
        raise ValueError("not an address of a host")
    return str(address)

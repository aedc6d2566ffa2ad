# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a kind of resource is: one module with validate, plan, execute, undo and reconcile.

The dispatcher, the prompt and the leases know kinds by :class:`ResourceKind` only; a new one is a
module and a line in ``kinds.py``.

::

    parse          Fields -> Request         validate: types and forms; nothing is touched
    survey         Request -> Offer          what would be given, as the host is now; compared again
    plan           Offer -> Plan             steps, as data; names and addresses are chosen
    (steps)        execute, undo             steps.py
    begun, ended   steps                     which names and addresses are taken
    grant          executed steps -> facts   what the caller is told; also after a restart
    watched        executed steps -> names   what the kernel's reports would call it
    adopt          executed steps            a new broker finds them: take them over again
    intact         executed steps -> reason  still as given? asked when the kernel reports a change
    is_gone        executed steps -> bool    not only changed, but no more
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .config import Configuration
    from .egress import MacvtapRules
    from .filterrules import FilterRules
    from .firewall import NetworkRules, TapRules
    from .host import Host
    from .limits import Share
    from .published import Published
    from .steps import Step
    from .throttle import TapLimits
    from .wire import Fields, VmName

#: How the kernel names a thing when it reports a change: an ifindex, or a PCI address.
Watched = int | str


@dataclass(frozen=True, slots=True)
class Owner:
    """For whom: the caller's uid and the VM's name.

    :param has: the ids of what its lease shares with others or in itself already, when more is
        asked for.
    :param parts: the steps of each grant that a request may rest on, by the grant's id: what its
        lease has, and what comes before in the same call.
    """

    uid: int
    vm: VmName
    has: frozenset[str] = frozenset()
    parts: Mapping[str, Sequence[Step]] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """A validated request; each kind has a subclass of its own.

    :param position: its place among those of the VM, from 0; stable from start to start.
    """

    position: int


@dataclass(frozen=True, slots=True)
class Resting(Request):
    """A request about another grant of the same lease, which it does not outlive.

    :param on: that one's id; it is in :attr:`Owner.parts` when the request is surveyed.
    """

    on: str


@dataclass(frozen=True, slots=True)
class Permit:
    """Who has an administrator's yes beforehand, in numbers."""

    users: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()

    def covers(self, uid: int, groups: frozenset[int]) -> bool:
        """Whether a user, or a member of one of these groups, is meant."""
        return uid in self.users or not self.groups.isdisjoint(groups)


NOBODY = Permit()


@dataclass(frozen=True, slots=True)
class Offer:
    """What would be given. Two offers that are equal were shown as the same thing.

    :param action: the polkit action's last word: ``network-attach``.
    :param sentence: ``polkit.message``, with ``$(key)`` for keys of ``details``.
    :param details: what polkit's rules and the sentence may look at; values are clean.
    :param summary: a noun phrase for a sentence that names several offers.
    :param facts: what must still be true when the answer comes.
    :param permit: for whom broker.toml answers where polkit would ask.
    :param includes: another action that this one gives all of: a no to that is a no to this.
    """

    action: str
    sentence: str
    details: tuple[tuple[str, str], ...]
    summary: str
    share: Share
    facts: tuple[object, ...]
    permit: Permit = NOBODY
    includes: str = ""


@dataclass(frozen=True, slots=True)
class Shared:
    """What several leases use together; made for the first, undone after the last.

    :param uid: whose it is alone: what is not given back counts for him.
    """

    id: str
    steps: Callable[[], Sequence[Step]]
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done. ``shared`` in the order in which they need each other."""

    shared: tuple[Shared, ...]
    steps: tuple[Step, ...]


@dataclass(slots=True)
class Adopted:
    """What the firewall and the throttle must hold, collected from everything that was adopted."""

    taps: list[TapRules]
    networks: list[NetworkRules]
    macvtaps: list[MacvtapRules] = field(default_factory=list)
    limits: list[TapLimits] = field(default_factory=list)
    filters: list[FilterRules] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)


class ResourceKind(Protocol):
    """See the module's docstring. Everything but ``parse`` runs on the worker thread."""

    @property
    def name(self) -> str:
        """The word of the contract."""

    @property
    def fds_fact(self) -> str:
        """The fact of a grant under whose value :attr:`Host.fds` has what the steps have made."""

    def parse(self, fields: Fields, position: int, configuration: Configuration) -> Request:
        """:raise InvalidRequest: names the field."""

    def is_ready(self, request: Request, host: Host) -> bool:
        """Whether the host has what it needs for this; else :meth:`prepare`."""

    def prepare(self, request: Request, host: Host) -> None:
        """Have what the host needs; after a request was found good, and before the question.

        :raise NotSupported: the host has it not.
        :raise Restarting: it has it now, and only the next broker can use it.
        """

    def survey(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Offer:
        """:raise NotFound, DeviceUnsafe, Busy, NotSupported: it cannot be given."""

    def plan(
        self, request: Request, owner: Owner, configuration: Configuration, host: Host
    ) -> Plan:
        """No side effect: what is chosen is taken by :meth:`begun` only."""

    def grant(self, steps: Sequence[Step]) -> dict[str, object]:
        """Plain facts for the contract's grant; ``fds`` names what :attr:`Host.fds` holds."""

    def share(self, steps: Sequence[Step]) -> Share:
        """What they count for."""

    def watched(self, steps: Sequence[Step]) -> tuple[Watched, ...]:
        """What the kernel would report a change of."""

    def begun(self, steps: Sequence[Step]) -> None:
        """These are about to be executed, or were by a former broker; shared ones too."""

    def ended(self, steps: Sequence[Step]) -> None:
        """These are undone."""

    def adopt(self, steps: Sequence[Step], adopted: Adopted) -> None:
        """Take executed steps over from a former broker."""

    def intact(self, steps: Sequence[Step], host: Host) -> str:
        """Why they are no longer as they were given; empty: they are."""

    def is_gone(self, steps: Sequence[Step], host: Host) -> bool:
        """Whether the thing itself is no more."""

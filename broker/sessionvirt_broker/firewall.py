# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two nft tables of ours: a VM is set elements, a change is one transaction.

Elements go to libnftables as JSON with numeric values only, so that nothing in them is looked up,
expanded or resolved there. What should be in the tables is kept here; where somebody flushed the
ruleset, ``upkeep.py`` hears of it, or the next change does, and all of it goes back
(``wholetable.py``).

Never touched: other tables, and a table of our name that does not carry our marker.
"""

from __future__ import annotations

import enum
import ipaddress
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .chains import client
from .egress import Egress
from .errors import HostFailure
from .filterrules import REASON, Filters
from .networkconfig import Mode
from .policer import Policer
from .published import PORT_MAPS, SETS
from .ruleset import MARKER, MARKERS, REASONS, RULESET
from .rulewatch import port_of_libnftables
from .tablelook import chains_of, counters_of, drops_of
from .tracewatch import TABLE
from .tracing import end
from .wholetable import additions, has_fixed_part, is_whole, outline

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .egress import MacvtapRules
    from .filterrules import FilterRules
    from .published import Published
    from .upkeep import Kept

log = logging.getLogger(__name__)

#: libnftables-json(5): the value of "nftables".
Commands = list[dict[str, Any]]

_BRIDGE = ("bridge", "sessionvirt")
_INET = ("inet", "sessionvirt")
_BRIDGE_SETS = (
    "macs",
    "addresses4",
    "addresses6",
    "targets",
    "clients",
    "unbound",
    "owners",
    "peers",
    "group_peers",
    *(f"dropped_{reason}" for reason in REASONS),
)
_INET_SETS = (
    *("networks4", "networks6", "masqueraded4", "masqueraded6", "inward4", "inward6"),
    *("open_bridges", "gateways4", "gateways6", "uplinks", "uplinks6"),
    *SETS,
)
#: Maps are flushed by the same name as sets in nft's JSON, but for these.
_MAPS = frozenset({"owners", *PORT_MAPS})
_UPLINKS = {4: "uplinks", 6: "uplinks6"}
_OUTLINE = outline(RULESET)


class TablesState(enum.StrEnum):
    """What is there under our name."""

    ABSENT = enum.auto()
    PRESENT = enum.auto()
    FOREIGN = enum.auto()


@dataclass(frozen=True, slots=True)
class TapRules:
    """What the frames of one TAP may carry.

    :param unbound: on a LAN bridge no address was given, so none is enforced; MAC, ARP's sender
        hardware address and rogue servers are.
    """

    ifname: str
    uid: int
    mac: str
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    unbound: bool

    def elements(self) -> list[tuple[str, object]]:
        """Set or map, and element, of ``table bridge``."""
        name = self.ifname
        addresses6 = [*self.ipv6, str(link_local(self.mac))]
        return [
            ("macs", {"concat": [name, self.mac]}),
            *(("addresses4", {"concat": [name, self.mac, one]}) for one in self.ipv4),
            *(("addresses6", {"concat": [name, self.mac, one]}) for one in addresses6),
            *(
                ("targets", {"concat": [name, hex(int(ipaddress.IPv6Address(address)))]})
                for address in addresses6
            ),
            client(name, self.mac),
            *([("unbound", {"concat": [name, self.mac]})] if self.unbound else []),
            ("owners", [name, self.uid]),
            ("peers", {"concat": [name, self.mac, self.uid]}),
            ("group_peers", {"concat": [name, self.uid]}),
            *((f"dropped_{reason}", name) for reason in REASONS),
        ]


@dataclass(frozen=True, slots=True)
class NetworkRules:
    """One managed network: its mode, and its gateway's addresses with prefix length."""

    bridge: str
    mode: Mode
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    nat6: bool

    def elements(self) -> list[tuple[str, object]]:
        """Set and element of ``table inet``."""
        gateways = [
            (f"gateways{ipaddress.ip_interface(one).version}", one.partition("/")[0])
            for one in (*self.ipv4, *self.ipv6)
        ]
        prefixes = [
            (f"{word}{version}", _prefix(one))
            for version, ranges in ((4, self.ipv4), (6, self.ipv6))
            for word in self._sets(version)
            for one in ranges
        ]
        opened = [("open_bridges", self.bridge)] if self.mode is Mode.OPEN else []
        return [*prefixes, *gateways, *opened]

    def _sets(self, version: int) -> tuple[str, ...]:
        if self.mode is Mode.ROUTE:
            return ("networks", "inward")
        if self.mode is Mode.NAT and (version == 4 or self.nat6):
            return ("networks", "masqueraded")
        return ()


def _prefix(interface: str) -> dict[str, object]:
    network = ipaddress.ip_interface(interface).network
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


def link_local(mac: str) -> ipaddress.IPv6Address:
    """The link-local address that belongs to a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface_id = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + interface_id)


class Firewall:
    """The libnftables context of the worker thread, and what the tables should hold."""

    tables = frozenset({_BRIDGE, _INET})

    def __init__(self) -> None:
        self._context: Any = None
        #: The netlink port of the context, its descriptor and inode; read by the loop, too.
        self._socket = (-1, -1, -1)
        self._taps: dict[str, TapRules] = {}
        self._networks: set[NetworkRules] = set()
        self._published: set[Published] = set()
        self._uplinks: dict[int, frozenset[int]] = {}
        #: The table of macvtap devices, by the same context.
        self.egress = Egress(self._load, self._run, self._list)
        #: The table of limits, likewise.
        self.policer = Policer(self._run, self._list)
        #: The table of filters, likewise.
        self.filters = Filters(self._load, self._run, self._list)

    def kept(self) -> tuple[Kept, ...]:
        """All that is put back where somebody takes it away."""
        # Filters first: a guest with one must not be served without it.
        return (self.filters, self, self.egress, self.policer)

    @property
    def port(self) -> int:
        """The netlink port that the kernel knows our changes by; -1: nothing was changed yet."""
        return self._socket[0]

    @property
    def _nft(self) -> Any:
        if self._context is None:
            import nftables  # late: questions need no libnftables

            self._context = nftables.Nftables()
            self._context.set_json_output(True)
        return self._context

    def _know_port(self) -> None:
        """libnftables opens its socket anew after some errors: then it has another port."""
        _, descriptor, inode = self._socket
        try:
            known = descriptor >= 0 and os.fstat(descriptor).st_ino == inode
        except OSError:
            known = False
        if not known:
            self._socket = port_of_libnftables()

    def state(self) -> TablesState:
        """What is there under our name. PRESENT: both tables, with our marker.

        An earlier edition counts as absent: it is replaced before anything is given.
        """
        found = {self._state_of(table) for table in (_BRIDGE, _INET)}
        for state in (TablesState.FOREIGN, TablesState.ABSENT):
            if state in found:
                return state
        return TablesState.PRESENT

    def _state_of(self, table: tuple[str, str]) -> TablesState:
        markers = self._markers(table)
        if markers is None:
            return TablesState.ABSENT
        if not markers:
            return TablesState.FOREIGN
        return TablesState.PRESENT if MARKER in markers else TablesState.ABSENT

    def _markers(self, table: tuple[str, str]) -> set[str] | None:
        """The markers in the table of our name; None: there is no such table."""
        named = chains_of(self._list, *table)
        return None if named is None else {one for one in named if MARKERS.fullmatch(one)}

    def adopt(
        self,
        taps: Iterable[TapRules],
        networks: Iterable[NetworkRules],
        macvtaps: Iterable[MacvtapRules] = (),
        filters: Iterable[FilterRules] = (),
        published: Iterable[Published] = (),
    ) -> None:
        """Take over what a former broker left: only this is in the tables afterwards."""
        self._forget_trace()
        self._published = set(published)
        self._taps = {rules.ifname: rules for rules in taps}
        self._networks = set(networks)
        try:
            self.filters.adopt(filters)
        finally:
            self._adopt_others(macvtaps)

    def _adopt_others(self, macvtaps: Iterable[MacvtapRules]) -> None:
        try:
            if self._taps or self._networks:
                self._rebuild()
            else:
                self.remove()
        finally:
            self.egress.adopt(macvtaps)

    def add_tap(self, rules: TapRules) -> None:
        """Permit a TAP what ``rules`` say."""
        self._taps[rules.ifname] = rules
        self._change(_commands("add", _BRIDGE, rules.elements()))

    def remove_tap(self, rules: TapRules) -> None:
        """Forget a TAP. What :meth:`adopt` did not take over is in no table any more."""
        if rules.ifname in self._taps:
            self._discard(_BRIDGE, rules.elements())
            del self._taps[rules.ifname]  # only now: else another try would do nothing

    def add_network(self, rules: NetworkRules) -> None:
        """Let a network out."""
        self._networks.add(rules)
        self._change(_commands("add", _INET, rules.elements()))

    def remove_network(self, rules: NetworkRules) -> None:
        """Forget a network; absent is in order."""
        if rules in self._networks:
            self._discard(_INET, rules.elements())
            self._networks.discard(rules)

    def publish(self, rules: Published) -> None:
        """Translate to a guest what was published."""
        self._published.add(rules)
        self._change(_commands("add", _INET, rules.elements()))

    def unpublish(self, rules: Published) -> None:
        """No longer translate new flows; absent is in order."""
        if rules in self._published:
            self._discard(_INET, rules.elements())
            self._published.discard(rules)

    def set_uplinks(self, version: int, uplinks: frozenset[int]) -> None:
        """The interfaces whose forwarding we turned on: they forward to our networks only."""
        if uplinks == self._uplinks.get(version, frozenset()):
            return
        self._uplinks[version] = uplinks
        name = _UPLINKS[version]
        flush = {"flush": {"set": _named(_INET, name)}}
        try:
            self._change([flush, *_commands("add", _INET, [(name, i) for i in sorted(uplinks)])])
        except BaseException:
            del self._uplinks[version]  # else another try would do nothing
            raise

    def ensure(self) -> None:
        """Have the tables there.

        :raise HostFailure: somebody else's table has our name.
        """
        if self.state() is not TablesState.PRESENT:
            self._rebuild()

    def remove(self) -> None:
        """Delete our tables; somebody may have deleted one of the two before.

        :raise HostFailure: one is still there.
        """
        ours = [one for one in (_BRIDGE, _INET) if self._markers(one)]
        tables: Commands = [{"delete": {"table": {"family": f, "name": n}}} for f, n in ours]
        if tables and not self._run(tables):
            raise HostFailure("the host refused to delete the firewall tables")
        self._uplinks = {}

    def drops(self) -> dict[str, dict[str, int]]:
        """Frames dropped: interface to reason to count; reasons of zero are left out."""
        result = drops_of(self._list, *_BRIDGE, REASONS)
        for ifname, packets in self.filters.drops().items():
            result.setdefault(ifname, {})[REASON] = packets
        return result | self.egress.drops()

    def networks(self) -> frozenset[NetworkRules]:
        """The managed networks that are up."""
        return frozenset(self._networks)

    def listed_terse(self, what: str, which: object) -> list[dict[str, Any]]:
        """What nft lists of anybody's; of a whole table without the elements of its sets."""
        self._nft.set_terse_output(what == "table")
        try:
            return self._list(what, which)
        finally:
            self._nft.set_terse_output(False)

    def _forget_trace(self) -> None:
        """Delete the table of a trace that a former broker did not live to end."""
        tables = {t["table"]["name"] for t in self._list("tables", {"family": "inet"})}
        if TABLE in tables:
            end(self._run)

    def foreign_forward_drops(self) -> list[str]:
        """``family table chain`` of others' forward hooks whose policy is drop."""
        return [
            f"{chain['family']} {chain['table']} {chain['name']}"
            for chain in (item["chain"] for item in self._list("chains", {}) if "chain" in item)
            if chain.get("hook") == "forward" and chain.get("policy") == "drop"
        ]

    def intact(self) -> bool:
        """Whether everything that should be in both tables is there."""
        if not (self._taps or self._networks):
            return True
        elements = [(family, *one) for (family, _), added in self._wanted() for one in added]
        return is_whole(self._everything(), _OUTLINE, elements)

    def restore(self) -> None:
        """Put back what should be there, in one transaction; nothing: leave it as it is.

        :raise HostFailure: somebody else's table has our name, or nft refused it.
        """
        if not (self._taps or self._networks):
            return
        if self.state() is TablesState.FOREIGN:
            raise HostFailure("the host has a foreign nft table named sessionvirt")
        self._put_back()

    def _put_back(self) -> None:
        text = RULESET
        for table, elements in self._wanted():
            text += additions(*table, elements)
        if not self._load(text):
            raise HostFailure("the host refused the firewall's rules")

    def _wanted(self) -> list[tuple[tuple[str, str], list[tuple[str, object]]]]:
        """All elements, by table."""
        taps = [element for rules in self._taps.values() for element in rules.elements()]
        networks = [element for rules in self._networks for element in rules.elements()]
        published = [element for rules in self._published for element in rules.elements()]
        uplinks = [
            (_UPLINKS[version], index)
            for version, indexes in self._uplinks.items()
            for index in sorted(indexes)
        ]
        return [(_BRIDGE, taps), (_INET, [*networks, *published, *uplinks])]

    def _everything(self) -> list[dict[str, Any]]:
        return [item for table in (_BRIDGE, _INET) for item in self._list("table", _table(table))]

    def _rebuild(self) -> None:
        state = self.state()
        if state is TablesState.FOREIGN:
            raise HostFailure("the host has a foreign nft table named sessionvirt")
        if state is TablesState.PRESENT and has_fixed_part(self._everything(), _OUTLINE):
            self._refill()
        else:
            # One of the two may be there, or an earlier edition: the text replaces both.
            self._put_back()
        for other in (self.egress, self.policer):
            if not other.intact():
                other.restore()

    def _refill(self) -> None:
        """The elements anew, in one transaction; what was counted stays counted."""
        wanted = self._wanted()
        flushes: Commands = [
            {"flush": {"map" if name in _MAPS else "set": _named(table, name)}}
            for table, names in ((_BRIDGE, _BRIDGE_SETS), (_INET, _INET_SETS))
            for name in names
            if not name.startswith("dropped_")
        ]
        commands: Commands = [
            *flushes,
            *_commands("delete", _BRIDGE, self._forgotten()),
            *(one for table, added in wanted for one in _commands("add", table, added)),
        ]
        if not self._run(commands):
            raise HostFailure("the host refused the firewall's elements")

    def _forgotten(self) -> list[tuple[str, object]]:
        """The counters of TAPs that are not there any more; the others go on counting."""
        return [
            (f"dropped_{reason}", ifname)
            for reason in REASONS
            for ifname in counters_of(self._list, *_BRIDGE, f"dropped_{reason}")
            if ifname not in self._taps
        ]

    def _change(self, commands: Commands) -> None:
        if not self._run(commands):
            # The usual reason: somebody flushed the ruleset. All of it goes back, or it fails.
            self._rebuild()

    def _discard(self, table: tuple[str, str], elements: Sequence[tuple[str, object]]) -> None:
        deletion = _commands("delete", table, elements)
        if self._run(deletion):
            return
        # Deleting what is absent is an error in nft and fails the whole transaction. Some may be:
        # then each is added first, and the pair means "be absent".
        both = [*_commands("add", table, elements), *deletion]
        if not self._run(both) and self.state() is TablesState.PRESENT:
            raise HostFailure("the host refused to remove firewall elements")

    def _load(self, text: str) -> bool:
        # PRIVILEGE: CAP_NET_ADMIN; the only texts that nft parses: constants, and behind them
        # elements that wholetable.py spells.
        code, _, message = self._nft.cmd(text)
        self._know_port()
        if code:
            log.error("nft refused the fixed rules: %s", message)
        return bool(code == 0)

    def run(self, commands: Commands) -> bool:
        """One transaction of another module of ours, as JSON; whether nft took it."""
        return self._run(commands)

    def _run(self, commands: Commands) -> bool:
        # PRIVILEGE: CAP_NET_ADMIN; JSON made from validated numbers, one transaction.
        code, _, message = self._nft.json_cmd({"nftables": commands})
        self._know_port()
        if code:
            log.warning("nft: %s", str(message).strip().replace("\n", " ")[:400])
        return bool(code == 0)

    def _list(self, what: str, which: object) -> list[dict[str, Any]]:
        code, output, _ = self._nft.json_cmd({"nftables": [{"list": {what: which}}]})
        if code or not isinstance(output, dict):
            return []
        items = output.get("nftables", [])
        return [item for item in items if isinstance(item, dict) and "metainfo" not in item]


def _table(table: tuple[str, str]) -> dict[str, object]:
    return {"family": table[0], "name": table[1]}


def _named(table: tuple[str, str], name: str) -> dict[str, object]:
    return {"family": table[0], "table": table[1], "name": name}


def _commands(
    verb: str, table: tuple[str, str], elements: Sequence[tuple[str, object]]
) -> Commands:
    """One command a set, with all its elements."""
    grouped: dict[str, list[object]] = {}
    for name, element in elements:
        grouped.setdefault(name, []).append(element)
    return [
        {verb: {"element": {**_named(table, name), "elem": members}}}
        for name, members in grouped.items()
    ]

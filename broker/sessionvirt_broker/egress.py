# SPDX-License-Identifier: LGPL-2.1-or-later
"""The nft table of macvtap devices: what a guest sends is judged where it leaves its own device.

A macvtap is no port of a bridge, so nothing of ``ruleset.py`` sees its frames: the kernel hands
them from the device to the interface below, or to another macvtap on it. On the way they pass the
device's own egress hook (NF_NETDEV_EGRESS, Linux 5.16), and that one is before both.

The judging chains and the sets are one constant text, and a guest is elements, as there. Beside
them each device has one base chain, for a hook of this family is a device's: it jumps to the chains
and its policy is to drop. So a change costs one chain, and a flood of devices as many.

The rules are those of a TAP without addresses (``unbound``), with the same words for the reasons,
and have chains with it in common (``chains.py``). The rest of the text is its own, for sets of
addresses would have no use here. Whoever changes one of the two reads the other.

The base chain is made while the device is down and without a descriptor, and goes after it: older
kernels delete the chain with its device, newer ones keep it (6.18: measured). These hook a device
by its name, so that one that an administrator renames is not judged until the broker has heard of
it and ended the lease; to older ones it has no permission left, for a set's key is the name, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .chains import chains, client
from .errors import HostFailure
from .tablelook import chains_of, drops_of, present
from .wholetable import Outline, additions, is_whole, outline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .firewall import Commands
    from .tablelook import Lister

FAMILY, TABLE = "netdev", "sessionvirt"
#: A chain of this name says that the table is ours. A later edition must not leave a device
#: without its base chain while it takes this one's place.
MARKER = "sessionvirt_1"
#: In the order in which a frame meets them; all are in ``ruleset.py``.
REASONS = ("mac", "vlan", "bpdu", "type", "arp", "ipv4", "ipv6", "router", "dhcp")


EGRESS_RULES = (
    f"""
table netdev sessionvirt {{
  chain {MARKER} {{
  }}
  set macs {{
    type ifname . ether_addr
  }}
"""
    + chains("oifname", REASONS)
    + """
  chain check_arp {
    arp htype 1 arp ptype ip arp hlen 6 arp plen 4 meta oifname . arp saddr ether @macs accept
    goto drop_arp
  }
  chain first_fragment4 {
    udp sport 67 goto drop_dhcp
    udp dport 68 goto drop_dhcp
    udp dport 67 jump dhcp_client
  }
  chain check_ipv4 {
    ip frag-off & 0x1fff == 0 jump first_fragment4
    meta l4proto igmp jump check_igmp
    meta l4proto >= 0 accept
    goto drop_ipv4
  }
  chain check_ipv6 {
    frag frag-off 0 jump first_fragment6
    frag frag-off != 0 accept
    icmpv6 type { nd-router-advert, nd-redirect, mld-listener-query } goto drop_router
    exthdr hbh exists meta l4proto ah goto drop_router
    udp sport 547 goto drop_dhcp
    udp dport 546 goto drop_dhcp
    udp dport 547 jump dhcp_client6
    meta l4proto >= 0 accept
    goto drop_ipv6
  }
  chain from_guest {
    meta oifname . ether saddr != @macs goto drop_mac
    ether type { 8021q, 0x88a8, 0x9100 } goto drop_vlan
    ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto drop_bpdu
    ether type arp goto check_arp
    ether type ip goto check_ipv4
    ether type ip6 goto check_ipv6
    goto drop_type
  }
}
"""
)
#: In front of them where they take the place of what is there.
_REPLACE = """
table netdev sessionvirt
delete table netdev sessionvirt
"""
_OUTLINE = outline(EGRESS_RULES)


@dataclass(frozen=True, slots=True)
class MacvtapRules:
    """What the frames of one macvtap may carry: its MAC, and no more is bound."""

    ifname: str
    mac: str

    def elements(self) -> list[tuple[str, object]]:
        """Set and element."""
        return [
            ("macs", {"concat": [self.ifname, self.mac]}),
            client(self.ifname, self.mac),
            *((f"dropped_{reason}", self.ifname) for reason in REASONS),
        ]


class Egress:
    """The table, and what should be in it.

    :param load: has nft take a constant text; whether it did.
    :param run: likewise one transaction of commands.
    :param listed: what nft lists.
    """

    def __init__(
        self,
        load: Callable[[str], bool],
        run: Callable[[Commands], bool],
        listed: Lister,
    ) -> None:
        self._load = load
        self._run = run
        self._list = listed
        self._devices: dict[str, MacvtapRules] = {}
        #: Those that have a base chain.
        self._guarded: set[str] = set()

    def ensure(self) -> None:
        """Have the table there.

        :raise HostFailure: somebody else's has our name, or this kernel has no such hook.
        """
        if self._chains() is None:
            self._rebuild()
        self._refuse_foreign()

    def adopt(self, devices: Iterable[MacvtapRules]) -> None:
        """Take over what a former broker left: only this is in the table afterwards."""
        self._devices = {rules.ifname: rules for rules in devices}
        self._guarded = set(self._devices)
        if self._devices:
            self._rebuild()
        else:
            self.remove()

    def add(self, rules: MacvtapRules) -> None:
        """Permit a device what ``rules`` say; before it is there."""
        self._devices[rules.ifname] = rules
        if not self._run(_elements("add", rules)):
            self._rebuild()  # somebody flushed the ruleset

    def guard(self, ifname: str) -> None:
        """Have what a device sends judged; it is there, and down."""
        self._guarded.add(ifname)
        if not self._run(_base_chain(ifname)):
            self._rebuild()

    def forget(self, rules: MacvtapRules) -> None:
        """Forget a device, which is gone; absent is in order."""
        self._guarded.discard(rules.ifname)
        chains = self._chains()
        if chains is not None and MARKER in chains:
            # Added first, for to delete what is absent fails the transaction.
            commands = [*_elements("add", rules), *_elements("delete", rules)]
            if rules.ifname in chains:
                chain = {"chain": _named(rules.ifname)}
                commands += [{"flush": chain}, {"delete": chain}]
            if not self._run(commands):
                raise HostFailure("the host refused to remove firewall elements")
        self._devices.pop(rules.ifname, None)

    tables = frozenset({(FAMILY, TABLE)})

    def intact(self) -> bool:
        """Whether everything that should be in the table is there."""
        if not self._devices:
            return True
        guards = {(FAMILY, ifname): 1 for ifname in self._present()}
        fixed = Outline({**_OUTLINE.rules, **guards}, _OUTLINE.sets)
        elements = [(FAMILY, *one) for rules in self._devices.values() for one in rules.elements()]
        return is_whole(self._list("table", {"family": FAMILY, "name": TABLE}), fixed, elements)

    def restore(self) -> None:
        """Put back what should be there, in one transaction; no devices: leave it as it is.

        :raise HostFailure: somebody else's table has our name, or nft refused it.
        """
        if not self._devices:
            return
        if self._chains() is not None:
            self._refuse_foreign()
        elements = [one for rules in self._devices.values() for one in rules.elements()]
        text = _REPLACE + EGRESS_RULES + additions(FAMILY, TABLE, elements)
        # Names are the broker's own; wholetable.py had the same ones in the elements.
        text += "".join(map(_guard, self._present()))
        if not self._load(text):
            raise HostFailure("the host refused the rules of a macvtap device")

    def _present(self) -> list[str]:
        """The guarded devices that are there."""
        return present(self._guarded & self._devices.keys())

    def remove(self) -> None:
        """Delete the table, where it is ours.

        :raise HostFailure: it is still there.
        """
        if MARKER not in (self._chains() or ()):
            return
        if not self._run([{"delete": {"table": {"family": FAMILY, "name": TABLE}}}]):
            raise HostFailure("the host refused to delete the firewall table of macvtap devices")

    def drops(self) -> dict[str, dict[str, int]]:
        """Frames dropped: interface to reason to count; reasons of zero are left out."""
        return drops_of(self._list, FAMILY, TABLE, REASONS) if self._devices else {}

    def _chains(self) -> set[str] | None:
        return chains_of(self._list, FAMILY, TABLE)

    def _refuse_foreign(self) -> None:
        if MARKER not in (self._chains() or ()):
            raise HostFailure("the host has a foreign nft table netdev sessionvirt")

    def _rebuild(self) -> None:
        chains = self._chains()
        if chains is None:
            if not self._load(EGRESS_RULES):
                raise HostFailure("the host refused the fixed rules of macvtap devices")
            chains = self._chains() or set()
        self._refuse_foreign()
        commands: Commands = [{"flush": {"set": _named(name)}} for name in ("macs", "clients")]
        for rules in self._devices.values():
            commands += _elements("add", rules)
        for ifname in sorted(self._guarded - chains):
            commands += _base_chain(ifname)
        if not self._run(commands):
            raise HostFailure("the host refused the rules of a macvtap device")


def _guard(ifname: str) -> str:
    """As :func:`_base_chain`, for the text."""
    hook = f'type filter hook egress device "{ifname}" priority 0; policy drop;'
    return f"table {FAMILY} {TABLE} {{ chain {ifname} {{ {hook} goto from_guest; }}; }}\n"


def _named(name: str) -> dict[str, object]:
    return {"family": FAMILY, "table": TABLE, "name": name}


def _elements(verb: str, rules: MacvtapRules) -> Commands:
    return [
        {verb: {"element": {**_named(name), "elem": [element]}}}
        for name, element in rules.elements()
    ]


def _base_chain(ifname: str) -> Commands:
    """The chain that hooks one device, called as it is."""
    hook = {"type": "filter", "hook": "egress", "dev": ifname, "prio": 0, "policy": "drop"}
    rule = {"family": FAMILY, "table": TABLE, "chain": ifname}
    return [
        {"add": {"chain": {**_named(ifname), **hook}}},
        {"add": {"rule": {**rule, "expr": [{"goto": {"target": "from_guest"}}]}}},
    ]

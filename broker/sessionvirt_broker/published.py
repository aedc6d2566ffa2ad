# SPDX-License-Identifier: LGPL-2.1-or-later
"""Published ports in ``table inet``: their part of the fixed rules, and what one is as elements.

A port is an element in each of two places: in a map, by which the first packet of a flow gets the
guest's address (``published``, for every address of this host, and ``published_at``), and in a set,
by which ``forward`` knows what these maps have translated (``admitted``, ``admitted_at``). So what
somebody else translates to a guest is not let in by this. The one exception is what cannot be told
apart: the same port of another address, translated to the same port of the same guest by somebody
else, is let in with what "every address" has published.

``type nat`` is asked for the first packet of a flow only; a guest's other packets cost what they
did.

Only what is for this host is translated (``fib``), also where one address was named: it may have
left the host. 127.0.0.0/8 is never translated on its way in, or a neighbour on the wire could send
to it by the host's MAC: only what the host itself sends there is (``output``). A network that has
published there has ``route_localnet`` on its bridge (``publishsteps.py``), without which the answer
would be a martian, and with which guests could send to 127.0.0.0/8: that is dropped before it is
translated or routed, and what conntrack does not follow in ``input``. For ::1 Linux 6.18 has no
such setting: the answer finds no route (measured), so nothing is translated there.

What conntrack calls related is an error about a flow, and it does not ask who sends it: between
guests such a one passes only where what is published turns round, for networks stay apart. And no
guest says anything to 127.0.0.0/8 in this way either (``ruleset.py``, ``check_ipv4``).

Or it is a flow that a helper expects, by what one end of another flow says. That is let in to a
guest for those helpers only by which nobody is reached but the flow's own two ends, as they are by
default (net/netfilter/nf_conntrack_*.c); IRC's has anybody reach the client. H.323's takes any
address for the one that a call is forwarded to (expect_callforwarding()): by it a guest opens
another user's to somebody outside. ``ct helper`` is that of the flow by which it is expected.

What turns round on a bridge, from a guest to what another one of its network has published, or to
itself, has the gateway's address as its source, so that the answer turns round there, too. So has
what the host sends from 127.0.0.0/8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = [
    "FORWARDED", "MAPS", "PORT_MAPS", "SETS", "TRANSLATED", "Publication", "Published", "Turning",
]  # fmt: skip

_NUMBERS: Final = {"tcp": 6, "udp": 17}

#: nft's JSON flushes a map as a map.
PORT_MAPS: Final = ("published4", "published6", "published_at4", "published_at6")
SETS: Final = (
    *PORT_MAPS,
    *("admitted4", "admitted6", "admitted_at4", "admitted_at6", "turning"),
)

MAPS: Final = (
    "".join(
        f"""
  map published{version} {{
    type inet_proto . inet_service : {address} . inet_service
  }}
  map published_at{version} {{
    type {address} . inet_proto . inet_service : {address} . inet_service
  }}
  set admitted{version} {{
    type inet_service . inet_proto . {address} . inet_service
  }}
  set admitted_at{version} {{
    type {address} . inet_service . inet_proto . {address} . inet_service
  }}"""
        for version, address in ((4, "ipv4_addr"), (6, "ipv6_addr"))
    )
    + """
  set turning {
    type ifname . ifname
  }"""
)


def _admitted(protocol: str) -> str:
    # "ct original proto-dst" has a type only behind a match of one protocol (nft 1.0.6).
    rules = "".join(
        f"""
    meta l4proto {protocol} {original}ct original proto-dst . meta l4proto . {guest} @{name}"""
        " accept"
        for version, ip in ((4, "ip"), (6, "ip6"))
        for guest in (f"{ip} daddr . th dport",)
        for original, name in (
            ("", f"admitted{version}"),
            (f"ct original {ip} daddr . ", f"admitted_at{version}"),
        )
    )
    return f"""
  chain admitted_{protocol} {{{rules}
  }}"""


FORWARDED: Final = (
    "".join(map(_admitted, _NUMBERS))
    + """
  chain admitted {
    meta l4proto vmap { tcp : jump admitted_tcp, udp : jump admitted_udp }
  }
  chain related {
    meta l4proto { icmp, ipv6-icmp } accept
    ct helper "ftp" accept
    ct helper "tftp" accept
    ct helper "sip" accept
    ct helper "irc" accept
    ct helper "amanda" accept
    ct helper "sane" accept
    ct helper "pptp" accept
  }
  chain between_networks {
    ct state established ct status dnat accept
    ct state related ct status dnat iifname . oifname @turning jump related
    ct status dnat iifname . oifname @turning jump admitted
    counter name apart drop
  }"""
)

TRANSLATED: Final = """
  chain published {
    dnat ip to ip daddr . meta l4proto . th dport map @published_at4
    dnat ip to meta l4proto . th dport map @published4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @published_at6
    dnat ip6 to meta l4proto . th dport map @published6
  }
  chain publish {
    type nat hook prerouting priority -100; policy accept;
    iifname "svn_*" ip daddr 127.0.0.0/8 drop
    ip daddr 127.0.0.0/8 accept
    meta l4proto { tcp, udp } fib daddr type local goto published
  }
  chain publish_here {
    type nat hook output priority -100; policy accept;
    ip6 daddr ::1 accept
    meta l4proto { tcp, udp } fib daddr type local goto published
  }
  chain to_published {
    iifname "svn_*" masquerade
    ip saddr 127.0.0.0/8 masquerade
  }"""


@dataclass(frozen=True, slots=True)
class Publication:
    """Ports of this host that are a guest's.

    :param bridge: of the guest's network.
    :param address: of this host; empty: every one.
    :param targets: the guest's addresses, one of each IP version.
    :param ports: how many, from ``host_port`` and ``guest_port`` on.
    """

    bridge: str
    protocol: str
    address: str
    host_port: int
    guest_port: int
    ports: int
    targets: tuple[str, ...]

    def elements(self) -> list[tuple[str, object]]:
        """Set or map, and element."""
        protocol = _NUMBERS[self.protocol]
        found: list[tuple[str, object]] = []
        for target in self.targets:
            version = 6 if ":" in target else 4
            at, here = ("_at", (self.address,)) if self.address else ("", ())
            for number in range(self.ports):
                host, guest = self.host_port + number, self.guest_port + number
                key = {"concat": [*here, protocol, host]}
                found.append((f"published{at}{version}", [key, {"concat": [target, guest]}]))
                known = {"concat": [*here, host, protocol, target, guest]}
                found.append((f"admitted{at}{version}", known))
        return found


@dataclass(frozen=True, slots=True)
class Turning:
    """Guests of a network reach what others of it have published, through the gateway."""

    bridge: str

    def elements(self) -> list[tuple[str, object]]:
        """Set and element."""
        return [("turning", {"concat": [self.bridge, self.bridge]})]


Published = Publication | Turning

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fixed part of the firewall: one constant text, no variable in it.

A VM is elements of these sets and maps (``firewall.py``), so the thousandth costs what the first
did.

Two prefixes of names carry the default, which is *no*: ``svt*`` is a TAP of ours, ``svn_*`` the
bridge of a managed network. A TAP that is in no set (its elements were flushed, its record lost)
matches no permission and is cut off, never let through unfiltered.

``table bridge`` judges frames that come *from* a guest, before the bridge learns their address
(prerouting is before br_fdb_update()), and frames from guest to guest. ``table inet`` keeps guests
off the host and each other at layer 3 and lets them out. An accept here ends this table only;
another's drop stays a drop, and ``sessionvirt doctor`` names it.

A network's mode is which of the sets of ``table inet`` its prefixes are in: ``networks`` may go
out, ``masqueraded`` by NAT, ``inward`` may be reached from outside; of an isolated network only the
gateway's address is known. An open network's bridge is in ``open_bridges``, and nothing at layer 3
is judged there, but that networks, and users, stay apart in every mode. Whoever comes from outside
with an address of a guest is none. A gateway is one on its own bridge only (``fib``: whose address
it is there): to Linux an address is the whole host's, and another network's DNS, with the names of
its guests and the way out that its questions have, would be everybody's.

What guests publish is ``published.py``'s part of ``table inet``.

The text takes away what an earlier edition of ours has left, and stands in its place in the same
transaction: at no time is there nothing.

Each reason for a drop is a chain that ends in a set with one counting element a TAP: counters by VM
and reason, at a hash look-up's price, and dropped all the same where the element is missing.

What a frame must have is matched, never what it must not have: a rule that cannot read its field
(the frame is cut short) does not match, and the last one is the drop. So a packet whose headers
nft cannot follow to its transport is not accepted (``meta l4proto >= 0``: it has one), or it would
be spared what is asked about ports and types. DHCP servers are known by either port, for clients
look at their own only; in first fragments, for Linux 6.18 lets nft find "ports" in IPv4's later
ones (measured). A first IPv6 fragment must have its transport header, or a second one could bring
what the first was not judged by (RFC 7113). A DHCP server knows its clients by the hardware address
in their messages (``chaddr``), so that is a guest's own: with another's it could decline that one's
address, which is nobody's then for ten minutes. A relay of DHCPv6 says whose address it is (RFC
6939), so a guest says there what clients say (RFC 8415, 7.3), and nothing in another's name.

The plain frame is permitted first: TCP or UDP without more headers to one receiver, by one look-up
of TAP, MAC and address together; between guests, of receiver and owner together. A rule for plain
frames permits what those after it would permit anyhow, and what it does not is judged by them, and
counted by its reason: read them for the policy, and the ``plain`` ones for what they are spared.

Every comparison and every hook has its price in every frame (docs/benchmarks.rst). Two traps on the
way: nft 1.0.6 makes *one* comparison of two neighbouring fields' ``!=`` in a rule, so none has two;
and ``ether type`` beside ``ip`` or ``ip6`` in one rule is missing in nft's listing, from which it
comes back as ``meta protocol``, which for a frame with a VLAN tag is what is within. So whether
there is a tag is asked in a rule of its own.

Nobody asks who wants which group (IGMP, MLD): a bridge that hears a query takes the port for a
router's and gives groups to their known members only, which cuts others' guests off from neighbour
discovery. It reads queries where nft does not: in a later fragment of IGMP (ip_mc_check_igmp()),
and behind an AH (ipv6_skip_exthdr()), which with hop-by-hop options, as MLD has them, is refused.

Frames to 01:80:c2:00:00:0x do not pass prerouting: the bridge hands some to ``input``, and LLDP's,
and BPDUs where STP is on, to the *port's own* layer 3, past every bridge hook. So a TAP itself may
send nothing to the host in ``table inet``, and ``netlink.py`` makes ports that do not learn.

What goes *to* a guest is for it or for a group: a bridge asks every port for an address that it has
forgotten, and a guest can make it forget another's (SIOCSIFHWADDR). That is asked in ``forward``
and, of what the host sends, in ``output``, behind an administrator's dstnat (100): every frame for
a port passes one of the two (__br_forward()), and ``postrouting`` would be one more hook for all.

What the host itself sends to a guest does not wait in that guest's queue (``htb.py``), where it
would be charged to its sender's socket: a guest that asks for a slow limit, and for many answers,
would have one service's socket full (212 KiB), and then dnsmasq, the kernel's own ICMP, or what
sends TCP's resets answers nobody (measured: 174 answers). By a priority that is the queueing's own
handle a frame passes it (htb_classify() in net/sched/sch_htb.c), to the TAP, which charges nobody.
What waits is TCP with something in it, and datagrams of ports that are no service's: each is of a
socket that is one program's, with that guest or by its own choice.

Nothing of a guest's is for 127.0.0.0/8, which a bridge with published ports would route. The rules
of ``table inet`` say so for what begins; an error about a flow that the host has with itself is
"related", so it ends in ``check_ipv4``. (What is plain is no error.)

"Related" is also whatever a helper of conntrack's expects, where an administrator has assigned one
(``ct helper set``): of the host, nothing but errors gets in by that, and for guests see
``published.py``.

With br_netfilter on, bridged frames pass ``inet forward`` too, with the bridge as both interfaces,
which is what a packet looks like that turns round at the gateway. A frame that ``table bridge`` let
from guest to guest carries a mark from there to the other table; a packet that was routed does not.

Elements are keyed by the TAP's name, 48 random bits that nobody without CAP_NET_ADMIN can change:
they are there before the TAP is. By index they would cost a dump of every interface each time, for
libnftables looks up any index as a name first (measured: 11 ms a change with 500 TAPs, 0.6 by
name).

``targets`` holds IPv6 addresses as 128-bit numbers: nft 1.0.6 cannot spell ``icmpv6 taddr``, and
the same field as raw payload has the type "integer". So has ``chaddr`` in ``clients``.
"""

from __future__ import annotations

import re

from .chains import chains
from .published import FORWARDED, MAPS, TRANSLATED

#: The reasons, in the order in which a frame meets them; ListLeases reports by these words.
REASONS = (
    "mac",
    "vlan",
    "bpdu",
    "type",
    "arp",
    "ipv4",
    "ipv6",
    "neighbour",
    "router",
    "dhcp",
    "peer",
)

#: A chain of this name in both tables says that they are ours, and which edition.
MARKER = "sessionvirt_4"
#: Of any edition; one that an earlier broker left is replaced, in one transaction.
MARKERS = re.compile(r"sessionvirt_[0-9]{1,4}")


RULESET = (
    """
table bridge sessionvirt
delete table bridge sessionvirt
table inet sessionvirt
delete table inet sessionvirt
"""
    f"""
table bridge sessionvirt {{
  chain {MARKER} {{
  }}
  set macs {{
    type ifname . ether_addr
  }}
  set addresses4 {{
    type ifname . ether_addr . ipv4_addr
  }}
  set addresses6 {{
    type ifname . ether_addr . ipv6_addr
  }}
  set targets {{
    typeof iifname . @th,64,128
  }}
  set unbound {{
    type ifname . ether_addr
  }}
  map owners {{
    type ifname : mark
  }}
  set peers {{
    type ifname . ether_addr . mark
  }}
  set group_peers {{
    type ifname . mark
  }}
"""
    + chains("iifname", REASONS)
    + """
  chain arp_sender {
    meta iifname . ether saddr @unbound accept
    arp operation request arp saddr ip 0.0.0.0 accept
    meta iifname . ether saddr . arp saddr ip @addresses4 accept
    goto drop_arp
  }
  chain arp_hardware {
    meta iifname . arp saddr ether @macs goto arp_sender
  }
  chain check_arp {
    arp htype 1 arp ptype ip arp hlen 6 arp plen 4 jump arp_hardware
    goto drop_arp
  }
  chain first_datagram4 {
    udp sport 67 goto drop_dhcp
    udp dport 68 goto drop_dhcp
    udp dport 67 jump dhcp_client
    ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
  }
  chain check_ipv4 {
    ip daddr 127.0.0.0/8 goto drop_ipv4
    meta l4proto udp ip frag-off & 0x1fff == 0 jump first_datagram4
    meta l4proto igmp jump check_igmp
    meta l4proto >= 0 meta iifname . ether saddr . ip saddr @addresses4 accept
    meta l4proto >= 0 meta iifname . ether saddr @unbound accept
    goto drop_ipv4
  }
  chain later_fragment6 {
    meta iifname . ether saddr @unbound accept
    meta iifname . ether saddr . ip6 saddr @addresses6 accept
    goto drop_ipv6
  }
  chain advertised {
    meta iifname . @th,64,128 @targets accept
    goto drop_neighbour
  }
  chain own6 {
    icmpv6 type nd-neighbor-advert goto advertised
    accept
  }
  chain check_ipv6 {
    frag frag-off 0 jump first_fragment6
    frag frag-off != 0 goto later_fragment6
    icmpv6 type { nd-router-advert, nd-redirect, mld-listener-query } goto drop_router
    exthdr hbh exists meta l4proto ah goto drop_router
    udp sport 547 goto drop_dhcp
    udp dport 546 goto drop_dhcp
    udp dport 547 jump dhcp_client6
    meta l4proto >= 0 meta iifname . ether saddr @unbound accept
    ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit, mld2-listener-report } accept
    meta l4proto >= 0 meta iifname . ether saddr . ip6 saddr @addresses6 goto own6
    goto drop_ipv6
  }
  chain plain4 {
    meta iifname . ether saddr . ip saddr @addresses4 accept
    meta iifname . ether saddr @unbound accept
  }
  chain plain6 {
    ip6 nexthdr { tcp, udp } meta iifname . ether saddr . ip6 saddr @addresses6 accept
    ip6 nexthdr { tcp, udp } meta iifname . ether saddr @unbound accept
  }
  chain plain_tcp {
    ether type ip jump plain4
    ether type ip6 jump plain6
  }
  chain plain_udp4 {
    udp sport 67 return
    udp dport { 67, 68 } return
    goto plain4
  }
  chain plain_udp6 {
    udp sport 547 return
    udp dport { 546, 547 } return
    goto plain6
  }
  chain plain_udp {
    ether type ip jump plain_udp4
    ether type ip6 jump plain_udp6
  }
  chain to_bridges {
    ether type { 8021q, 0x88a8, 0x9100 } goto drop_vlan
    goto drop_bpdu
  }
  chain from_guest {
    meta l4proto tcp ether daddr & 01:00:00:00:00:00 == 0 jump plain_tcp
    meta l4proto udp ether daddr & 01:00:00:00:00:00 == 0 jump plain_udp
    meta iifname . ether saddr != @macs goto drop_mac
    ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto to_bridges
    ether type vmap {
      arp : goto check_arp,
      ip : goto check_ipv4,
      ip6 : goto check_ipv6,
      8021q : goto drop_vlan,
      0x88a8 : goto drop_vlan,
      0x9100 : goto drop_vlan
    }
    goto drop_type
  }
  chain same_owner {
    meta mark set 0x73760001 accept
  }
  chain group_of_owner {
    ether daddr & 01:00:00:00:00:00 == 0 drop
    goto same_owner
  }
  chain between_guests {
    meta mark set iifname map @owners meta oifname . meta mark @group_peers goto group_of_owner
    goto drop_peer
  }
  chain for_receiver {
    ether daddr & 01:00:00:00:00:00 == 0 meta oifname . ether daddr != @macs drop
  }
  chain to_guest {
    meta mark set iifname map @owners meta oifname . ether daddr . meta mark @peers goto same_owner
    iifname "svt*" goto between_guests
    goto for_receiver
  }
  chain prerouting {
    type filter hook prerouting priority -300; policy accept;
    iifname "svt*" goto from_guest
  }
  chain input {
    type filter hook input priority -200; policy accept;
    iifname "svt*" ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto drop_bpdu
  }
  chain forward {
    type filter hook forward priority -200; policy accept;
    oifname "svt*" goto to_guest
  }
  chain from_host {
    meta l4proto tcp meta length > 128 goto for_receiver
    ip frag-off & 0x1fff == 0 udp sport { 1024-5352, 5354-65535 } goto for_receiver
    ip6 nexthdr udp udp sport { 1024-5352, 5354-65535 } goto for_receiver
    meta priority set 5356:0
    goto for_receiver
  }
  chain output {
    type filter hook output priority 200; policy accept;
    oifname "svt*" goto from_host
  }
}
table inet sessionvirt {
"""
    + f"""
  chain {MARKER} {{
  }}
"""
    + """
  set networks4 {
    type ipv4_addr
    flags interval
  }
  set networks6 {
    type ipv6_addr
    flags interval
  }
  set masqueraded4 {
    type ipv4_addr
    flags interval
  }
  set masqueraded6 {
    type ipv6_addr
    flags interval
  }
  set inward4 {
    type ipv4_addr
    flags interval
  }
  set inward6 {
    type ipv6_addr
    flags interval
  }
  set open_bridges {
    type ifname
  }
  set gateways4 {
    type ipv4_addr
  }
  set gateways6 {
    type ipv6_addr
  }
  set uplinks {
    type iface_index
  }
  set uplinks6 {
    type iface_index
  }
"""
    + MAPS
    + """
  counter to_host {
  }
  counter apart {
  }
  counter stray {
  }
  chain to_host {
    ct state established accept
    ct state related meta l4proto { icmp, ipv6-icmp } accept
    ip daddr 127.0.0.0/8 counter name to_host drop
    udp sport 68 udp dport 67 accept
    ip daddr @gateways4 meta l4proto { tcp, udp } th dport 53 fib daddr . iif type local accept
    ip daddr @gateways4 icmp type echo-request fib daddr . iif type local accept
    ip6 daddr @gateways6 meta l4proto { tcp, udp } th dport 53 fib daddr . iif type local accept
    ip6 daddr @gateways6 icmpv6 type echo-request fib daddr . iif type local accept
    udp sport 546 udp dport 547 accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept
    icmpv6 type { mld-listener-report, mld2-listener-report, mld-listener-done } accept
    counter name to_host drop
  }
  chain open_to_host {
    ct state established accept
    ct state related meta l4proto { icmp, ipv6-icmp } accept
    ip daddr 127.0.0.0/8 counter name to_host drop
    accept
  }
  chain input {
    type filter hook input priority -10; policy accept;
    iifname @open_bridges goto open_to_host
    iifname "svn_*" goto to_host
    iifname "svt*" counter name to_host drop
  }
  chain outward {
    ip saddr @networks4 accept
    ip6 saddr @networks6 accept
    counter name stray drop
  }
"""
    + FORWARDED
    + """
  chain inward {
    ct state established accept
    ct state related jump related
    ip saddr @networks4 counter name stray drop
    ip6 saddr @networks6 counter name stray drop
    ct status dnat jump admitted
    ip daddr @inward4 accept
    ip6 daddr @inward6 accept
    counter name stray drop
  }
  chain forward {
    type filter hook forward priority -10; policy accept;
    meta mark 0x73760001 iifname "svn_*" oifname "svn_*" accept
    iifname "svn_*" oifname "svn_*" goto between_networks
    iifname @open_bridges accept
    oifname @open_bridges accept
    iifname "svn_*" goto outward
    oifname "svn_*" goto inward
    iifname "svt*" counter name stray drop
    meta nfproto ipv4 iif @uplinks counter name stray drop
    meta nfproto ipv6 iif @uplinks6 counter name stray drop
  }
"""
    + TRANSLATED
    + """
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    oifname "svn_*" ct status dnat goto to_published
    ip saddr @masqueraded4 oifname != "svn_*" masquerade
    ip6 saddr @masqueraded6 oifname != "svn_*" masquerade
  }
}
"""
)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What stops the packets of machines that run, in words: the rule, whose it is, the one command.

The broker names rules by table, chain and handle; whose they are is guessed from these names and
from what else is there. A command is put as somebody else's program wants it, so that it stays when
that writes its rules anew, and what it opens is said. Nothing is done here.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

from sessionvirt.broker_data import TapGrant
from sessionvirt.host import firewalls
from sessionvirt.host.policyroutes import catching, policy_rules

from .checks import Check, Level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sessionvirt.broker_data import Diagnosis, LeaseInfo, Obstacle
    from sessionvirt.host.firewalls import Presence

__all__ = ["Mend", "bridge_of", "host_checks", "mend", "obstacle_checks", "owner"]

_TRAFFIC: Final = {
    "out": "what it sends outside",
    "in": "the answers to what it sends outside",
    "dhcp": "its DHCP",
    "dns": "its questions to DNS",
}
_INWARD: Final = ("dhcp", "dns")
_VPNS: Final = ("wg", "mullvad", "nord", "tailscale", "ts-", "vpn", "killswitch")


@dataclass(frozen=True)
class Mend:
    """What an administrator does about a rule.

    :param command: one line for a shell of root's.
    :param opens: what that lets through.
    """

    command: str
    opens: str


def obstacle_checks(obstacles: Sequence[Obstacle], there: Presence) -> list[Check]:
    """One check for each rule that stops something; possible ones together."""
    checks = []
    known = [one for one in obstacles if one.certainty != "possible"]
    for _, group in groupby(sorted(known, key=_rule), key=_rule):
        checks.append(_obstacle(list(group), there))
    if possible := sorted({_name(one) for one in obstacles if one.certainty == "possible"}):
        sentence = f"whether these stop something is not known: {'; '.join(possible)}"
        checks.append(Check("firewall-rules", Level.OK, sentence))
    if not checks:
        checks.append(Check("firewall-rules", Level.OK, "no rule of others' stops your machines"))
    return checks


def _rule(one: Obstacle) -> tuple[str, str, str, str, int, str]:
    return one.bridge, one.family, one.table, one.chain, one.handle, one.hook


def _obstacle(found: list[Obstacle], there: Presence) -> Check:
    one = found[0]
    certain = any(each.certainty == "certain" for each in found)
    machines = ", ".join(dict.fromkeys(each.vm for each in found))
    stopped = " and ".join(_TRAFFIC[word] for word in dict.fromkeys(each.traffic for each in found))
    does = {"drop": "drops", "reject": "rejects"}.get(one.verdict, "stops")
    likely = does if certain else f"most likely {does}"
    whose = owner(one, there)
    sentence = f"{machines} on {one.bridge}: {_name(one)}, {whose}, {likely} {stopped}"
    what = mend(one, {each.traffic for each in found}, there)
    level = Level.PROBLEM if certain else Level.WARNING
    return Check("firewall-rules", level, sentence, f"{what.command}   ({what.opens})")


def _name(one: Obstacle) -> str:
    """The rule, as ``nft -a list chain`` shows it."""
    place = f"chain {one.chain} of table {one.family} {one.table} (hook {one.hook})"
    return f"rule {one.handle} in {place}" if one.handle else f"the policy of {place}"


def owner(one: Obstacle, there: Presence) -> str:
    """Whose a rule most likely is."""
    name, chain = one.table.lower(), one.chain
    if name.startswith("firewalld"):
        return "firewalld's"
    if chain.startswith("ufw"):
        return "ufw's"
    if chain.startswith("DOCKER") or name.startswith("docker"):
        return "Docker's"
    if chain.startswith("LIBVIRT") or name.startswith("libvirt"):
        return "libvirt's"
    if any(word in part for part in (name, chain.lower()) for word in _VPNS):
        return "a VPN's"
    if name == "filter" and one.family in ("ip", "ip6") and chain.isupper():
        # Both set policies of the chains that everybody shares.
        if there.ufw:
            return "ufw's"
        if there.docker and chain == "FORWARD":
            return "Docker's"
    return "an administrator's"


def mend(one: Obstacle, traffic: set[str], there: Presence) -> Mend:
    """The command for what a rule stops on a bridge."""
    bridge, whose = one.bridge, owner(one, there)
    inward = bool(traffic & set(_INWARD))
    answers = f"machines on {bridge} may send to anybody by this host, and get the answers"
    services = f"machines on {bridge} may ask this host; sessionvirt lets DHCP and DNS through only"
    if not bridge.startswith("svn_"):
        return Mend(
            f"ip link set dev {bridge} type bridge nf_call_iptables 0 nf_call_ip6tables 0",
            f"frames that only cross {bridge} do not pass the IP firewall of this host",
        )
    if whose == "firewalld's":
        command = f"firewall-cmd --zone=sessionvirt --change-interface={bridge}"
        return Mend(command, services if inward else answers)
    if whose == "ufw's":
        if inward:
            return Mend(f"ufw allow in on {bridge}", services)
        return Mend(f"ufw route allow in on {bridge}", answers)
    if whose == "Docker's" and one.family in ("ip", "ip6") and not inward:
        tool = "iptables" if one.family == "ip" else "ip6tables"
        back = f"{tool} -I DOCKER-USER -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED"
        out = f"{tool} -I DOCKER-USER -i {bridge} -j ACCEPT"
        return Mend(f"{out} && {back} -j ACCEPT", answers)
    return Mend(_by_nft(one, traffic), services if inward else answers)


def _by_nft(one: Obstacle, traffic: set[str]) -> str:
    """In front of what stops it; quoted for a shell."""
    place = f"insert rule {one.family} {one.table} {one.chain}"
    rules = []
    if traffic & {"out", *_INWARD}:
        ports = " udp dport { 53, 67 }" if traffic & set(_INWARD) else ""
        rules.append(f'{place} iifname "{one.bridge}"{ports} accept')
    if "in" in traffic:
        rules.append(f'{place} oifname "{one.bridge}" ct state established,related accept')
    if not rules or one.hook == "output":
        rules = [f'{place} oifname "{one.bridge}" accept']
    return f"nft '{'; '.join(rules)}'"


def host_checks(facts: Diagnosis, leases: Sequence[LeaseInfo], there: Presence) -> list[Check]:
    """What stops packets without a rule, and what nft does not show."""
    return [
        *_degraded(leases),
        *_forwarding(leases),
        *_strict(),
        *_policy(leases),
        *_legacy(facts, there),
    ]


def _degraded(leases: Sequence[LeaseInfo]) -> list[Check]:
    return [
        Check(
            "filter",
            Level.PROBLEM,
            f"{lease.vm} may not be filtered: {lease.degraded}",
            "find who takes the tables named sessionvirt away (nft monitor tells the program)",
        )
        for lease in leases
        if lease.degraded
    ]


def _taps(leases: Sequence[LeaseInfo]) -> list[tuple[LeaseInfo, TapGrant]]:
    grants = [(lease, grant) for lease in leases for grant in lease.grants]
    return [(one, grant) for one, grant in grants if isinstance(grant, TapGrant) and grant.network]


def bridge_of(lease: LeaseInfo, tap: TapGrant) -> str:
    """The bridge of a managed network; each user's private one is called by the same name."""
    return f"svn_u{lease.uid}" if tap.network == "private" else f"svn_{tap.network}"


def _forwarding(leases: Sequence[LeaseInfo]) -> list[Check]:
    if not any(tap.ipv4 for _, tap in _taps(leases)):
        return []
    off = firewalls.not_forwarding(firewalls.uplinks())
    if not off:
        return []
    names = ", ".join(off)
    command = "; ".join(_sysctl(one, "forwarding=1") for one in off)
    sentence = f"answers to machines that come in by {names} are not forwarded"
    opens = f"what comes in by {names} may be routed, to wherever the firewall lets it"
    return [Check("forwarding", Level.PROBLEM, sentence, f"{command}   ({opens})")]


def _sysctl(interface: str, setting: str) -> str:
    """For a shell of root's, in which the kernel lets an interface be called nearly anything."""
    key = interface.replace(".", "/")
    return f"sysctl {shlex.quote(f'net.ipv4.conf.{key}.{setting}')}"


def _strict() -> list[Check]:
    strict = firewalls.strict_uplinks()
    if not strict:
        return []
    names = ", ".join(strict)
    sentence = f"of several uplinks {names} drop what comes in by another way than it went out"
    command = "; ".join(_sysctl(one, "rp_filter=2") for one in strict)
    opens = "an answer may come by any uplink that has some way back"
    return [Check("reverse-path", Level.WARNING, sentence, f"{command}   ({opens})")]


def _policy(leases: Sequence[LeaseInfo]) -> list[Check]:
    checks = []
    for version in (4, 6):
        rules = policy_rules(version)
        for lease, tap in _taps(leases) if rules else ():
            addresses = tap.ipv4 if version == 4 else tap.ipv6
            for rule in catching(rules, addresses[0], bridge_of(lease, tap)) if addresses else ():
                may = "may go" if rule.marked or rule.inverted else "goes"
                checks.append(
                    Check(
                        "policy-routing",
                        Level.OK,
                        f"what {addresses[0]} sends {may} by routing table {rule.table}, not by "
                        f"the main one (ip rule {rule.priority}), as with a VPN",
                    )
                )
    return checks


def _legacy(facts: Diagnosis, there: Presence) -> list[Check]:
    if not facts.legacy_tables:
        return []
    tables = ", ".join(facts.legacy_tables)
    sentence = f"iptables-legacy has tables of its own, which nobody sees by nft: {tables}"
    advice = "iptables-legacy-save shows whether a rule there drops forwarded packets"
    level = Level.WARNING if there.docker or there.ufw else Level.OK
    return [Check("legacy-firewall", level, sentence, advice)]

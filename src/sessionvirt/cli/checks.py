# SPDX-License-Identifier: LGPL-2.1-or-later
"""The checks of ``sessionvirt doctor``, from facts to words. Nothing here talks to the broker."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sessionvirt.driver.network import find_passt
from sessionvirt.errors import SessionvirtError
from sessionvirt.host.cpu import vendor
from sessionvirt.host.iommu import group_count
from sessionvirt.host.kvm import probe
from sessionvirt.host.logind import Presence, presence
from sessionvirt.host.paths import cache_directory, find_program
from sessionvirt.qemu import capabilities as qemu_capabilities

from .devicewords import iommu_advice

if TYPE_CHECKING:
    from sessionvirt.broker_data import Diagnosis

__all__ = ["Check", "Level", "broker_checks", "session_checks"]

_RULE = "/usr/share/doc/sessionvirt/sessionvirt.rules.example shows how to allow it"


class Level(Enum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Check:
    """One line of the examination.

    :param name: a stable word, for programs too.
    :param found: what is so.
    :param advice: what to do; empty where all is well.
    """

    name: str
    level: Level
    found: str
    advice: str = ""


def _check(name: str, found: str) -> Check:
    return Check(name, Level.OK, found)


# --- what this side sees by itself


async def session_checks() -> list[Check]:
    """Check what needs no broker."""
    return [*await _qemu(), _kvm(), _iommu(), _binding(), _cache(), _presence(), _agent()]


async def _qemu() -> list[Check]:
    try:
        found = await qemu_capabilities.load(qemu_capabilities.find_binary())
    except SessionvirtError as error:
        return [Check("qemu", Level.PROBLEM, error.cause, error.advice)]
    version = ".".join(map(str, found.version))
    checks = [_check("qemu", f"{found.binary}, version {version}")]
    try:
        passt = find_passt(found)
    except SessionvirtError as error:
        return [*checks, Check("user-network", Level.PROBLEM, error.evidence, error.advice)]
    own = "QEMU's own (slirp); passt is faster, where it is installed and there is a default route"
    return [*checks, _check("user-network", own if passt is None else f"passt: {passt}")]


def _kvm() -> Check:
    found = probe()
    if found.usable:
        return _check("kvm", "guests run under KVM")
    return Check(
        "kvm", Level.WARNING, f"guests run under TCG, slowly: {found.reason}", found.advice
    )


def _iommu() -> Check:
    count = group_count()
    if count:
        return _check("iommu", f"it is on, and tells {count} groups of devices apart")
    sentence = "no IOMMU is on: PCI devices of this host cannot be given to machines"
    return Check("iommu", Level.WARNING, sentence, iommu_advice(vendor()))


def _binding() -> Check:
    if find_program("setpriv"):
        return _check("lifetime", "machines end with the program that runs them")
    sentence = "without setpriv a machine outlives the program that runs it"
    return Check("lifetime", Level.WARNING, sentence, "install util-linux")


def _cache() -> Check:
    path = cache_directory()
    if path is not None:
        return _check("cache", path)
    sentence = "no cache directory: QEMU is examined anew at every start"
    return Check("cache", Level.WARNING, sentence, "make ~/.cache, yours and with mode 0700")


def _presence() -> Check:
    found = presence()
    sentences = {
        Presence.ACTIVE: "you are at this machine's seat",
        Presence.INACTIVE: "your session is not in the foreground of its seat",
        Presence.REMOTE: "you are logged in from elsewhere",
        Presence.NONE: "you have no login session",
        Presence.UNKNOWN: "there is no logind, so for polkit nobody is at the seat",
    }
    if found is Presence.ACTIVE:
        return _check("session", sentences[found])
    advice = f"networks need an administrator's permission: {_RULE}"
    return Check("session", Level.WARNING, sentences[found], advice)


def _agent() -> Check:
    if find_program("pkttyagent"):
        return _check("prompt", "pkttyagent asks on a terminal")
    sentence = "without pkttyagent nobody can be asked on a terminal"
    return Check("prompt", Level.WARNING, sentence, "install polkitd (pkttyagent)")


# --- what the broker sees


def broker_checks(facts: Diagnosis, *, running: bool = False) -> list[Check]:
    """Word the broker's facts.

    :param running: there are machines whose own packets are asked about instead of any.
    """
    return [
        _check("broker", f"version {facts.version}"),
        _capabilities(facts),
        _configuration(facts),
        _polkit(facts),
        _tun(facts),
        _dnsmasq(facts),
        _tables(facts),
        _bridge_netfilter(facts),
        *([] if running else [_foreign_firewall(facts)]),
    ]


def _capabilities(facts: Diagnosis) -> Check:
    if not facts.missing_capabilities:
        return _check("broker-capabilities", "all there")
    missing = ", ".join(facts.missing_capabilities)
    advice = "start it by its own systemd unit, or give a container these capabilities"
    # A network needs these two; the others are for host devices.
    needed = {"net_admin", "dac_override"} & set(facts.missing_capabilities)
    level = Level.PROBLEM if needed else Level.WARNING
    return Check("broker-capabilities", level, f"missing: {missing}", advice)


def _configuration(facts: Diagnosis) -> Check:
    words = {"builtin": "built in; there is no broker.toml", "file": "/etc/sessionvirt/broker.toml"}
    if facts.configuration in words:
        return _check("configuration", words[facts.configuration])
    advice = "an administrator has to correct /etc/sessionvirt/broker.toml"
    return Check("configuration", Level.PROBLEM, facts.configuration, advice)


def _polkit(facts: Diagnosis) -> Check:
    words = {"running": "running", "activatable": "starts when it is asked"}
    if facts.polkit in words:
        return _check("polkit", words[facts.polkit])
    advice = "install and start polkitd; without it every answer is no"
    return Check("polkit", Level.PROBLEM, facts.polkit, advice)


def _tun(facts: Diagnosis) -> Check:
    if facts.tun:
        return _check("tun", "/dev/net/tun can be opened")
    advice = "modprobe tun; in a container, pass /dev/net/tun"
    return Check("tun", Level.PROBLEM, "the broker cannot open /dev/net/tun", advice)


def _dnsmasq(facts: Diagnosis) -> Check:
    if facts.dnsmasq:
        return _check("dnsmasq", facts.dnsmasq)
    sentence = "not installed: guests on managed networks get no address"
    return Check("dnsmasq", Level.PROBLEM, sentence, "install dnsmasq-base")


def _tables(facts: Diagnosis) -> Check:
    words = {"present": "in place", "absent": "made when the first machine needs them"}
    if facts.nft_tables in words:
        return _check("firewall", words[facts.nft_tables])
    sentence = "somebody else has nftables tables of our names"
    return Check("firewall", Level.PROBLEM, sentence, "nft list tables; rename or delete theirs")


def _bridge_netfilter(facts: Diagnosis) -> Check:
    if not facts.bridge_nf_call:
        return _check("bridge-netfilter", "off")
    sentence = "frames between guests pass the host's IP firewall"
    advice = "sysctl net.bridge.bridge-nf-call-iptables=0, unless another program needs it"
    return Check("bridge-netfilter", Level.WARNING, sentence, advice)


def _foreign_firewall(facts: Diagnosis) -> Check:
    chains = "; ".join(facts.foreign_forward_drops)
    if not chains:
        return _check("other-firewalls", "none drops forwarded packets by default")
    advice = (
        "guests reach nothing outside until it accepts the network's bridge (Docker: DOCKER-USER)"
    )
    return Check(
        "other-firewalls", Level.WARNING, f"forwarded packets are dropped by {chains}", advice
    )

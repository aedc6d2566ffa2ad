# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that has gone has left nothing, while its network goes on for others (attacks 38 and 42).

What everything together leaves when the last guest goes is the guard's to find (``lab/leaks``).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import frames, host
from lab.broker import RUNTIME
from lab.client import network_tap
from lab.guesttraffic import GATEWAY6, dhcp4, dhcp6, packed
from lab.links import wait_for_link

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.client import Client, Lease

pytestmark = pytest.mark.kernel

MAC = "52:54:00:00:46:01"
BRIDGE, GATEWAY = "svn_default", "10.213.80.1"
#: Everywhere that the kernel keeps something about a guest.
LISTINGS = (
    ("bridge", "-details", "fdb", "show"),
    ("bridge", "-details", "mdb", "show"),
    ("ip", "neigh", "show", "nud", "all"),
    ("ip", "-details", "address"),
    ("ip", "-4", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("nft", "list", "ruleset"),
)


@pytest.fixture
def neighbour(lasting_broker: Broker, bobs: Client) -> Iterator[Lease]:
    """Somebody else's guest, for whom the network goes on."""
    with bobs.acquire() as lease:
        yield lease


def talkative(lease: Lease) -> list[str]:
    """A guest that has done all that guests do; the words by which it is known."""
    tap = lease.tap
    tap.attentive = True
    tap.ask_arp(GATEWAY)
    offered, options = dhcp4(tap, frames.DISCOVER)
    dhcp4(tap, frames.REQUEST, option50=packed(offered), option54=options[54])
    _, options6 = dhcp6(tap, frames.SOLICIT)
    dhcp6(tap, frames.REQUEST6, (2, options6[2]))
    group = frames.solicited_node(GATEWAY6)
    question = frames.neighbour_solicitation(tap.ipv6, group, GATEWAY6, tap.mac)
    tap.send(tap.to6(frames.multicast_mac(group), tap.ipv6, group, frames.ICMP6, question))
    tap.until(lambda p: p.protocol == frames.ICMP6 and p.kind == 136)
    report = frames.router_alert(frames.ICMP6) + frames.mld(tap.link_local, group, 131, group)
    tap.send(tap.to6(frames.multicast_mac(group), tap.link_local, group, 0, report))
    return [lease.id, tap.ifname, tap.mac, tap.mac[3:], tap.ipv4, tap.ipv6, tap.link_local]


def traces(words: list[str]) -> list[str]:
    """Lines of the kernel's, and files, in which any of the words is."""
    found = []
    for argv in LISTINGS:
        shown = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
        lines = [line for line in shown.splitlines() if any(word in line.split() or
                 f'"{word}"' in line for word in words)]  # fmt: skip
        found += [f"{' '.join(argv)}: {line.strip()}" for line in lines]
    for path in RUNTIME.rglob("*"):
        text = path.read_text(errors="replace") if path.is_file() else ""
        found += [str(path) for word in words if word in path.name or word in text]
    return found


@pytest.mark.parametrize("end", ["release", "hold", "drop"])
def test_d42_nothing_of_a_guest_is_left(
    end: str, neighbour: Lease, lasting_broker: Broker, alices: Client
) -> None:
    with alices.acquire(network_tap(mac=MAC), vm="gone") as lease:
        words = talkative(lease)
        assert len({line.partition(":")[0] for line in traces(words)}) >= 4, "it was never there"
        if end == "release":
            lease.release()
        elif end == "drop":
            lease.drop("tap0")
        else:
            lease.let_go()
            lease.tap.close()
        wait_for_link(words[1], present=False)
        alices.settle()
        # A lease without a TAP is still a lease.
        left = traces(words[1:] if end == "drop" else words)
        assert left == []
        assert neighbour.tap.ask_arp(GATEWAY)


def test_d38_a_tap_that_is_renamed_ends_its_lease_and_is_deleted(
    neighbour: Lease, lasting_broker: Broker, alices: Client
) -> None:
    """No rule is about another name; only an administrator can do it."""
    with alices.acquire(network_tap(mac=MAC), vm="renamed") as lease:
        lease.tap.ask_arp(GATEWAY)
        index = lease.tap.ifindex
        host.ip("link", "set", lease.tap.ifname, "down")
        host.ip("link", "set", lease.tap.ifname, "name", "renamed0")
        wait_for_link("renamed0", present=False)
        alices.settle()
        with pytest.raises(KeyError):
            lease.listed()
        indices = [link["ifindex"] for link in json.loads(host.ip("-json", "link"))]
        assert index not in indices
        assert not Path("/sys/class/net/renamed0").exists()
        with pytest.raises(OSError, match="bad state"):
            os.write(lease.tap.fds[0], bytes(70))
    assert neighbour.tap.ask_arp(GATEWAY)


def test_d41_churn_leaves_nothing(neighbour: Lease, lasting_broker: Broker, alices: Client) -> None:
    """As fast as it goes, of several queues, and none of it grows."""
    lasting_broker.configure("[limits]\ncalls_per_second = 60000\n")
    first = next_index(alices)
    opened = len(list(Path(f"/proc/{lasting_broker.daemon.pid}/fd").iterdir()))
    for number in range(60):
        with alices.acquire(network_tap(queues=1 + number % 4), vm="churn") as lease:
            assert lease.tap.ifindex <= first + 1 + number
    alices.settle()
    assert len(list(Path(f"/proc/{lasting_broker.daemon.pid}/fd").iterdir())) <= opened
    assert host.ours() == sorted((BRIDGE, neighbour.tap.ifname))


def next_index(client: Client) -> int:
    """The index of an interface that was just made."""
    with client.acquire(vm="first") as lease:
        return lease.tap.ifindex

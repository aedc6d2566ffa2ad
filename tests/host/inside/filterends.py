# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's TAP with a filter, twice: libvirt's rules guard the one, the broker the other.

Each is on a bridge of its own, with another host on a cable. The guests have the same addresses,
the ``<filterref>`` is the same text, and so are the frames.
"""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbus_fast import Variant

from host.inside import stockrules, strangers
from lab import rawbus
from lab.filterframes import MAC, PLAIN
from lab.lan import lan_bridge, lan_host
from lab.tap import Tap
from sessionvirt.driver.filters import filter_request
from sessionvirt.model.domain import parse_domain
from sessionvirt.model.filterref import guest_filter
from sessionvirt_broker.tun import create

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lab.frames import Packet
    from lab.lan import LanHost
    from sessionvirt.model.filter import GuestFilter

__all__ = ["End", "Ours", "libvirts", "of_session", "ours"]

#: Where the host is emulated, too, a frame that has not come in this time does not come.
SECONDS = 2.0
BRIDGE = "br8"

DOMAIN = """\
<domain type='kvm'>
  <name>vm</name><memory>65536</memory><os><type>hvm</type></os>
  <devices>
    <interface type='bridge'>
      <source bridge='{bridge}'/><mac address='{mac}'/><model type='virtio'/>
      {filterref}
    </interface>
  </devices>
</domain>
"""


@dataclass
class End:
    """A guest's TAP, and the other host on its bridge."""

    tap: Tap
    peer: LanHost

    def wait(self) -> None:
        """Until the bridge forwards, which it does when it has seen the carrier of its ports."""
        for _ in range(100):
            self.tap.send(PLAIN)
            with contextlib.suppress(TimeoutError):
                self.peer.until(lambda packet: packet.frame == PLAIN, timeout=0.1)
                return
        raise TimeoutError(f"the bridge of {self.tap.ifname} forwards nothing")

    def passing(
        self, outbound: Mapping[str, bytes], inbound: Mapping[str, bytes], expected: frozenset[str]
    ) -> frozenset[str]:
        """Send frames from the guest and to it: the names of those that arrive.

        :param expected: those that are waited for. They go last, so that when they have come all
            has come.
        """
        found: set[str] = set()
        ways = (outbound, self.tap, self.peer), (inbound, self.peer, self.tap)
        for sent, sender, receiver in ways:
            receiver.waiting()
            sender.send(*(sent[name] for name in sorted(sent, key=lambda one: one in expected)))
            found |= _heard(receiver, sent, expected & sent.keys())
        return frozenset(found)


def _heard(
    receiver: Tap | LanHost, sent: Mapping[str, bytes], expected: frozenset[str]
) -> set[str]:
    names = {frame: name for name, frame in sent.items()}
    found: set[str] = set()

    def complete(packet: Packet) -> bool:
        found.update({names[packet.frame]} if packet.frame in names else ())
        return found >= expected

    if expected:
        with contextlib.suppress(TimeoutError):  # what is missing is missing in what is returned
            receiver.until(complete, timeout=SECONDS)
    else:
        # The kernel has delivered a frame when the call that sends it returns.
        for one in receiver.waiting():
            complete(one)
    return found


@contextlib.contextmanager
def _lan(bridge: str, port: str) -> Iterator[LanHost]:
    """A bridge that has nothing to say itself, so that every frame that is counted was sent."""
    with lan_bridge(bridge):
        Path(f"/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6").write_text("1")
        with lan_host(bridge, port=port) as peer:
            yield peer


@contextlib.contextmanager
def libvirts() -> Iterator[End]:
    """The one for libvirt's rules, of which there are none yet."""
    port = stockrules.PORT
    with stockrules.clean(), _lan("br9", "lanp9") as peer:
        tap = Tap(create(port, 1), {"ifname": port, "mac": MAC})
        try:
            Path(f"/proc/sys/net/ipv6/conf/{port}/disable_ipv6").write_text("1")
            subprocess.run(["ip", "link", "set", port, "master", "br9", "up"], check=True)
            end = End(tap, peer)
            end.wait()
            yield end
        finally:
            tap.close()


@dataclass
class Ours(End):
    """The one that the broker guards.

    :param held: its lease.
    """

    held: strangers.Held

    def drops(self) -> dict[str, int]:
        """How many frames were dropped so far, by reason; those of a filter as long as it holds."""
        return self.held.drops()

    @contextlib.contextmanager
    def filtered(self, wanted: GuestFilter) -> Iterator[None]:
        """With what the session would ask for, if anything."""
        if wanted.is_empty:
            yield
            return
        request = filter_request(self.tap.id, wanted)
        fields = {key: Variant(*value) for key, value in request.parameters().items()}
        ((grant,),) = self._ask("Add", [[request.kind, fields]])
        try:
            yield
        finally:
            self._ask("Drop", [grant["id"].value])

    def _ask(self, member: str, what: list[Any]) -> list[Any]:
        path = self.held.lease.path
        return self.held.client.call(member, what, {}, path=path, interface=rawbus.LEASE)


def of_session(name: str) -> GuestFilter:
    """What the session makes of a filter's ``<filterref>``."""
    filterref = stockrules.filterref(name)
    text = DOMAIN.format(bridge=BRIDGE, mac=MAC, filterref=filterref)
    (nic,) = parse_domain(text).value.interfaces
    return guest_filter(nic)


@contextlib.contextmanager
def ours() -> Iterator[Ours]:
    """A TAP of user1's."""
    request = rawbus.tap(None, bridge=BRIDGE, mac=MAC)
    with (
        _lan(BRIDGE, "lanp8") as peer,
        strangers.configured(f"[bridge.{BRIDGE}]\n"),
        strangers.connection("user1") as client,
        strangers.holding(client, "stock", request) as held,
    ):
        (tap,) = held.taps
        end = Ours(tap, peer, held)
        end.wait()
        yield end

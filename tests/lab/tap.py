# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest's end of a TAP: what QEMU would do with the fd, and what a hostile holder would.

Frames go with the ten bytes of ``struct virtio_net_hdr`` in front (IFF_VNET_HDR), all zero: no
offload.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import subprocess
from typing import TYPE_CHECKING, Any

from lab import capture, frames, hearing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lab.users import User

__all__ = ["Tap", "as_user"]

HEADER = bytes(10)
#: Silence of this many seconds is taken for "nothing comes" where no later frame can prove it.
SILENCE = 0.3
#: Ports of the datagrams that mark an end, each used once.
_marks = itertools.count(20000)


class Tap:
    """A grant of the kind ``tap``.

    :param fds: one a queue; owned.
    :param facts: the rest of the grant.
    """

    def __init__(self, fds: list[int], facts: Mapping[str, Any]) -> None:
        self.fds = fds
        self.facts = facts
        #: Whether :meth:`until` answers who asks for this guest's addresses, as a guest would.
        self.attentive = False
        for descriptor in fds:
            os.set_blocking(descriptor, False)

    @property
    def id(self) -> str:
        return str(self.facts["id"])

    @property
    def ifname(self) -> str:
        return str(self.facts["ifname"])

    @property
    def ifindex(self) -> int:
        return int(self.facts["ifindex"])

    @property
    def mac(self) -> str:
        return str(self.facts["mac"])

    @property
    def ipv4(self) -> str:
        """The only one."""
        (address,) = self.facts["ipv4"]
        return str(address)

    @property
    def ipv6(self) -> str:
        """The only one."""
        (address,) = self.facts["ipv6"]
        return str(address)

    @property
    def link_local(self) -> str:
        return frames.link_local(self.mac)

    def send(self, *sent: bytes) -> None:
        """Write frames, in order. The kernel has delivered each when this returns.

        :raise OSError: EIO: the interface is down or detached.
        """
        for frame in sent:
            capture.note(self.ifname, capture.OUTBOUND, frame)
            os.write(self.fds[0], HEADER + frame)

    def waiting(self) -> list[frames.Packet]:
        """Everything that has arrived on any queue."""
        found = []
        for descriptor in self.fds:
            while True:
                try:
                    frame = os.read(descriptor, 70000)[len(HEADER) :]
                except BlockingIOError:
                    break
                capture.note(self.ifname, capture.INBOUND, frame)
                found.append(frames.parse(frame))
        return found

    def until(
        self, wanted: Callable[[frames.Packet], bool], *, timeout: float = 5
    ) -> list[frames.Packet]:
        """Everything up to and with the first packet that is *wanted*.

        :raise TimeoutError: it did not come; the text has what did.
        """
        return hearing.until(wanted, self._attended, self.fds, timeout)

    def _attended(self) -> Iterator[frames.Packet]:
        """What has arrived; each is answered before the next is looked at, where it is to be."""
        for packet in self.waiting():
            if self.attentive:
                self._answer(packet)
            yield packet

    def silent(self, unwanted: Callable[[frames.Packet], bool]) -> bool:
        """Whether nothing *unwanted* comes for a while."""
        try:
            self.until(unwanted, timeout=SILENCE)
        except TimeoutError:
            return True
        return False

    def reaches(self, peer: Tap, *sent: bytes) -> bool:
        """Whether every one of *sent* reaches the peer as it is, or none; all or nothing holds.

        An honest datagram follows; it is what the end is known by.
        """
        port = next(_marks)
        self.send(*sent, self.udp4(peer.mac, peer.ipv4, (port, port)))
        seen = [packet.frame for packet in peer.until(lambda p: p.ports == (port, port))]
        found = [frame in seen for frame in sent]
        assert all(found) or not any(found)
        return all(found)

    # What a guest does

    def _answer(self, packet: frames.Packet) -> None:
        if packet.ethertype == frames.ARP and packet.kind == 1 and packet.target == self.ipv4:
            back = packet.source_mac
            self.send(frames.arp(2, self.mac, self.ipv4, packet.source, target=back))
        if packet.protocol == frames.ICMP6 and packet.kind == 135 and packet.source != "::":
            wanted = str(ipaddress.IPv6Address(packet.payload[4:20]))
            if wanted in (self.link_local, self.ipv6):
                to = packet.source
                said = frames.neighbour_advertisement(wanted, to, wanted, self.mac)
                self.send(self.to6(packet.source_mac, wanted, to, frames.ICMP6, said))

    def ask_arp(self, address: str) -> str:
        """The MAC of *address*, by ARP.

        :raise TimeoutError: nobody answered.
        """
        # A bridge whose first port has just come drops what it would send (it has no carrier until
        # the kernel has looked, linkwatch): ask again, as every guest does.
        for _ in range(10):
            self.send(frames.arp(1, self.mac, self.ipv4, address))
            with contextlib.suppress(TimeoutError):
                return self.until(
                    lambda p: p.ethertype == frames.ARP and p.kind == 2 and p.source == address,
                    timeout=0.5,
                )[-1].source_mac
        raise TimeoutError(f"nobody answers for {address}")

    def to4(self, mac: str, target: str, protocol: int, payload: bytes, **more: Any) -> bytes:
        """An honest frame with an IPv4 packet to *target*."""
        packet = frames.ipv4(self.ipv4, target, protocol, payload, **more)
        return frames.ethernet(mac, self.mac, frames.IPV4, packet)

    def udp4(self, mac: str, target: str, ports: tuple[int, int], payload: bytes = b"") -> bytes:
        """An honest frame with a datagram."""
        segment = frames.udp(self.ipv4, target, ports, payload)
        return self.to4(mac, target, frames.UDP, segment)

    def tcp4(self, mac: str, target: str, ports: tuple[int, int]) -> bytes:
        """An honest frame with a SYN."""
        return self.to4(mac, target, frames.TCP, frames.tcp(self.ipv4, target, ports))

    def echo4(self, mac: str, target: str, identification: int) -> bytes:
        """An honest frame with a ping."""
        return self.to4(mac, target, frames.ICMP, frames.echo4(identification))

    def to6(self, mac: str, source: str, target: str, protocol: int, payload: bytes) -> bytes:
        """A frame with an IPv6 packet; honest where *source* is."""
        packet = frames.ipv6(source, target, protocol, payload)
        return frames.ethernet(mac, self.mac, frames.IPV6, packet)

    def close(self) -> None:
        """Close every queue; the interface goes with the last one's last copy."""
        while self.fds:
            os.close(self.fds.pop())


_PROGRAM = """\
import fcntl, os, struct, sys
fd = int(sys.argv[1])
"""


def as_user(user: User, fd: int, program: str) -> str:
    """Run Python text as *user*, without any capability, with ``fd`` in its hands.

    :return: what it printed.
    :raise AssertionError: it failed.
    """
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", _PROGRAM + program, str(fd)],
        cwd="/",
        env=user.environment,
        user=user.uid,
        group=user.gid,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        pass_fds=(fd,),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

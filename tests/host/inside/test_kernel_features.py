# SPDX-License-Identifier: LGPL-2.1-or-later
"""What needs a whole kernel: VLAN devices, conntrack and reject on bridges, vhost-net, and a
capability that containers have not.

The frames are those of ``lab.forgeries``, the broker is the installed one, the kernel Debian's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import frames
from lab.forgeries import FORGERIES, LONE_FRAGMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from host.inside.strangers import Held
    from lab.tap import Tap
    from lab.users import User

pytestmark = pytest.mark.host

BRIDGE, GATEWAY = "svn_default", "10.213.80.1"
SENDER, PEER = "52:54:00:00:40:01", "52:54:00:00:40:02"
#: Of who is no guest: a port that the administrator has put on the bridge.
NEIGHBOUR = "02:00:00:00:40:03"


@pytest.fixture
def pair() -> Iterator[Held]:
    """A lease of user1 with two TAPs, the sender and the peer."""
    from host.inside.machines import permitted
    from host.inside.strangers import connection, holding
    from lab.rawbus import tap

    with (
        permitted(),
        connection("user1") as client,
        holding(client, "pair", tap(mac=SENDER), tap(mac=PEER)) as held,
    ):
        yield held


def run(*argv: str, text: str = "") -> str:
    """Run a command of the administrator's."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def forge(held: Held, names: set[str]) -> None:
    """Send forgeries between honest twins: dropped and counted by their reasons, nothing else."""
    sender, peer = held.taps
    expected: Counter[str] = Counter(held.drops())
    for name in sorted(names):
        forgery = FORGERIES[name]
        honest, forged = forgery.honest(sender, peer), forgery.forged(sender, peer)
        assert sender.reaches(peer, honest), f"{name}: the honest twin does not arrive"
        assert not sender.reaches(peer, forged, forged), f"{name} arrives"
        expected[forgery.reason] += 2
    assert held.drops() == dict(expected)


def test_the_filter_holds_on_a_whole_kernel(pair: Held) -> None:
    """MAC, ARP, IPv4, IPv6, ND, RA, DHCP server, BPDU, tags, types, as in the kernel tier.

    Then beside what that tier's kernel has not: conntrack and reject on the bridge, VLAN devices.
    In one test, because they have the broker in common, whose start is the longest part.
    """
    forge(pair, set(FORGERIES))
    conntrack_and_reject_do_not_disturb(pair)
    tagged_frames_reach_no_vlan_device(pair)
    two_users_are_apart(pair)


ADMINISTRATORS = """
table bridge testhost {
  counter replies {
  }
  counter rejected {
  }
  chain prerouting {
    type filter hook prerouting priority 0; policy accept;
    ct state invalid counter drop
    ct state established,related counter name replies accept
    udp dport 9 counter name rejected reject with icmpx admin-prohibited
  }
}
"""


def counted(name: str) -> int:
    """Packets that one of the administrator's counters has seen."""
    words = run("nft", "list", "counter", "bridge", "testhost", name).split()
    return int(words[words.index("packets") + 1])


@contextlib.contextmanager
def administrators_rules() -> Iterator[None]:
    """A table of somebody else's in the bridge family, with conntrack and reject."""
    run("nft", "-f", "-", text=ADMINISTRATORS)
    try:
        yield
    finally:
        run("nft", "delete", "table", "bridge", "testhost")


def conntrack_and_reject_do_not_disturb(pair: Held) -> None:
    """An administrator's stateful bridge table works on our TAPs, and our filter under it."""
    sender, peer = pair.taps
    with administrators_rules():
        assert Path("/sys/module/nf_conntrack_bridge").exists()
        # Conntrack puts fragments together: a lone one goes nowhere.
        forge(pair, set(FORGERIES) - LONE_FRAGMENTS)
        before = counted("replies")
        assert sender.reaches(peer, sender.udp4(peer.mac, peer.ipv4, (4100, 4200), b"asks"))
        assert peer.reaches(sender, peer.udp4(sender.mac, sender.ipv4, (4200, 4100), b"answers"))
        assert counted("replies") > before
        # A reject comes back to the guest that sent, through our output chain.
        sender.waiting()
        assert not sender.reaches(peer, sender.udp4(peer.mac, peer.ipv4, (4100, 9), b"refused"))
        assert counted("rejected") == 1
        answer = sender.until(lambda p: p.protocol == frames.ICMP)[-1]
        assert (answer.kind, answer.source) == (3, peer.ipv4)


class Wire:
    """A port that is no guest's on the managed bridge, and VLAN devices on top of that bridge."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        run("ip", "link", "add", "wire0", "type", "veth", "peer", "name", "wire1")
        stack.callback(run, "ip", "link", "delete", "wire0")
        run("ip", "link", "set", "wire1", "master", BRIDGE)
        self.names = {"vlan7": ("802.1Q", "7"), "vlan7ad": ("802.1ad", "7")}
        for name, (protocol, number) in self.names.items():
            kind = ("type", "vlan", "proto", protocol, "id", number)
            run("ip", "link", "add", "link", BRIDGE, "name", name, *kind)
            stack.callback(run, "ip", "link", "delete", name)
        for name in ("wire0", "wire1", *self.names):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            run("ip", "link", "set", name, "up")
        self._from = stack.enter_context(self._packets("wire0"))
        self.devices = {name: stack.enter_context(self._packets(name)) for name in self.names}

    @staticmethod
    def _packets(name: str) -> socket.socket:
        """Everything that this interface receives."""
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        sock.bind((name, 3))
        sock.settimeout(5)
        return sock

    def send(self, frame: bytes) -> None:
        """From the port that is no guest's."""
        self._from.send(frame)

    def received(self, name: str, mark: bytes) -> list[bytes]:
        """What a VLAN device got until a frame with *mark* in it."""
        found: list[bytes] = []
        while mark not in (frame := self.devices[name].recv(2000)):
            found.append(frame)
        return found


def tagged_frames_reach_no_vlan_device(pair: Held) -> None:
    """With real 802.1Q and 802.1ad devices on the bridge: tags from a guest are dropped, counted.

    The same frames from a port that is no guest's do reach them: the devices work.
    """
    sender, peer = pair.taps
    inner = sender.udp4(frames.BROADCAST, "255.255.255.255", (4000, 4000), b"from the guest")[12:]
    head = frames.mac_bytes(frames.BROADCAST)
    service = frames.SERVICE_VLAN
    tags = {
        "single": frames.tag(7),
        "priority": frames.tag(0),
        "service": frames.tag(7, service),
        "double": frames.tag(7, service) + frames.tag(8),
        "double, of one kind": frames.tag(7) + frames.tag(7),
        "double, priority first": frames.tag(0) + frames.tag(7),
        "double, service inside": frames.tag(7) + frames.tag(7, service),
        "the old service tag": frames.tag(7, 0x9100),
    }
    with contextlib.ExitStack() as stack:
        wire = Wire(stack)
        before = pair.drops().get("vlan", 0)
        for tag in tags.values():
            assert not sender.reaches(peer, head + frames.mac_bytes(SENDER) + tag + inner)
        assert pair.drops()["vlan"] - before == len(tags)
        for name, tag in {"vlan7": tags["single"], "vlan7ad": tags["service"]}.items():
            mark = f"the end on {name}".encode()
            frame = head + frames.mac_bytes(NEIGHBOUR) + tag + inner
            wire.send(frame.replace(b"from the guest", mark))
            got = wire.received(name, mark)
            assert [one for one in got if frames.mac_bytes(SENDER) in one] == []


# Two users


def two_users_are_apart(pair: Held) -> None:
    """Neither on the bridge nor through the gateway; each is heard by the host, and by itself."""
    from host.inside.strangers import connection, holding

    mine, other = pair.taps
    with connection("user2") as his, holding(his, "his") as held:
        (stranger,) = held.taps
        for tap in (mine, other, stranger):
            tap.attentive = True
        gateway = mine.ask_arp(GATEWAY)
        assert {other.ask_arp(GATEWAY), stranger.ask_arp(GATEWAY)} == {gateway}
        group = frames.solicited_node(stranger.ipv6)
        asks = frames.neighbour_solicitation(mine.ipv6, group, stranger.ipv6, mine.mac)
        apart = [
            frames.arp(1, mine.mac, mine.ipv4, stranger.ipv4),
            mine.udp4(stranger.mac, stranger.ipv4, (7000, 7000), b"apart"),
            mine.udp4(frames.BROADCAST, "255.255.255.255", (7000, 7000), b"apart"),
            mine.to6(frames.multicast_mac(group), mine.ipv6, group, frames.ICMP6, asks),
        ]
        stranger.waiting()
        before = pair.drops().get("peer", 0)
        mine.send(*apart)
        assert pair.drops().get("peer", 0) - before == len(apart)
        hairpins = [
            mine.udp4(gateway, stranger.ipv4, (7100, 7100), b"hairpin"),
            mine.echo4(gateway, stranger.ipv4, 7),
        ]
        mine.send(*hairpins, mine.echo4(gateway, GATEWAY, 77))
        # The gateway deals with one packet after the other.
        mine.until(lambda p: p.protocol == frames.ICMP and p.kind == 0)
        came = [*stranger.waiting(), *until_gateway_answers(stranger, gateway)]
        assert [p for p in came if p.source_mac == mine.mac] == []
        assert [p for p in came if p.source == mine.ipv4 or p.payload == b"hairpin"] == []
        assert mine.reaches(other, mine.udp4(other.mac, other.ipv4, (7000, 7000), b"together"))


def until_gateway_answers(tap: Tap, gateway: str) -> list[frames.Packet]:
    """What comes to a guest until the answer to a ping of its own."""
    tap.send(tap.echo4(gateway, GATEWAY, 78))
    return tap.until(lambda p: p.protocol == frames.ICMP and p.kind == 0)[:-1]


# vhost-net

MODULE = Path("/sys/module/vhost_net")
FORBIDDEN = Path("/etc/modprobe.d/sessionvirt-test.conf")


@contextlib.contextmanager
def child(user: User, argv: list[str], *fds: int) -> Iterator[subprocess.Popen[str]]:
    """A program of a user who is in no group but their own."""
    process = subprocess.Popen(
        argv,
        cwd="/",
        env=user.environment,
        user=user.uid,
        group=user.gid,
        extra_groups=[],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=fds,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_the_filter_holds_for_vhost_net() -> None:
    """What the kernel's vhost thread sends for a guest is filtered and counted like all else.

    The broker opens /dev/vhost-net, which is not for this user.
    """
    from host.inside.machines import permitted
    from host.inside.strangers import connection, holding
    from lab.rawbus import tap
    from lab.tap import as_user
    from lab.users import User

    wanted = [tap(mac=mac, vhost=True) for mac in (SENDER, PEER)]
    with (
        permitted(),
        connection("user1") as client,
        holding(client, "pair", *wanted) as pair,
        contextlib.ExitStack() as closed,
    ):
        sender = pair.taps[0]
        assert [one.facts["vhost"] for one in pair.taps] == [True, True]
        devices = [one.fds.pop() for one in pair.taps]
        for device in devices:
            closed.callback(os.close, device)
            assert os.readlink(f"/proc/self/fd/{device}") == "/dev/vhost-net"
        assert "denied" in as_user(
            User.named("user1"),
            sender.fds[0],
            "try:\n  os.open('/dev/vhost-net', os.O_RDWR)\nexcept OSError: print('denied')\n",
        )
        qemu_takes_vhost_net_with_our_tap(pair, devices[1])
        forge_by_vhost(pair, devices[0])


def forge_by_vhost(pair: Held, device: int) -> None:
    """Send forgeries and their honest twins by a descriptor of /dev/vhost-net."""
    from host.inside import vhost
    from lab.users import User

    sender, peer = pair.taps
    names = ("mac", "arp-address", "ipv4", "ipv6-of-the-peer", "neighbour", "router", "dhcp-server",
             "bpdu", "vlan", "vlan-double", "llc")  # fmt: skip
    expected = Counter(FORGERIES[name].reason for name in names)
    fds = (sender.fds[0], device)
    program = ["/usr/bin/python3", "-I", vhost.__file__, *map(str, fds)]
    with child(User.named("user1"), program, *fds) as process:
        assert process.stdin
        assert process.stdout
        send = sends(process)
        assert process.stdout.readline() == "ready\n", process.stderr and process.stderr.read()
        for name in names:
            forgery = FORGERIES[name]
            honest, forged = forgery.honest(sender, peer), forgery.forged(sender, peer)
            mark = sender.udp4(peer.mac, peer.ipv4, (5000, 5000), name.encode())
            for frame in (forged, honest, mark):
                send(frame)
            came = [p.frame for p in peer.until(lambda p: p.payload == name.encode())]  # noqa: B023
            assert honest in came, name
            assert forged not in came, name
    assert pair.drops() == dict(expected)


def test_vhost_comes_where_the_host_has_it_and_as_long_as_there_may_be_more() -> None:
    """The kernel loads the module when the broker opens the node, whatever the unit's sandbox."""
    from host.inside.machines import permitted
    from host.inside.strangers import configured, connection, holding
    from lab.rawbus import tap

    wanted = tap(queues=2, vhost=True)
    with permitted(), connection("user1") as client:
        run("modprobe", "-r", "vhost_net")
        assert not MODULE.exists()
        with holding(client, "one", wanted) as held:
            (mine,) = held.taps
            assert mine.facts["vhost"]
            files = [os.readlink(f"/proc/self/fd/{fd}") for fd in mine.fds]
            assert files == ["/dev/net/tun"] * 2 + ["/dev/vhost-net"] * 2
            assert (MODULE / "refcnt").read_text() == "2\n"
            limits = '[network.default]\nipv4 = "10.213.80.1/20"\n[limits]\nvhost_descriptors = '
            for most, given in ((3, False), (4, True)):
                with configured(f"{limits}{most}\n"), holding(client, "two", wanted) as other:
                    (another,) = other.taps
                    assert (another.facts["vhost"], len(another.fds)) == (given, 4 if given else 2)
        assert (MODULE / "refcnt").read_text() == "0\n"
        run("modprobe", "-r", "vhost_net")
        FORBIDDEN.write_text("install vhost_net /bin/false\n")
        try:
            with holding(client, "one", wanted) as held:
                assert (held.taps[0].facts["vhost"], len(held.taps[0].fds)) == (False, 2)
        finally:
            FORBIDDEN.unlink()


def sends(process: subprocess.Popen[str]) -> Callable[[bytes], None]:
    """A function that has ``vhost.py`` send a frame, and waits until it is delivered."""

    def send(frame: bytes) -> None:
        assert process.stdin
        assert process.stdout
        process.stdin.write(frame.hex() + "\n")
        process.stdin.flush()
        said = process.stdout.readline()
        assert said == "sent\n", process.stderr and process.stderr.read()

    return send


def qemu_takes_vhost_net_with_our_tap(pair: Held, device: int) -> None:
    """As the driver writes it where there is KVM: TAP and vhost-net by descriptor."""
    from host.inside.sessions import until
    from lab.users import User

    (tap,) = pair.taps[0].fds
    netdev = f"tap,id=net0,fd={tap},vhost=on,vhostfd={device}"
    qemu = [
        "qemu-system-x86_64",
        "-S",
        "-nodefaults",
        "-display",
        "none",
        "-machine",
        "q35,accel=tcg",
    ]
    card = f"virtio-net-pci,netdev=net0,mac={SENDER}"
    argv = [*qemu, "-netdev", netdev, "-device", card]
    with child(User.named("user1"), argv, tap, device) as process:
        tasks = Path(f"/proc/{process.pid}/task")

        def names() -> list[str]:
            assert process.poll() is None, process.stderr and process.stderr.read()
            return [(task / "comm").read_text().strip() for task in tasks.iterdir()]

        until(lambda: f"vhost-{process.pid}" in names(), "the kernel has a vhost thread for QEMU")
        assert os.readlink(f"/proc/{process.pid}/exe").endswith("/qemu-system-x86_64")
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The TAP is the lease's, and not QEMU's: it works on.
    sender, peer = pair.taps
    assert sender.reaches(peer, FORGERIES["mac"].honest(sender, peer))


# CAP_SYS_RESOURCE

LIMIT = """\
import resource, sys
try:
    resource.prlimit(int(sys.argv[1]), resource.RLIMIT_MEMLOCK, (int(sys.argv[2]),) * 2)
except OSError as error:
    print(type(error).__name__)
else:
    print("raised")
"""
#: Lines of the unit that are about its being a service, and not about what it may.
SERVICE = ("Type=", "NotifyAccess=", "BusName=", "Exec", "Restart", "RuntimeDirectory", "Timeout")


def in_the_sandbox(argv: list[str], without: str = "") -> str:
    """Run a program with every line of the broker's unit that says what it may; its output.

    :param without: a text to leave out of these lines.
    """
    unit = Path("/usr/lib/systemd/system/sessionvirt-broker.service").read_text()
    assert without in unit
    lines = unit.partition("[Service]\n")[2].replace(without, "").splitlines()
    kept = [line for line in lines if "=" in line and not line.startswith(("#", *SERVICE))]
    assert "User=sessionvirt-broker" in kept
    properties = [f"--property={line}" for line in kept]
    return run("systemd-run", "--quiet", "--pipe", "--wait", "--collect", *properties, *argv)


def test_the_memory_lock_limit_can_be_raised_in_the_sandbox() -> None:
    """prlimit(2) on another user's process, with just what the unit allows: as VFIO will need it.

    Without CAP_SYS_RESOURCE it is refused.
    """
    from lab.users import User

    wanted = 123 << 20
    with User.named("user1").popen(["sleep", "infinity"]) as target:
        argv = ["/usr/bin/python3", "-IBc", LIMIT, str(target.pid), str(wanted)]
        assert in_the_sandbox(argv, without="CAP_SYS_RESOURCE ") == "PermissionError\n"
        assert str(wanted) not in locked(target.pid)
        assert in_the_sandbox(argv) == "raised\n"
        assert locked(target.pid) == [str(wanted), str(wanted), "bytes"]


def locked(pid: int) -> list[str]:
    """Soft and hard limit of locked memory of a process."""
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max locked memory"):
            return line.split()[3:]
    raise AssertionError("no such limit")

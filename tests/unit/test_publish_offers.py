# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kind ``publish``, and what rests on another grant in leases: no kernel, no bus."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lab.nofirewall import no_firewall
from sessionvirt_broker.config import BUILTIN, ConfigFile
from sessionvirt_broker.errors import (
    Busy,
    ConfigurationError,
    LimitsExceeded,
    NotFound,
    NotSupported,
)
from sessionvirt_broker.host import Host, Paths
from sessionvirt_broker.journal import Journal
from sessionvirt_broker.kind import Offer, Owner, Permit, Plan, Request
from sessionvirt_broker.kinds import STEPS
from sessionvirt_broker.leases import Leases
from sessionvirt_broker.limits import Limits, Share
from sessionvirt_broker.listening import listener
from sessionvirt_broker.networkconfig import Mode
from sessionvirt_broker.publish import PublishKind
from sessionvirt_broker.publishpolicy import PublishPolicy
from sessionvirt_broker.tapsteps import FilterTap
from sessionvirt_broker.wire import VmName

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit

UID = 1000
OWNER = Owner(UID, VmName("vm"))
CARD = FilterTap("svt0", UID, "52:54:00:00:00:01", ("10.0.0.2",), ("fd00::2",), 0, "svn_n")


class Taps:
    """A kind of TAPs that are nothing but their rules; ``gone`` are those that the kernel lost."""

    name = "tap"
    fds_fact = "ifname"

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.card = CARD

    def parse(self, fields: Any, position: int, configuration: Any) -> Request:
        fields.finish()
        return Request(position)

    def is_ready(self, *_: Any) -> bool:
        return True

    prepare = begun = ended = adopt = lambda *_: None

    def _card(self, request: Request) -> FilterTap:
        return replace(self.card, ifname=f"svt{request.position}")

    def survey(self, request: Request, *_: Any) -> Offer:
        return Offer("network-attach", "", (("vm", "vm"),), "a TAP", Share(taps=1), ())

    def plan(self, request: Request, *_: Any) -> Plan:
        return Plan((), (self._card(request),))

    def grant(self, steps: Any) -> dict[str, object]:
        return {"kind": "tap", "ifname": steps[0].ifname}

    def share(self, steps: Any) -> Share:
        return Share(taps=1)

    def watched(self, steps: Any) -> tuple[str, ...]:
        return (steps[0].ifname,)

    def intact(self, steps: Any, host: Any) -> str:
        return "gone" if steps[0].ifname in self.gone else ""

    def is_gone(self, steps: Any, host: Any) -> bool:
        return steps[0].ifname in self.gone


class Published:
    """What the firewall was told."""

    def __init__(self) -> None:
        self.published: set[Any] = set()

    def adopt(self, *rules: Any) -> None:
        self.published = set(rules[-1])

    @property
    def ports(self) -> list[int]:
        return sorted(one.host_port for one in self.published if hasattr(one, "host_port"))

    def firewall(self) -> Any:
        return no_firewall(
            publish=lambda rules: self.published.add(rules),
            unpublish=lambda rules: self.published.discard(rules),
            adopt=self.adopt,
        )


class World:
    """A host with one network, and the broker's leases."""

    def __init__(self, root: Path) -> None:
        for name in ("records", "holds", "net"):
            (root / name).mkdir()
        localnet = root / "proc/ipv4/conf/svn_n/route_localnet"
        localnet.parent.mkdir(parents=True)
        localnet.write_text("0\n")
        self.localnet = localnet
        self.sockets = root / "net"
        self.taps = Taps()
        self.network = SimpleNamespace(name="n", mode=Mode.NAT, wants_ipv6_out=True, ipv6=())
        self.root, self.limits, self.publish = root, Limits(), PublishPolicy()
        self.firewall = Published()
        self.leases = self.broker()

    def broker(self) -> Leases:
        links: Any = SimpleNamespace(
            addresses=lambda: {2: ["192.0.2.2", "2001:db8::2"]},
            forget_neighbours=lambda *_: None,
        )
        absent = self.root / "absent"
        paths = Paths(self.root, absent, self.root / "proc", absent, sockets=self.sockets)
        vfio: Any = SimpleNamespace(let_go=lambda: None)
        firewall = self.firewall.firewall()
        host = Host(links, firewall, paths, None, vfio)
        networks: Any = SimpleNamespace(named=lambda *_: self.network)
        taps: Any = self.taps
        kinds = {"tap": taps, "publish": PublishKind(networks)}
        return Leases(host, Journal(self.root / "records", "boot", STEPS), kinds)

    @property
    def configuration(self) -> Any:
        return replace(BUILTIN, limits=self.limits, publish=self.publish)

    def survey(self, *raw: Any, lease: str | None = None, owner: Owner = OWNER) -> list[Offer]:
        return self.leases.survey(raw, owner, self.configuration, lease)

    @contextlib.contextmanager
    def acquire(self, *raw: Any, owner: Owner = OWNER) -> Iterator[str]:
        offers = self.survey(*raw, owner=owner)
        acquired = self.leases.acquire(raw, owner, self.configuration, offers, "yes")
        try:
            yield acquired.lease
        finally:
            self.leases.release(acquired.lease)
            acquired.close()
            os.close(acquired.watch)

    def add(self, lease: str, *raw: Any) -> list[dict[str, object]]:
        offers = self.survey(*raw, lease=lease)
        grants = self.leases.add(lease, UID, raw, self.configuration, offers)
        return [dict(grant.facts) for grant in grants]


TAP: Any = ("tap", {})


def publish(host_port: int = 8080, tap: str = "tap0", **more: Any) -> Any:
    values = {"protocol": "tcp", "guest_port": 80, **more}
    types = {int: "u", str: "s"}
    given = {"tap": tap, "host_port": host_port, **values}
    return "publish", {key: (types[type(value)], value) for key, value in given.items()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# What rests on another grant


def test_what_rests_goes_with_what_it_rests_on(world: World) -> None:
    with world.acquire(TAP, TAP, publish(8080), publish(8081, "tap1")) as lease:
        assert world.firewall.ports == [8080, 8081]
        world.leases.drop(lease, UID, ["tap0"])
        assert world.firewall.ports == [8081]
        (facts,) = world.add(lease, publish(8082, "tap1"))
        assert (facts["id"], facts["tap"]) == ("publish4", "tap1")
        # The kernel lost the other: the lease has nothing more.
        world.taps.gone.add("svt1")
        (changed,) = world.leases.changed(["svt1"])
        assert changed.dropped == ()
    assert world.firewall.published == set()
    assert world.localnet.read_text() == "0\n"


def test_a_tap_that_goes_takes_its_own_along(world: World) -> None:
    with world.acquire(TAP, TAP, publish(8080), publish(8081, "tap1")) as lease:
        world.taps.gone.add("svt1")
        (changed,) = world.leases.changed(["svt1"])
        assert changed.dropped == ("tap1",)
        assert world.firewall.ports == [8080]
        assert world.leases.owner(lease, UID) == OWNER


def test_there_must_be_something_to_rest_on(world: World) -> None:
    for raw in ([publish()], [publish(), TAP], [TAP, publish(tap="tap1")]):
        with pytest.raises(NotFound, match="the lease has no grant tap"):
            world.survey(*raw)
    with world.acquire(TAP) as lease:
        world.leases.drop(lease, UID, ["tap0"])
        with pytest.raises(NotFound, match="the lease has no grant tap0"):
            world.add(lease, publish())


def test_the_next_broker_knows_what_rests_on_what(world: World) -> None:
    with world.acquire(TAP, TAP, publish(8080, "tap1")) as lease:
        world.leases = world.broker()
        ((_, watch),) = world.leases.reconcile()
        os.close(watch)
        assert world.firewall.ports == [8080]
        with pytest.raises(Busy):
            world.add(lease, publish(8080))
        world.leases.drop(lease, UID, ["tap1"])
        assert world.firewall.ports == []


def test_what_a_new_broker_took_back_is_no_riddle_to_the_one_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that was never answered goes, with all that only it had in common with nobody."""

    class Died(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Died

    with world.acquire(TAP) as lease:
        monkeypatch.setattr(Leases, "_count", die)
        monkeypatch.setattr(Leases, "_take_part", die)
        with pytest.raises(Died):
            world.add(lease, publish())
        monkeypatch.undo()
        for _ in range(2):
            world.leases = world.broker()
            ((_, watch),) = world.leases.reconcile()
            os.close(watch)
            assert world.firewall.published == set()
        world.add(lease, publish())


# The offer


def test_the_sentence_names_ports_address_and_machine(world: World) -> None:
    _, offer = world.survey(TAP, publish(ports=3))
    text = offer.sentence
    for key, value in offer.details:
        text = text.replace(f"$({key})", value)
    assert text == (
        "Authentication is required to have TCP ports 8080-8082 of every address of this machine"
        ' lead to the virtual machine "vm"'
    )
    assert (offer.action, offer.includes) == ("publish-port", "")
    _, offer = world.survey(TAP, publish(1023, protocol="udp", address="127.0.0.1"))
    assert ("ports", "UDP port 1023") in offer.details
    assert ("where", "127.0.0.1") in offer.details
    assert (offer.action, offer.includes) == ("publish-privileged-port", "publish-port")


def test_the_administrator_has_said_yes_beforehand(world: World) -> None:
    mine = Permit(frozenset({UID}))
    world.publish = PublishPolicy(mine, (range(8000, 8100),))
    for port, ports, permit in ((8000, 1, mine), (8099, 1, mine), (8099, 2, Permit())):
        _, offer = world.survey(TAP, publish(port, ports=ports))
        assert offer.permit == permit
    assert PublishPolicy(mine).permit_for(range(1023, 1025)) == Permit()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"bridge": ""}, NotSupported, "the guest is on the LAN itself"),
        ({"ipv4": (), "ipv6": ()}, NotSupported, "the guest has no IPv4 address"),
    ],
)
def test_cards_that_nothing_leads_to(
    change: Any, error: type[Exception], text: str, world: World
) -> None:
    world.taps.card = replace(CARD, **change)
    with pytest.raises(error, match=text):
        world.survey(TAP, publish())


def test_the_ip_versions_that_the_guest_has(world: World) -> None:
    with world.acquire(TAP, publish()):
        (rules,) = (one for one in world.firewall.published if hasattr(one, "targets"))
        assert rules.targets == ("10.0.0.2", "fd00::2")
    world.taps.card = replace(CARD, ipv4=())
    with pytest.raises(NotSupported, match="the guest has no IPv4 address"):
        world.survey(TAP, publish(address="192.0.2.2"))
    with world.acquire(TAP, publish()):
        assert world.localnet.read_text() == "0\n"
    world.network.wants_ipv6_out = False
    with pytest.raises(NotSupported, match="its IPv6 does not leave this host"):
        world.survey(TAP, publish())
    world.taps.card = CARD
    with world.acquire(TAP, publish()):
        (rules,) = (one for one in world.firewall.published if hasattr(one, "targets"))
        assert rules.targets == ("10.0.0.2",)
        assert world.localnet.read_text() == "1\n"


def test_so_many_ports_of_a_user(world: World) -> None:
    world.limits = Limits(ports_per_request=4, ports_per_user=6)
    with pytest.raises(LimitsExceeded, match="ports_per_request: 4"):
        world.survey(TAP, publish(ports=5))
    with world.acquire(TAP, publish(ports=4)) as lease:
        with pytest.raises(LimitsExceeded, match="ports_per_user: 6"):
            world.add(lease, publish(9000, ports=3))
        world.add(lease, publish(9000, ports=2))
        world.leases.drop(lease, UID, ["publish1"])
        world.add(lease, publish(9100, ports=4))


# The host's own


HEAD = "  sl  local_address rem_address   st tx_queue\n"


def test_where_the_host_listens(world: World) -> None:
    rows = {
        "tcp": ("0100007F:1F90 00000000:0000 0A", "0202A8C0:0016 0303A8C0:0050 01"),
        "tcp6": ("00000000000000000000000000000000:1F91 0:0 0A",),
        "udp": ("00000000:0043 00000000:0000 07", "0100007F:9000 0100007F:0035 01"),
    }
    for name, lines in rows.items():
        text = HEAD + "".join(f"   {n}: {line} 0:0\n" for n, line in enumerate(lines))
        (world.sockets / name).write_text(text)
    for protocol, address, version, port, found in (
        ("tcp", None, 4, 8080, "127.0.0.1"),
        ("tcp", "127.0.0.1", 4, 8080, "127.0.0.1"),
        ("tcp", "192.0.2.2", 4, 8080, ""),
        ("tcp", None, 6, 8080, ""),
        ("tcp", "192.0.2.2", 4, 8081, "::"),
        ("tcp", None, 4, 22, ""),
        ("udp", "192.0.2.2", 4, 67, "0.0.0.0"),
        ("udp", None, 4, 0x9000, ""),
    ):
        where = ipaddress.ip_address(address) if address else None
        hit = listener(world.sockets, protocol, where, {version}, range(port, port + 1))
        assert (str(hit[0]) if hit else "") == found, (protocol, address, port)


def test_what_others_connect_to_is_not_read(world: World) -> None:
    """Everybody could have the broker read for seconds: connections that have ended count, too."""
    lines = ["0100007F:1F90 0:0 0A", "0100007F:1F91 0:0 07", "0100007F:1F92 0:0 0A"]
    lines += ["0202A8C0:0016 0303A8C0:0050 06"] * 2 + ["0100007F:1F93 0:0 0A"]
    text = HEAD + "".join(f"   {n}: {line} 0:0\n" for n, line in enumerate(lines))
    (world.sockets / "tcp").write_text(text)
    for port, found in ((8080, True), (8082, True), (8083, False)):
        hit = listener(world.sockets, "tcp", None, {4}, range(port, port + 1))
        assert (hit is not None) is found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('ports = ["80-8080"]', "not from 1024 to 65535"),
        ("ports = [1023]", "not from 1024 to 65535"),
        ('ports = ["9000-8999"]', "not from 1024 to 65535"),
        ('ports = "8080"', "must be a list"),
        ("ports = [true]", "neither like 8080"),
        ("port = [8080]", "is not known here"),
        ('users = ["nobody-of-that-name"]', "there is no user"),
    ],
)
def test_a_wrong_table_opens_nothing(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        read(tmp_path, f"[publish]\n{text}\n")


def test_the_table_is_read(tmp_path: Path) -> None:
    policy = read(tmp_path, '[publish]\nusers = [7]\nports = [8080, "9000-9009"]\n')
    assert policy == PublishPolicy(Permit(frozenset({7})), (range(8080, 8081), range(9000, 9010)))
    assert read(tmp_path, "[publish]\nusers = [7]\n").ports == (range(1024, 65536),)


def read(directory: Path, text: str) -> PublishPolicy:
    path = directory / "broker.toml"
    path.write_text(text)
    path.chmod(0o644)
    return ConfigFile(path).current().publish

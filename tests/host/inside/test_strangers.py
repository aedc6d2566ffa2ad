# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one user learns of another's leases, on a real Debian: its bus, its policy, its systemd.

user1 holds a lease, user2 looks. Of what is said on the bus nothing tells of it. What everybody on
the host can see of a network is in docs/trust-model.rst, and the last test holds that list to what
can be read.
"""

from __future__ import annotations

import functools
import re
import secrets
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host.inside.strangers import Held
    from lab.rawbus import Client

pytestmark = pytest.mark.host

VM = "top-secret-machine"
MAC = "52:54:00:5e:c2:e7"
NAME = "org.sessionvirt.Broker1"
OBJECT = "/org/sessionvirt/Broker1"
FREEDESKTOP = "org.freedesktop.DBus"
BUS = FREEDESKTOP

#: Rounds of the comparison of times.
ROUNDS = 150
#: Chance exceeds this many standard deviations once in two million runs.
DEVIATIONS = 5.0


@dataclass
class Neighbours:
    """user1, who holds something, and user2."""

    held: Held
    stranger: Client

    @property
    def paths(self) -> dict[str, str]:
        """Where a lease is, and where none is."""
        return {
            "theirs": self.held.lease.path,
            "absent": f"{OBJECT}/lease/{secrets.token_hex(16)}",
            "near": self.held.lease.path[:-1] + ("0" if self.held.lease.path[-1] != "0" else "1"),
        }


@pytest.fixture
def neighbours() -> Iterator[Neighbours]:
    from host.inside.machines import permitted
    from host.inside.strangers import connection, holding
    from lab.rawbus import tap

    with (
        permitted(),
        connection("user1") as hers,
        connection("user2") as his,
        holding(hers, VM, tap(mac=MAC)) as held,
    ):
        yield Neighbours(held, his)


def questions(client: Client) -> dict[str, Any]:
    """Everything that may be asked without a lease, with the answers."""
    from lab.rawbus import options, tap

    paths = ("/", "/org", "/org/sessionvirt", OBJECT, f"{OBJECT}/lease")
    introspect = f"{FREEDESKTOP}.Introspectable"
    answers: dict[str, Any] = {
        f"Introspect {path}": client.call("Introspect", path=path, interface=introspect)
        for path in paths
    }
    for member in ("ListLeases", "ListNetworks", "Diagnose"):
        answers[member] = client.call(member, {})
    for vm in (VM, "another"):
        answers[f"Plan {vm}"] = client.call("Plan", [tap()], options(vm=vm))
    return answers


def test_a_stranger_learns_nothing(neighbours: Neighbours) -> None:
    """By questions, by attempts, by listening, from the bus itself, and from files.

    In one test, because they have the broker in common, whose start is the longest part.
    """
    addresses_are_not_given_away(neighbours)
    absent_and_forbidden_are_the_same(neighbours)
    nobody_hears_of_a_lease(neighbours)
    the_name_is_the_brokers_alone(neighbours)
    files_tell_what_is_documented(neighbours)
    no_question_tells_of_anothers_lease(neighbours)


def no_question_tells_of_anothers_lease(neighbours: Neighbours) -> None:
    """Introspection, the lists, Diagnose and Plan say the same as when nobody holds anything.

    The lease is given back at the end.
    """
    held, his = neighbours.held, neighbours.stranger
    during = questions(his)
    assert not [held.told_by(answer) for answer in during.values() if held.told_by(answer)]
    assert during["ListLeases"] == [[]]
    networks = during["ListNetworks"][0]
    assert [one["leases"].value for one in networks] == [0, 0]
    # The same bridge for a lease of nobody's name or of user1's machine; taken for one's own.
    assert without_chance(during[f"Plan {VM}"]) == without_chance(during["Plan another"])

    held.client.call("Release", {}, path=held.lease.path, interface=f"{NAME}.Lease")
    after = questions(his)
    changed = {
        f"{question}: {key}"
        for question in during
        for key in differing(during[question][0], after[question][0])
    }
    # That somebody holds something shows: the bridge is there, and so are the tables.
    assert changed <= {
        "ListNetworks: up",
        "Diagnose: nft_tables",
        f"Plan {VM}: steps",
        "Plan another: steps",
    }


def without_chance(answer: Any) -> str:
    """A plan without names, MAC and addresses, which are drawn or derived from the VM's name."""
    words = r"svt[0-9a-f]{12}|([0-9a-f]{2}:){5}[0-9a-f]{2}|10\.213\.[\d.]+|f[ed][0-9a-f:]+"
    return re.sub(words, "*", repr(answer)).replace(VM, "another")


def differing(one: Any, other: Any) -> set[str]:
    """The keys of a{sv} or of a list of a{sv}, or "" for other things."""
    if isinstance(one, list) and len(one) == len(other):
        return {key for pair in zip(one, other, strict=True) for key in differing(*pair)}
    if isinstance(one, dict):
        return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    return {""} if one != other else set()


def addresses_are_not_given_away(neighbours: Neighbours) -> None:
    """Who asks for a MAC address that is in use is told just that; a derived one is nobody's."""
    from host.inside.strangers import holding
    from lab.rawbus import options, tap

    held, his = neighbours.held, neighbours.stranger
    free = his.call("Plan", [tap(mac="52:54:00:5e:c2:e8")], options(vm="x"))
    assert not held.told_by(free)
    busy = his.error("Plan", [tap(mac=MAC)], options(vm="x"))
    assert str(busy) == f"{NAME}.Error.Busy: the MAC address {MAC} is in use on this network"
    # An address that the broker derives is refused to others whether it is in use or not.
    with holding(held.client, "derived") as derived:
        (own,) = derived.taps
        other = own.mac[:-2] + f"{int(own.mac[-2:], 16) ^ 1:02x}"
        told = {str(his.error("Plan", [tap(mac=mac)], options(vm="x"))) for mac in (own.mac, other)}
    assert len(told) == 1, told
    # One's own machine of the same name is another machine.
    with holding(his, VM) as mine:
        assert not set(mine.secrets) & set(held.secrets) - {VM}
        assert [lease["lease"] for lease in his.leases()] == [mine.lease.path]
        assert [lease["lease"] for lease in held.client.leases()] == [held.lease.path]


def attempts(path: str) -> dict[str, tuple[str, list[Any], dict[str, Any]]]:
    """Whatever may be tried on a lease: member, arguments, header."""
    from lab.rawbus import tap

    lease = f"{NAME}.Lease"
    properties = f"{FREEDESKTOP}.Properties"
    tried: list[tuple[str, list[Any], str, str]] = [
        ("Release", [{}], "a{sv}", lease),
        ("Add", [[tap()], {}], "a(sa{sv})a{sv}", lease),
        ("Add", [[], {}], "a(sa{sv})a{sv}", lease),
        ("Drop", [["tap0"], {}], "asa{sv}", lease),
        ("Drop", [["nothing"], {}], "asa{sv}", lease),
        ("Release", [], "", lease),
        ("Nonsense", [], "", lease),
        ("ListLeases", [{}], "a{sv}", NAME),
        ("Acquire", [[tap()], {}], "a(sa{sv})a{sv}", NAME),
        ("Get", [lease, "Vm"], "ss", properties),
        ("GetAll", [lease], "s", properties),
        ("GetAll", [NAME], "s", properties),
        ("GetManagedObjects", [], "", f"{FREEDESKTOP}.ObjectManager"),
        ("GetMachineId", [], "", f"{FREEDESKTOP}.Peer"),
        ("Ping", [], "", f"{FREEDESKTOP}.Peer"),
        ("Introspect", [], "", f"{FREEDESKTOP}.Introspectable"),
    ]
    return {
        f"{interface}.{member} {body}": (
            member,
            body,
            {"signature": signature, "interface": interface, "path": path},
        )
        for member, body, signature, interface in tried
    }


def outcome(client: Client, member: str, body: list[Any], header: dict[str, Any]) -> object:
    """What a call was answered with: the arguments, or the error's name and text."""
    from lab.rawbus import BusError

    answer = client.answer(client.ask(member, *body, **header))
    try:
        return answer.body
    except BusError as error:
        return str(error)
    finally:
        answer.close()


def absent_and_forbidden_are_the_same(neighbours: Neighbours) -> None:
    """Every attempt on user1's lease is answered as one on a lease that never was."""
    from host.inside.strangers import holding

    held, his = neighbours.held, neighbours.stranger
    with holding(held.client, "ended") as ended:
        gone = ended.lease.path
    paths = {**neighbours.paths, "ended": gone}
    answers: dict[str, set[str]] = {}
    for path in paths.values():
        for question, call in attempts(path).items():
            answers.setdefault(question, set()).add(repr(outcome(his, *call)))
    told_apart = {question: told for question, told in answers.items() if len(told) > 1}
    assert not told_apart
    told = {
        question.partition(" ")[0].rpartition(".")[2]: text for question, text in answers.items()
    }
    for member, word in {
        "Release": "InvalidArgs",  # the last of the three: without arguments
        "Drop": "Broker1.Error.NotFound: there is no such lease",
        "Get": "AccessDenied",  # the bus's own policy
        "GetAll": "AccessDenied",
        "GetManagedObjects": "AccessDenied",
        "GetMachineId": "UnknownMethod",
    }.items():
        assert word in next(iter(told[member])), member
    assert not held.told_by(answers)
    # And it was not touched.
    (listed,) = held.client.leases()
    assert [grant["id"].value for grant in listed["grants"]] == ["tap0"]


def test_absent_and_forbidden_take_the_same_time(neighbours: Neighbours) -> None:
    """The answer's time says nothing either.

    User1's lease and one that is not there are asked for in an order drawn anew each time. By ranks
    (Mann and Whitney) the two may differ no more than chance makes two samples of one kind differ.
    """
    from host.inside.strangers import configured, interleaved
    from lab.rawbus import LEASE, options, tap

    his, paths = neighbours.stranger, neighbours.paths

    def release(path: str) -> str:
        error = his.error("Release", {}, path=path, interface=LEASE)
        assert error.short == "NotFound", error
        return error.text

    asked = {name: functools.partial(release, paths[name]) for name in ("theirs", "absent")}
    with configured("[limits]\ncalls_per_second = 65536\n"):
        his.call("Plan", [tap()], options(vm="x"))  # the file is read
        interleaved(10, asked)
        times = interleaved(ROUNDS, asked)
    found = times["theirs"].standing(times["absent"])
    medians = {name: f"{1e3 * one.median:.3f} ms" for name, one in times.items()}
    sentence = f"medians {medians}; {found:+.1f} standard deviations apart; {times['absent'].noise}"
    print(sentence)
    assert abs(found) < DEVIATIONS, sentence


def nobody_hears_of_a_lease(neighbours: Neighbours) -> None:
    """Who asks the bus for every signal gets none of the broker's; eavesdropping is refused."""
    from host.inside.strangers import heard, holding
    from lab.rawbus import BusError

    held, his = neighbours.held, neighbours.stranger
    broker = his.owner()
    his.bus_call("AddMatch", "s", "")
    his.bus_call("AddMatch", "s", f"sender='{NAME}'")
    with holding(held.client, "another-secret") as more:
        held.add()
        more.client.call("Drop", ["tap0"], {}, path=more.lease.path, interface=f"{NAME}.Lease")
    messages = heard(his)
    # There is something to hear: another connection comes.
    assert [one for one in messages if one.sender == broker] == []
    for one in messages:
        said = (one.path, one.interface, one.member, one.body)
        telling = set(held.told_by(said) + more.told_by(said))
        # systemd has a unit for each interface, whose name everybody sees anyway.
        assert telling <= {tap.ifname for tap in held.taps + more.taps}, said
    for rule in ("eavesdrop='true'", f"eavesdrop='true',destination='{NAME}'"):
        with pytest.raises(BusError, match="AccessDenied"):
            his.bus_call("AddMatch", "s", rule)
    with pytest.raises(BusError, match="AccessDenied"):
        his.call(
            "BecomeMonitor", [], 0, signature="asu", destination=BUS,
            path="/org/freedesktop/DBus", interface=f"{FREEDESKTOP}.Monitoring",
        )  # fmt: skip


def the_name_is_the_brokers_alone(neighbours: Neighbours) -> None:
    """What the bus tells of the broker: one connection, one name, a user of its own, not root."""
    from lab.rawbus import BusError

    his = neighbours.stranger
    owner = his.owner()
    (uid,) = his.bus_call("GetConnectionUnixUser", "s", NAME)
    passwd = subprocess.run(
        ["id", "-u", "sessionvirt-broker"], capture_output=True, text=True, check=True
    )
    assert uid == int(passwd.stdout)
    assert his.bus_call("ListQueuedOwners", "s", NAME) == [[owner]]
    (names,) = his.bus_call("ListNames")
    assert [name for name in names if "sessionvirt" in name.lower()] == [NAME]
    for name in (NAME, f"{NAME}.Lease"):
        with pytest.raises(BusError, match="AccessDenied"):
            his.bus_call("RequestName", "su", name, 0)
    with pytest.raises(BusError, match="AccessDenied"):
        his.call("Release", {}, path=neighbours.held.lease.path, interface=None, signature="a{sv}")


#: Below /run/sessionvirt-broker: what everybody may read who knows its name, and what is in it.
READABLE = {
    "networks": "directory",
    "networks/svn_default": "directory",
    "networks/svn_default/hosts": "directory",
    "networks/svn_default/dnsmasq.conf": "file",
    "networks/svn_default/hosts/TAP": "file",
    "networks/svn_default/names": "directory",
    "networks/svn_default/names/TAP": "file",
}
#: What everybody is told by the kernel of an interface, and by dnsmasq's entry for it.
SEEN_BY_ALL = "ifname", "mac", "ipv4", "ipv6"


def files_tell_what_is_documented(neighbours: Neighbours) -> None:
    """Files below /run, links, processes and journal, to a user who knows where to look.

    docs/trust-model.rst, "What everybody on the host sees".
    """
    from lab.broker import RUNTIME
    from lab.users import User

    held, user2 = neighbours.held, User.named("user2")

    def readable(path: str) -> bool:
        return user2.run(["test", "-r", path]).returncode == 0

    names = {
        str(path.relative_to(RUNTIME)): "directory" if path.is_dir() else "file"
        for path in [RUNTIME, *RUNTIME.rglob("*")]
        if readable(str(path))
    }
    # The second interface of a machine has no name: the first has it.
    assert [bool(tap.facts["dns"]) for tap in held.taps] == [True, False]
    assert names == {
        name.replace("TAP", tap.ifname): kind
        for name, kind in READABLE.items()
        for tap in held.taps
        if tap.facts["dns"] or not name.endswith("names/TAP")
    }
    seen_by_all = {str(getattr(tap, fact)) for tap in held.taps for fact in SEEN_BY_ALL}
    for name, kind in names.items():
        if kind == "file":
            # The kernel tells the machine's name, too: it is in the interface's altname.
            known = seen_by_all | ({held.vm} if "/names/" in name else set())
            assert set(held.told_by((RUNTIME / name).read_text())) <= known
    lists = user2.run(["ls", str(RUNTIME)]), user2.run(["ls", str(RUNTIME / "records")])
    assert [done.returncode == 0 for done in lists] == [False, False]
    # systemd tells everybody about units, and nobody here about lines of the journal.
    status = user2.run(
        ["systemctl", "status", "sessionvirt-broker", "sessionvirt-dnsmasq@svn_default"]
    )
    journal = user2.run(["journalctl", "--quiet", "--no-pager", "--unit=sessionvirt-broker"])
    assert held.told_by(status.stdout + journal.stdout) == []
    links = user2.run(["ip", "-details", "link"]).stdout + user2.run(["ip", "neighbour"]).stdout
    assert held.lease.path.rpartition("/")[2] not in links
    rules = user2.run(["/usr/sbin/nft", "list", "ruleset"])
    assert rules.stdout == ""
    assert "Operation not permitted" in rules.stderr
    (broker,) = subprocess.run(
        ["pgrep", "--uid", "sessionvirt-broker"], capture_output=True, text=True, check=True
    ).stdout.split()
    for secret in ("environ", "mem", "fd/0"):
        assert not readable(f"/proc/{broker}/{secret}"), secret

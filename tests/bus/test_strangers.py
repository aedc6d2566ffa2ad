# SPDX-License-Identifier: LGPL-2.1-or-later
"""Group B of the attacks, what others learn: nothing of each other, and nothing of the inside."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import host
from lab.broker import COMMAND, RUNTIME
from lab.fakepolkit import ASK, NO, YES, FakePolkit
from lab.lan import lan_bridge
from lab.rawbus import LEASE, PATH, BusError, Client, options, tap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.broker import Broker
    from lab.brokerlog import Log
    from lab.rawbus import Lease
    from lab.users import User

pytestmark = pytest.mark.bus

STUMBLING = Path(host.__file__).with_name("stumbling_broker.py")
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
#: What an exception's text, a traceback or a repr looks like.
INSIDE = re.compile(
    r"Traceback|File \"|/usr/|/proc/|/sys/| object at 0x|\w+Error\b|\[Errno|\\x|<class"
)


@contextmanager
def leases(client: Client, authority: FakePolkit, count: int) -> Iterator[list[Lease]]:
    """Some leases, given back at the end."""
    held = []
    for number in range(count):
        serial = client.ask("Acquire", [tap()], options(vm=f"secret{number}"))
        authority.decide(YES)
        held.append(client.lease(serial))
    yield held
    for lease in held:
        client.release(lease.path)
        lease.close()


def test_b25_another_users_leases_do_not_exist(
    broker: Broker, authority: FakePolkit, root: Client, alice: User, bob: User
) -> None:
    with Client(alice) as hers, Client(bob) as his:
        alone = his.call("ListNetworks", {})[0][0]
        before = his.call("Introspect", interface=INTROSPECTABLE)[0]
        with leases(hers, authority, 3) as held:
            assert his.leases() == []
            networks = his.call("ListNetworks", {})[0][0]
            assert networks["leases"].value == 0
            # The bridge is up, which everybody sees in /sys anyway; the rest is as it was.
            assert {k: v for k, v in networks.items() if k != "up"} == {
                k: v for k, v in alone.items() if k != "up"
            }
            paths = ["/", "/org/sessionvirt", PATH, f"{PATH}/lease"]
            for path in paths:
                assert his.call("Introspect", path=path, interface=INTROSPECTABLE)[0] == before
            known = his.call("Introspect", path=held[0].path, interface=INTROSPECTABLE)
            guessed = f"{PATH}/lease/{'0' * 32}"
            assert his.call("Introspect", path=guessed, interface=INTROSPECTABLE) == known
            assert "secret" not in before + known[0]
            assert len(hers.leases()) == 3
            assert {lease["uid"] for lease in root.leases()} == {alice.uid}
            # Another connection of the same user has them.
            with Client(alice) as other:
                assert len(other.leases()) == 3


def test_b25_nobody_follows_anothers_packets_nor_his_own_unasked(
    broker: Broker, authority: FakePolkit, alice: User, bob: User
) -> None:
    """What a trace tells is the host's; whose packets it follows are one's own at most."""
    to = options(to="192.0.2.1")
    with Client(alice) as hers, Client(bob) as his, leases(hers, authority, 1) as (held,):
        stranger = his.answer(his.ask("Trace", to, path=held.path, interface=LEASE)).error
        assert stranger.short == "NotFound"
        serial = hers.ask("Trace", to, path=held.path, interface=LEASE)
        (check,) = authority.decide(ASK)
        assert check.action == "trace"
        assert check.details["to"] == "192.0.2.1"
        error = hers.answer(serial).error
        assert error.name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
        serial = hers.ask("Trace", to, path=held.path, interface=LEASE)
        authority.decide(NO)
        assert hers.answer(serial).error.short == "NotAuthorized"
        assert "inet sessionvirt_trace" not in host.tables()


def test_b26_nobody_hears_of_a_lease_by_signals(
    broker: Broker, authority: FakePolkit, alice: User, bob: User
) -> None:
    with Client(alice) as hers, Client(bob) as his:
        his.bus_call("AddMatch", "s", f"type='signal',sender='{his.owner()}'")
        his.bus_call("AddMatch", "s", "type='signal',path_namespace='/org/sessionvirt'")
        with leases(hers, authority, 1):
            pass
        his.bus_call("GetId")
        with pytest.raises(TimeoutError):
            his.receive(0.001)


def test_b27_no_error_tells_of_the_inside(
    broker: Broker, authority: FakePolkit, alice: User, log: Log
) -> None:
    """Everything that goes wrong on the inside, as the caller and the journal have it."""
    broker.configure("[bridge.lan0]\n[bridge.other]\n")
    with Client(alice) as client, lan_bridge("lan0"):
        # An alternative name is found by rtnetlink and is not in /sys: an exception of nobody's.
        altname = ["ip", "link", "property", "add", "dev", "lan0", "altname", "other"]
        subprocess.run(altname, check=True)
        errors = [client.error("Plan", [tap(None, bridge="other")], options(vm="one"))]
        # The host fails: no FIFO, then no journal.
        for name in ("holds", "records"):
            directory, away = RUNTIME / name, RUNTIME / "away"
            directory.rename(away)
            directory.write_text("a file where a directory was")
            serial = client.ask("Acquire", [tap()], options(vm="one"))
            authority.decide(YES)
            errors.append(client.answer(serial).error)
            directory.unlink()
            away.rename(directory)
        serial = client.ask("Acquire", [tap()], options(vm="one"))
        authority.fail(
            authority.check(), "org.freedesktop.PolicyKit1.Error.Failed", "secret /etc/x"
        )
        errors.append(client.answer(serial).error)
        errors.append(client.error("Nothing"))
        for error in errors:
            assert not INSIDE.search(error.text), error
            assert "secret" not in error.text
            assert "\n" not in error.text
        # And afterwards everything works.
        with leases(client, authority, 1):
            pass
    # The journal has a line of each.
    assert len(log.lines("refusal")) == len(errors)


def test_b27_what_nobody_foresaw_is_told_by_a_number(broker: Broker, alice: User, log: Log) -> None:
    """The caller and the journal have the number, the journal alone has the rest."""
    broker.stop()
    broker.daemon.argv = ["/usr/bin/python3", "-I", str(STUMBLING)]
    broker.start()
    broker.daemon.argv = COMMAND
    with Client(alice) as client:
        error = client.error("Diagnose", {})
        assert client.leases() == []
    number = re.fullmatch(r"internal error ([0-9a-f]{8}); see the journal", error.text)
    assert number
    assert f"incident {number[1]}" in log.text()
    assert "secret /etc/x" in log.text()


def test_b28_absent_and_forbidden_are_told_in_the_same_words(
    broker: Broker, authority: FakePolkit, alice: User, bob: User
) -> None:
    broker.configure("[bridge.offered]\n")
    with Client(alice) as hers, Client(bob) as his, lan_bridge("private"):
        texts = {
            his.error("Plan", [tap(None, bridge=name)], options(vm="x")).args[0].replace(name, "*")
            for name in ("private", "absent", "lo")
        }
        # Of what is offered and not there he is told no more than ListNetworks says.
        assert [one["up"] for one in his.networks() if one["name"] == "offered"] == [False]
        assert len(texts) == 1
        assert "NotFound" in texts.pop()
        with leases(hers, authority, 1) as (held,):
            absent = f"{PATH}/lease/{'0' * 32}"
            for member, body in (("Release", [{}]), ("Drop", [["tap0"], {}]), ("Add", [[], {}])):
                asked = [
                    his.error(member, *body, path=path, interface=LEASE).args[0]
                    for path in (held.path, absent, f"{absent}0", f"{PATH}/lease/x")
                ]
                assert len(set(asked)) == 1, asked
                assert "NotFound" in asked[0]
            assert len(hers.leases()) == 1
        # Once it has ended, it is as if it had never been.
        ended = hers.error("Release", {}, path=held.path, interface=LEASE)
        assert ended.args == his.error("Release", {}, path=absent, interface=LEASE).args


def test_b29_guessing_leases_is_refused_limited_and_written_down(
    broker: Broker, authority: FakePolkit, alice: User, bob: User, log: Log
) -> None:
    with Client(alice) as hers, Client(bob) as his, leases(hers, authority, 1) as (held,):
        told = {
            his.error("Release", {}, path=held.path[:-4] + f"{number:04x}", interface=LEASE).short
            for number in range(1500)
        }
        assert told == {"NotFound", "LimitsExceeded"}
        with pytest.raises(BusError) as refused:
            his.release(held.path)
        assert refused.value.short in told
        # The rate is bob's alone, and so is the room in the journal that he can take up.
        assert len(hers.leases()) == 1
        lines = log.lines("refusal")
        assert any(f'uid="{bob.uid}"' in line and "no such lease" in line for line in lines)
        assert len(lines) < 1000
        assert not [line for line in lines if f'uid="{alice.uid}"' in line]


def test_the_owner_of_a_lease_is_a_user_and_not_a_connection(
    broker: Broker, authority: FakePolkit, alice: User
) -> None:
    with Client(alice) as first:
        serial = first.ask("Acquire", [tap()], options(vm="one"))
        authority.decide(YES)
        lease = first.lease(serial)
    with Client(alice) as second:
        serial = second.ask("Add", [tap()], {}, path=lease.path, interface=LEASE)
        authority.decide(YES)
        answer = second.answer(serial)
        assert [grant["id"].value for grant in answer.body[0]] == ["tap1"]
        second.call("Drop", ["tap0"], {}, path=lease.path, interface=LEASE)
        assert (
            second.error("Drop", ["tap0"], {}, path=lease.path, interface=LEASE).short == "NotFound"
        )
        refused = second.error("Drop", ["tap1", "tap9"], {}, path=lease.path, interface=LEASE)
        assert refused.short == "NotFound"
        assert [grant["id"].value for grant in second.leases()[0]["grants"]] == ["tap1"]
        second.release(lease.path)
        lease.close()
        answer.close()  # not before: a TAP that is gone ends its lease

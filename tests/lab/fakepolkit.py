# SPDX-License-Identifier: LGPL-2.1-or-later
"""polkit, misbehaving: a connection that owns polkit's name and answers what a test tells it to.

It decides nothing. A test reads a check as it came, and answers it, or with something that is no
answer, or late, or not at all; closing the fake in between is polkitd's death.
"""

from __future__ import annotations

import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbus_fast import Message, MessageType

from lab.polkit import AUTHORITY, INTERFACE, NAME
from lab.rawbus import PATIENCE, Client

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ASK", "DISMISSED", "NO", "YES", "Check", "FakePolkit"]

#: (bba{ss}): is_authorized, is_challenge, details.
YES = [True, False, {}]
NO = [False, False, {}]
ASK = [False, True, {}]
DISMISSED = [False, False, {"polkit.dismissed": "true"}]


@dataclass(frozen=True)
class Check:
    """One CheckAuthorization, as it came."""

    message: Message

    @property
    def subject(self) -> Any:
        """(s kind, a{sv} details)."""
        return self.message.body[0]

    @property
    def action(self) -> str:
        """Its last word."""
        return str(self.message.body[1]).removeprefix("org.sessionvirt.broker1.")

    @property
    def details(self) -> dict[str, str]:
        """What rules and the sentence may look at."""
        return dict(self.message.body[2])

    @property
    def flags(self) -> int:
        """1: a prompt may be shown."""
        return int(self.message.body[3])

    @property
    def cancellation(self) -> str:
        """The id that CancelCheckAuthorization would name."""
        return str(self.message.body[4])

    @property
    def sentence(self) -> str:
        """What an agent would show, substituted in a single pass, as polkitd does."""
        text, out = self.details["polkit.message"], ""
        while "$(" in text:
            before, _, rest = text.partition("$(")
            key, _, text = rest.partition(")")
            out += before + self.details.get(key, f"$({key})")
        return out + text


class FakePolkit(Client):
    """The name's owner. The real one must not run."""

    def __init__(self) -> None:
        super().__init__(pwd.getpwnam("polkitd").pw_uid)  # the bus lets nobody else own the name
        answer = self.bus_call("RequestName", "su", NAME, 4)  # DO_NOT_QUEUE
        assert answer == [1], f"somebody else owns {NAME}"

    def check(self, timeout: float = PATIENCE) -> Check:
        """The next check.

        :raise TimeoutError: none came.
        """
        return Check(self._call("CheckAuthorization", timeout))

    def cancelled(self, timeout: float = PATIENCE) -> str:
        """The id of the next cancellation, which is acknowledged."""
        message = self._call("CancelCheckAuthorization", timeout)
        self.send(self._numbered(Message.new_method_return(message, "", [])))
        return str(message.body[0])

    def answer_check(self, check: Check, result: Sequence[Any]) -> None:
        """Answer as polkit does."""
        self.raw(check, "(bba{ss})", [list(result)])

    def raw(self, check: Check, signature: str, body: Sequence[Any]) -> None:
        """Answer with anything."""
        self.send(self._numbered(Message.new_method_return(check.message, signature, list(body))))

    def fail(self, check: Check, name: str, text: str) -> None:
        """Answer with an error."""
        self.send(self._numbered(Message.new_error(check.message, name, text)))

    def decide(self, *results: Sequence[Any]) -> list[Check]:
        """Answer as many checks as there are results; what they were."""
        checks = []
        for result in results:
            checks.append(self.check())
            self.answer_check(checks[-1], result)
        return checks

    def silence(self) -> None:
        """Assert that nothing was asked up to now.

        A round trip over the same connection: what the bus had for it has arrived by then.
        """
        self.bus_call("GetId")
        asked = [a for a in self._backlog if a.message.message_type is MessageType.METHOD_CALL]
        assert not asked, f"polkit was asked: {[a.message.body for a in asked]}"

    def _call(self, member: str, timeout: float) -> Message:
        for position, kept in enumerate(self._backlog):
            if kept.message.message_type is MessageType.METHOD_CALL:
                assert kept.message.member == member, f"unexpected: {kept.message.member}"
                assert kept.message.interface == INTERFACE
                assert kept.message.path == AUTHORITY
                return self._backlog.pop(position).message
        while True:
            came = self._read(timeout)
            if came.message.message_type is MessageType.METHOD_CALL:
                self._backlog.insert(0, came)
                return self._call(member, timeout)
            came.close()

    def _numbered(self, message: Message) -> Message:
        message.serial = self.next_serial()
        return message

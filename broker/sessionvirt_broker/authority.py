# SPDX-License-Identifier: LGPL-2.1-or-later
"""polkit: one raw asynchronous CheckAuthorization, and nothing but a clear yes is a yes.

The subject is the caller's unique bus name, which polkit resolves itself; details go along because
the actions name this broker's user as their owner. Every error, time-out and oddity is
:class:`AuthorityUnavailable`, which gives nothing; there is no way around polkit for any uid.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import secrets
from typing import TYPE_CHECKING, Any

from dbus_fast import Message, MessageType, Variant

from .errors import AuthorityUnavailable, Dismissed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .bus import Bus, Caller

log = logging.getLogger(__name__)

NAME = "org.freedesktop.PolicyKit1"
ACTION_PREFIX = "org.sessionvirt.broker1."
_ALLOW_USER_INTERACTION = 1
#: Without a prompt polkit answers at once; a rule may run for at most 15 s (polkit(8)).
_RULES_SECONDS = 20.0
#: How much longer than the prompt's own deadline its cancellation may take.
_CANCEL_SECONDS = 5.0


class Answer(enum.Enum):
    """What polkit said; and what stands for it."""

    YES = enum.auto()
    #: It would ask, and an administrator has answered beforehand, in broker.toml.
    CONFIGURED = enum.auto()
    #: It would ask, and did not: it was not allowed to, or found no agent to show a prompt.
    WOULD_ASK = enum.auto()
    NO = enum.auto()
    DISMISSED = enum.auto()


class Authority:
    """polkit's side of the bus connection."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        # Unique for this connection and after a restart of either side.
        self._instance = secrets.token_hex(8)
        self._checks = 0

    async def check(
        self,
        caller: Caller,
        action: str,
        details: Mapping[str, str],
        *,
        prompt_seconds: float | None = None,
    ) -> Answer:
        """May ``caller`` do ``action``, as ``details`` describe it?

        :param prompt_seconds: how long a prompt may stay open; None: no prompt.
        :raise AuthorityUnavailable: no answer that means anything. Fail closed.
        :raise Dismissed: the prompt was open for so long, and is withdrawn.
        """
        self._checks += 1
        cancellation = f"{self._instance}-{self._checks}"
        message = Message(
            destination=NAME,
            path="/org/freedesktop/PolicyKit1/Authority",
            interface="org.freedesktop.PolicyKit1.Authority",
            member="CheckAuthorization",
            signature="(sa{sv})sa{ss}us",
            body=[
                ["system-bus-name", {"name": Variant("s", caller.sender)}],
                ACTION_PREFIX + action,
                dict(details),
                _ALLOW_USER_INTERACTION if prompt_seconds else 0,
                cancellation,
            ],
        )
        try:
            reply = await self._bus.ask(message, prompt_seconds or _RULES_SECONDS)
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel(cancellation))
            raise
        if reply is None:
            await self._cancel(cancellation)
            if prompt_seconds:
                raise Dismissed("the prompt was not answered in time")
            raise AuthorityUnavailable("polkit does not answer")
        return _read(reply)

    async def _cancel(self, cancellation: str) -> None:
        message = Message(
            destination=NAME,
            path="/org/freedesktop/PolicyKit1/Authority",
            interface="org.freedesktop.PolicyKit1.Authority",
            member="CancelCheckAuthorization",
            signature="s",
            body=[cancellation],
        )
        await self._bus.ask(message, _CANCEL_SECONDS)


def _read(reply: Message) -> Answer:
    if reply.message_type is not MessageType.METHOD_RETURN:
        log.warning("polkit answered %s", reply.error_name)  # of letters, digits, dots and _
        absent = str(reply.error_name).startswith("org.freedesktop.DBus.Error.")
        raise AuthorityUnavailable("polkit is not there" if absent else "polkit could not decide")
    if reply.signature != "(bba{ss})":
        raise AuthorityUnavailable("polkit's answer is not understood")
    result: list[Any] = reply.body[0]
    is_authorized, is_challenge, details = result
    if is_authorized is True:
        return Answer.YES
    if "polkit.dismissed" in details:
        return Answer.DISMISSED
    if is_challenge is True:
        # After a prompt was allowed, too: nobody is registered who could show it. A password that
        # was wrong is no challenge (check_authorization_challenge_cb() in
        # polkitbackendinteractiveauthority.c; pkcheck(1) tells them apart the same way).
        return Answer.WOULD_ASK
    return Answer.NO

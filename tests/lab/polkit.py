# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's own polkitd on the lab's bus, and its rules.

Nobody has a logind session here, so for every action's defaults everybody is "any".
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dbus_fast import Message, Variant

from lab.bus import BUS, ENVIRONMENT, call, connected, in_thread, wait_for_owner
from lab.daemon import Daemon

if TYPE_CHECKING:
    from types import TracebackType

    from dbus_fast.aio import MessageBus

__all__ = ["NAME", "Polkit"]

NAME = "org.freedesktop.PolicyKit1"
AUTHORITY = "/org/freedesktop/PolicyKit1/Authority"
INTERFACE = f"{NAME}.Authority"

RULES = Path("/etc/polkit-1/rules.d/10-lab.rules")
ACTIONS = Path("/usr/share/polkit-1/actions")

#: An action that only tells which rules polkitd has read.
SENTINEL = "org.sessionvirt.lab.generation"
_SENTINEL_POLICY = f"""\
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE policyconfig PUBLIC "-//freedesktop//DTD PolicyKit Policy Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/PolicyKit/1/policyconfig.dtd">
<policyconfig>
  <action id="{SENTINEL}">
    <message>Which rules are in force</message>
    <defaults>
      <allow_any>no</allow_any>
      <allow_inactive>no</allow_inactive>
      <allow_active>no</allow_active>
    </defaults>
  </action>
</policyconfig>
"""


class Polkit:
    """polkitd, as a context manager. The bus must be there."""

    def __init__(self) -> None:
        self.daemon = Daemon("polkitd", ["/usr/lib/polkit-1/polkitd", "--no-debug"], ENVIRONMENT)
        self._generations = itertools.count(1)

    def __enter__(self) -> Self:
        (ACTIONS / "org.sessionvirt.lab.policy").write_text(_SENTINEL_POLICY)
        self.start()
        return self

    def start(self) -> None:
        """Start it, and return once it owns its name."""
        self.daemon.spawn()
        wait_for_owner(NAME, pid=self.daemon.pid)

    def stop(self) -> None:
        """End it; nothing starts it again but :meth:`start`."""
        self.daemon.kill()

    def rules(self, javascript: str) -> None:
        """Make *javascript* the only rules; return once polkitd decides by them.

        :raise TimeoutError: it did not take them within 10 s.
        """
        generation = next(self._generations)
        text = f"""{javascript}
polkit.addRule(function (action, subject) {{
    if (action.id === "{SENTINEL}" && action.lookup("n") === "{generation}") {{
        return polkit.Result.YES;
    }}
    return polkit.Result.NOT_HANDLED;
}});
"""
        in_thread(self._install(text, str(generation)))

    def answer(self, action: str, result: str, *, user: str | None = None) -> None:
        """Make one answer the only rule.

        :param action: its id, or the beginning of several with a ``*`` at the end.
        :param result: ``yes``, ``no``, ``auth_self``, ``auth_admin``, ``auth_admin_keep``.
        :param user: only for this user; None: for everybody.
        """
        prefix = action.removesuffix("*")
        matches = "indexOf" if action.endswith("*") else "localeCompare"
        condition = f'action.id.{matches}("{prefix}") === 0'
        if user is not None:
            condition += f' && subject.user === "{user}"'
        self.rules(
            f"polkit.addRule(function (action, subject) {{ if ({condition})"
            f' {{ return "{result}"; }} return polkit.Result.NOT_HANDLED; }});'
        )

    def clear(self) -> None:
        """No rules: the actions' own defaults decide."""
        self.rules("")

    async def _install(self, text: str, generation: str) -> None:
        changed = asyncio.Event()
        async with connected() as bus, asyncio.timeout(10):

            def seen(message: Message) -> None:
                if message.member == "Changed" and message.interface == INTERFACE:
                    changed.set()

            bus.add_message_handler(seen)
            rule = f"type='signal',sender='{NAME}',interface='{INTERFACE}'"
            await call(bus, BUS, "/", f"{BUS}.AddMatch", "s", [rule])
            # Renamed into place: polkitd never reads half of it.
            part = RULES.with_suffix(".part")
            part.write_text(text)
            part.rename(RULES)
            # One write may be several signals, and one may still come of the write before: only the
            # rules themselves can tell that they are in force.
            while not await self._in_force(bus, generation):
                await changed.wait()
                changed.clear()

    @staticmethod
    async def _in_force(bus: MessageBus, generation: str) -> bool:
        subject = ["system-bus-name", {"name": Variant("s", bus.unique_name)}]
        body = [subject, SENTINEL, {"n": generation}, 0, ""]
        member = f"{INTERFACE}.CheckAuthorization"
        answer = await call(bus, NAME, AUTHORITY, member, "(sa{sv})sa{ss}us", body)
        authorised: bool = answer[0][0]
        return authorised

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        RULES.unlink(missing_ok=True)
